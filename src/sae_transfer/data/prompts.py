"""Instructions -> the prompts that a model answers, and its answers as text."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sae_transfer.data.chat import OffsetTokenizer, tokens_and_kinds
from sae_transfer.data.templates import Message, Render
from sae_transfer.data.text import has_input, records
from sae_transfer.errors import UserError
from sae_transfer.specs import HubData


def instructions(path: Path | HubData, limit: int | None) -> tuple[list[str], int]:
    """The first `limit` instructions, and how many records before the last of them have an `input`, which no prompt here holds.

    Raises: UserError E-DATA for a file without instructions, or a record without one.
    """
    found: list[str] = []
    passed_over = 0
    with closing(records(path)) as entries:
        for number, record in enumerate(entries):
            if limit is not None and len(found) == limit:
                break
            if not isinstance(record.get("instruction"), str):
                raise UserError("E-DATA", f"{path} record {number} has no instruction that is a string", "give one a record")
            if has_input(record):
                passed_over += 1
            else:
                found.append(record["instruction"])
    if not found:
        raise UserError("E-DATA", f"{path} holds no instruction without an input", "give one record a line")
    return found, passed_over


def prompt(instruction: str, render: Render, tokenizer: OffsetTokenizer) -> list[int]:
    """Ids of the chat up to where the answer begins, as `evaluate` tokenises it."""
    pieces = render([Message("user", instruction), Message("assistant", "")])
    return [int(token) for token in tokens_and_kinds(pieces, tokenizer)[0]]


def completion(ids: Sequence[int], before: Sequence[int], tokenizer: Any, ended: bool) -> str:
    """The text of a rollout, special tokens spelled out. One that did not end may stop within a character, which is left out.

    Decoded behind its prompt, because some tokenizers drop the space that a text begins with.
    """
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    start, whole = (str(tokenizer.decode(list(part), **options)) for part in (before, [*before, *ids]))
    text = whole[len(start) :] if whole.startswith(start) else str(tokenizer.decode(list(ids), **options))
    return text if ended else text.rstrip("\ufffd")
