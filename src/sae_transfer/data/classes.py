"""What class a token is of, once a data set is tokenised: the tokenizer's own, a newline, a first one, or how frequent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sae_transfer.data.packing import TokenData, TokenRow
from sae_transfer.rows import TOKEN_CLASSES
from sae_transfer.specs import CHAT_KINDS, TOKEN_KINDS

CODE = {name: code for code, name in enumerate(TOKEN_CLASSES)}
COMMON, MIDDLE = 0.5, 0.9
"""A token is common where more frequent ones hold less than the first share of the positions, rare from the second on."""
KIND = {kind: code for code, kind in enumerate(TOKEN_KINDS)}
CHAT = [KIND[kind] for kind in CHAT_KINDS]
MESSAGES = [KIND[kind] for kind in CHAT_KINDS if kind != "control_tokens"]


@dataclass(frozen=True)
class Known:
    """What a tokenizer says of ids."""

    bos: frozenset[int]
    special: frozenset[int]
    newline: frozenset[int]


def classified(data: TokenData, known: Known | None) -> TokenData:
    """The data set with a class for every position. Without a tokenizer there is nothing but frequencies.

    `bos`, `special` and `newline` are ids. `first` is the first position of a document, or of a message of a chat, that is
    none of these; all others are `common`, `middle` or `rare`, by how often their token stands where it is none of these.
    """
    tokens = np.concatenate([row.tokens for row in data.rows])
    classes = np.full(len(tokens), -1, dtype=np.int8)
    for name in ("newline", "special", "bos") if known else ():
        classes[np.isin(tokens, sorted(getattr(known, name)))] = CODE[name]
    content = classes < 0
    classes[content] = _bands(tokens[content])
    parts = np.split(classes, np.cumsum(data.lengths)[:-1])
    if known:
        for part, firsts in zip(parts, _firsts(data.rows, np.split(content, np.cumsum(data.lengths)[:-1])), strict=True):
            part[firsts] = CODE["first"]
    return replace(data, rows=tuple(replace(row, classes=part) for row, part in zip(data.rows, parts, strict=True)))


def _bands(tokens: NDArray[np.int32]) -> NDArray[np.int8]:
    """The band of each position by the share of positions that strictly more frequent tokens hold."""
    _, which, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    _, level, holders = np.unique(-counts, return_inverse=True, return_counts=True)
    held = holders * np.unique(counts)[::-1]
    before = (np.cumsum(held) - held) / max(len(tokens), 1)
    bands = np.select([before < COMMON, before < MIDDLE], [CODE["common"], CODE["middle"]], CODE["rare"]).astype(np.int8)
    return bands[level][which]


def _firsts(rows: Sequence[TokenRow], content: Sequence[NDArray[np.bool_]]) -> Iterator[NDArray[np.int64]]:
    """For each token row the positions that are `first`: a document begins once, however many rows it fills."""
    begun = -1
    for row, may in zip(rows, content, strict=True):
        if np.isin(row.kinds, CHAT).any():
            messages, may = _messages(row.kinds, may)
            places = np.flatnonzero(may)
            yield places[np.unique(messages[places], return_index=True)[1]]
        else:
            places = np.flatnonzero(may)
            documents, at = np.unique(row.documents[places], return_index=True)
            yield places[at[documents > begun]]
            begun = max(begun, *documents.tolist(), -1)


def _messages(kinds: NDArray[np.int8], content: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number of the message of each position of a chat, and the content in messages. The template's token before an answer has
    its kind, but is no part of it."""
    before = np.concatenate([[KIND["control_tokens"]], kinds[:-1]])
    lead = (kinds == KIND["rollout"]) & (before == KIND["control_tokens"])
    return np.cumsum(kinds != before), content & np.isin(kinds, MESSAGES) & ~lead
