"""Documents -> token rows -> TokenBatch: tokens, document ids, token kinds and scored positions, padded on either side."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from sae_transfer.specs import TOKEN_KINDS

NOT_UNDER_TEST = -1
UNCLASSIFIED = -1
ALL = TOKEN_KINDS.index("all")

Side = Literal["left", "right"]


@dataclass(frozen=True)
class TokenRow:
    """One row of tokens, unpadded, in input order `index`. All arrays have shape [pos].

    `kinds` is an index into TOKEN_KINDS, or NOT_UNDER_TEST; `scored` marks positions whose next token is scored; `classes` is
    an index into rows.TOKEN_CLASSES, None until the data set is classified.
    """

    index: int
    tokens: NDArray[np.int32]
    kinds: NDArray[np.int8]
    scored: NDArray[np.bool_]
    documents: NDArray[np.int32]
    classes: NDArray[np.int8] | None = None


@dataclass(frozen=True)
class TokenData:
    """A data set as token rows. `left_out`: documents that were too long for the context size. `padding`: the side on
    which rows of a batch are made equally long, which changes no result."""

    name: str
    rows: tuple[TokenRow, ...]
    left_out: int = 0
    padding: Side = "right"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(len(row.tokens) for row in self.rows)

    @property
    def sha256(self) -> str:
        """Hash of everything that is measured of the rows: tokens, kinds, scored positions, documents."""
        digest = sha256()
        for row in self.rows:
            for values, kind in ((row.tokens, "<i4"), (row.kinds, "i1"), (row.scored, "?"), (row.documents, "<i4")):
                digest.update(len(values).to_bytes(8, "little") + values.astype(kind).tobytes())
        return digest.hexdigest()

    def batch(self, rows: Iterable[int]) -> "TokenBatch":
        """Some rows, by their indices, padded to one length."""
        return collate([self.rows[row] for row in rows], self.padding)


@dataclass(frozen=True)
class TokenBatch:
    """Rows padded to one length. `mask` is False on padding; `rows` holds the rows' indices in input order."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    kinds: Int[Tensor, "batch pos"]
    scored: Bool[Tensor, "batch pos"]
    documents: Int[Tensor, "batch pos"]
    classes: Int[Tensor, "batch pos"]
    rows: Int[Tensor, " batch"]


def collate(rows: Sequence[TokenRow], side: Side = "right") -> TokenBatch:
    """Pad rows to the longest. Padding is never under test and never scored; the side changes no result."""
    width = max(len(row.tokens) for row in rows)

    def padded(values: Iterable[NDArray[np.generic]], fill: int, dtype: torch.dtype) -> Tensor:
        out = torch.full((len(rows), width), fill, dtype=dtype)
        for i, value in enumerate(values):
            at = slice(width - len(value), None) if side == "left" else slice(0, len(value))
            out[i, at] = torch.from_numpy(value.copy()).to(dtype)
        return out

    return TokenBatch(
        tokens=padded((row.tokens for row in rows), 0, torch.long),
        mask=padded((np.ones(len(row.tokens), dtype=np.bool_) for row in rows), 0, torch.bool),
        kinds=padded((row.kinds for row in rows), NOT_UNDER_TEST, torch.long),
        scored=padded((row.scored for row in rows), 0, torch.bool),
        documents=padded((row.documents for row in rows), 0, torch.long),
        classes=padded((_classes(row) for row in rows), UNCLASSIFIED, torch.long),
        rows=torch.tensor([row.index for row in rows]),
    )


def _classes(row: TokenRow) -> NDArray[np.int8]:
    return np.full(len(row.tokens), UNCLASSIFIED, dtype=np.int8) if row.classes is None else row.classes


def whole_row(index: int, tokens: Sequence[int] | NDArray[np.int32], documents: NDArray[np.int32]) -> TokenRow:
    """A row whose every position is under test, and all but the last scored."""
    scored = np.ones(len(tokens), dtype=np.bool_)
    scored[-1] = False
    kinds = np.full(len(tokens), ALL, dtype=np.int8)
    return TokenRow(index, np.asarray(tokens, dtype=np.int32), kinds, scored, documents)


def pack(documents: Iterable[Sequence[int]], context_size: int, bos: int | None) -> Iterator[TokenRow]:
    """Concatenate tokenised documents and cut rows of `context_size`; the last, partial row is dropped.

    As sae-lens's `concat_and_batch_sequences`: with `bos`, a row begins with it and documents in a row are separated by
    it, where it does not stand there already. A row's first BOS belongs to the document that follows it, a separator to
    the document before it.
    """
    tokens: list[int] = []
    owners: list[int] = []
    index = 0
    for document, ids in enumerate(documents):
        at = 0
        while at < len(ids):
            if bos is not None and ids[at] != bos and (not tokens or at == 0):
                owners.append(owners[-1] if tokens else document)
                tokens.append(bos)
            taken = ids[at : at + context_size - len(tokens)]
            tokens += taken
            owners += [document] * len(taken)
            at += len(taken)
            if len(tokens) == context_size:
                yield whole_row(index, tokens, np.asarray(owners, dtype=np.int32))
                tokens, owners, index = [], [], index + 1
