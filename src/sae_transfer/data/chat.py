"""Chats -> token ids and token kinds in one pass: tokenised once, a token has the kind of its first character."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sae_transfer.data import pickles
from sae_transfer.data.packing import NOT_UNDER_TEST, TokenData, TokenRow
from sae_transfer.data.pickles import Cut
from sae_transfer.data.templates import Message, Piece, Render
from sae_transfer.data.text import has_input, records
from sae_transfer.errors import UserError
from sae_transfer.specs import TOKEN_KINDS, HubData

CODE = {kind: code for code, kind in enumerate(TOKEN_KINDS)}
ROLES = ("system", "user", "assistant")


@runtime_checkable
class OffsetTokenizer(Protocol):
    """What is used of a fast Hugging Face tokenizer here."""

    bos_token: Any
    bos_token_id: Any

    def __call__(self, text: str, **options: Any) -> Any: ...


def read(path: Path | HubData, limit: int | None, cut: Cut = pickles.cut) -> list[list[Message]]:
    """Chats of a .jsonl: `instruction` and `completion`, or `messages` of `role` and `content`; or of a published .pkl,
    whose completions `cut` ends; or of a data set on the Hub, whose records with an `input` are left out.

    Raises: UserError E-DATA for a file without chats or a record that is neither.
    """
    with closing(records(path, cut)) as found:
        kept = (record for record in found if not (isinstance(path, HubData) and has_input(record)))
        chats = [_messages(record, f"{path} record {number}") for number, record in enumerate(islice(kept, limit))]
    if not chats:
        raise UserError("E-DATA", f"{path} holds no chat", "give one record a line")
    return chats


def tokenise(
    chats: Iterable[Sequence[Message]], render: Render, tokenizer: OffsetTokenizer, name: str, context_size: int | None
) -> TokenData:
    """Token rows of chats. Chats longer than `context_size` are left out and counted.

    Raises: UserError E-DATA where no chat is left with a position under test.
    """
    rows: list[TokenRow] = []
    left_out = 0
    for index, messages in enumerate(chats):
        tokens, kinds = tokens_and_kinds(render(messages), tokenizer)
        if context_size is not None and len(tokens) > context_size:
            left_out += 1
            continue
        if (kinds == NOT_UNDER_TEST).all():
            continue
        owner = np.full(len(tokens), index, dtype=np.int32)
        rows.append(TokenRow(len(rows), tokens, kinds, kinds != NOT_UNDER_TEST, owner))
    if not rows:
        what = f"{name}: no chat has a scored position, {left_out} are longer than {context_size} tokens"
        raise UserError("E-DATA", what, "give shorter chats, or --context-size if that limits them")
    return TokenData(name, tuple(rows), left_out)


def tokens_and_kinds(
    pieces: Sequence[Piece], tokenizer: OffsetTokenizer
) -> tuple[np.ndarray[Any, np.dtype[np.int32]], np.ndarray[Any, np.dtype[np.int8]]]:
    """Ids [pos] and kinds [pos] of a rendered chat.

    One BOS goes in front where the tokenizer itself would add one and the text has none. The template token just before
    an answer predicts its first token, so it is `rollout`; the last two positions are never under test.
    """
    text = "".join(piece.text for piece in pieces)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    kind_at = np.concatenate([np.full(len(piece.text), CODE[piece.kind], dtype=np.int8) for piece in pieces])
    ends = accumulate((end for _, end in encoded["offset_mapping"]), max, initial=0)
    starts = [min(start, end) for (start, _), end in zip(encoded["offset_mapping"], ends, strict=False)]  # some are trimmed
    kinds = [int(kind_at[min(start, len(kind_at) - 1)]) for start in starts]
    if _adds_bos(tokenizer) and ids[:1] != [tokenizer.bos_token_id]:
        ids, kinds = [tokenizer.bos_token_id, *ids], [CODE["control_tokens"], *kinds]
    rollout, control = CODE["rollout"], CODE["control_tokens"]
    kinds = [
        rollout if kind == control and following == rollout else kind
        for kind, following in zip(kinds, [*kinds[1:], control], strict=True)
    ]
    kinds[-2:] = [NOT_UNDER_TEST] * len(kinds[-2:])
    return np.asarray(ids, dtype=np.int32), np.asarray(kinds, dtype=np.int8)


def _adds_bos(tokenizer: OffsetTokenizer) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _messages(record: dict[str, Any], where: str) -> list[Message]:
    if isinstance(record.get("instruction"), str) and isinstance(record.get("completion"), str):
        return [Message("user", record["instruction"]), Message("assistant", record["completion"])]
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError("E-DATA", f"{where} has neither instruction and completion nor messages", "give one or the other")
    for message in messages:
        if not (isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)):
            raise UserError(
                "E-DATA", f"{where}: a message needs a role of {', '.join(ROLES)} and a content that is a string", "mend it"
            )
    return [Message(message["role"], message["content"]) for message in messages]
