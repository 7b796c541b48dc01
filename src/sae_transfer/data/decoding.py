"""Token ids -> text for people: single tokens with the space that they begin with, and runs of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Decoder(Protocol):
    """What is used of a Hugging Face tokenizer here."""

    def decode(self, ids: list[int], **options: Any) -> str: ...

    def convert_ids_to_tokens(self, ids: int) -> Any: ...


def run(tokenizer: Decoder, ids: Sequence[int]) -> str:
    """The text of some tokens in a row, special ones included; an id that the tokenizer lacks has none."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def each(tokenizer: Decoder | None, ids: Iterable[int]) -> Mapping[int, str | None]:
    """The text of each different token by itself; None where the tokenizer lacks it, or there is none.

    What stands behind a token of the same kind: at the start of a text some tokenizers strip a space.
    """
    found: dict[int, str | None] = {}
    for token in sorted(set(ids)):
        known = tokenizer is not None and tokenizer.convert_ids_to_tokens(token) is not None
        found[token] = run(tokenizer, [token, token])[len(run(tokenizer, [token])) :] if known and tokenizer else None
    return found
