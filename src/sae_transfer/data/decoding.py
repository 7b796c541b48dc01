"""Token ids -> text for people: single tokens with the space that they begin with, and runs of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Decoder(Protocol):
    """What is used of a Hugging Face tokenizer here."""

    def decode(self, ids: list[int], **options: Any) -> str: ...

    def convert_ids_to_tokens(self, ids: int) -> Any: ...


@dataclass(frozen=True)
class Texts:
    """The text of ids by one tokenizer, or None for all of them where there is none; each token is decoded once."""

    decoder: Decoder | None
    known: dict[int, str | None] = field(default_factory=dict)

    def one(self, token: int) -> str | None:
        """A token by itself; None where the tokenizer lacks it.

        It is what stands behind another such token: at the start of a text some tokenizers strip a space.
        """
        if token not in self.known:
            lacks = self.decoder is None or self.decoder.convert_ids_to_tokens(token) is None
            self.known[token] = None if lacks else self._decoded([token, token])[len(self._decoded([token])) :]
        return self.known[token]

    def run(self, tokens: Sequence[int]) -> str | None:
        """Some tokens in a row, special ones included; an id that the tokenizer lacks has no text."""
        return None if self.decoder is None else self._decoded(list(tokens))

    def _decoded(self, tokens: list[int]) -> str:
        assert self.decoder is not None
        return str(self.decoder.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
