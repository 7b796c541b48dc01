"""What the published code does to chats otherwise than we do; `--published` and the three scripts alone switch it on.

Each function is one surprise of theirs. docs/definitions.md shows published and right side by side.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_transfer.data.packing import NOT_UNDER_TEST, TokenData
from sae_transfer.data.templates import PUBLISHED
from sae_transfer.data.text import has_input
from sae_transfer.errors import UserError
from sae_transfer.specs import TOKEN_KINDS

END: Mapping[str, str] = {"qwen": "<|im_end|>", "mistral": "</s>", "gemma": "<eos>"}
"""Where the completions of each template's model are cut."""


def cut(completion: str, end: str) -> str:
    """Before the end token; where there is none, `find` gives -1 and the last character goes."""
    return completion[: completion.find(end)]


def cut_of(template: str) -> Callable[[str], str]:
    """The cut of a template's completions."""
    return partial(cut, end=END[template])


def asked(records: Iterable[Mapping[str, Any]], num_samples: int) -> list[str]:
    """Instructions without an input among the first `num_samples` records: records are counted, not instructions."""
    first = (record for _, record in zip(range(num_samples), records, strict=False))
    return [record["instruction"] for record in first if not has_input(record)]


def halves(template: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens of the template before and behind the instruction, each encoded alone.

    Gemma's are encoded without the BOS that rows have; Mistral's each lose their last token.
    """
    before, after = PUBLISHED[template].split("{instruction}")
    special = {"qwen": (True, False), "mistral": (True, False), "gemma": (False, False)}[template]
    encoded = (
        [int(token) for token in tokenizer(text, add_special_tokens=add)["input_ids"]]
        for text, add in zip((before, after), special, strict=True)
    )
    soi, eoi = encoded
    return (soi[:-1], eoi[:-1]) if template == "mistral" else (soi, eoi)


def kinds(tokens: Sequence[int], soi: Sequence[int], eoi: Sequence[int]) -> NDArray[np.int8] | None:
    """Kinds [pos] by counting: `len(soi)` tokens, then up to the first `eoi`, then its own; the last two are not under test.

    None where `eoi` is not found.
    """
    end = next((at for at in range(len(tokens)) if list(tokens[at : at + len(eoi)]) == list(eoi)), None)
    if end is None:
        return None
    out = np.full(len(tokens), TOKEN_KINDS.index("control_tokens"), dtype=np.int8)
    out[len(soi) : end] = TOKEN_KINDS.index("user_prompt")
    out[end + len(eoi) - 1 :] = TOKEN_KINDS.index("rollout")
    out[-2:] = NOT_UNDER_TEST
    return out


def masked(data: TokenData, template: str, tokenizer: Any) -> TokenData:
    """Chats of a published template with the kinds that its code gives them: every row by its own tokens.

    Raises: UserError E-TEMPLATE where a chat holds the template's tokens otherwise than they are encoded alone.
    """
    soi, eoi = halves(template, tokenizer)
    rows = []
    for row in data.rows:
        found = kinds(row.tokens.tolist(), soi, eoi)
        if found is None:
            what = f"{data.name} row {row.index} does not hold the tokens that template {template} has behind an instruction"
            raise UserError("E-TEMPLATE", what, "give this template's own model, or chats without --published")
        rows.append(replace(row, kinds=found, scored=found != NOT_UNDER_TEST))
    return replace(data, rows=tuple(rows))
