"""Packing as sae-lens does it, with document ids; collating on either side."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_lens.tokenization_and_batching import concat_and_batch_sequences

from sae_transfer.data.packing import NOT_UNDER_TEST, TokenData, pack, whole_row

DOCUMENTS = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=8)


@given(DOCUMENTS, st.integers(2, 9), st.sampled_from([None, 0, 3]))
def test_rows_are_those_of_sae_lens(documents: list[list[int]], size: int, bos: int | None) -> None:
    """BOS at each row's start and between documents, once where it stands there already; no partial row."""
    expected = concat_and_batch_sequences((torch.tensor(document) for document in documents if document), size, bos, None, bos)
    rows = list(pack(documents, size, bos))
    assert [row.tokens.tolist() for row in rows] == [row.tolist() for row in expected]
    assert [row.index for row in rows] == list(range(len(rows)))


@given(DOCUMENTS, st.integers(2, 9))
def test_every_token_belongs_to_its_own_document(documents: list[list[int]], size: int) -> None:
    """Without BOS the owners are the documents' tokens in order."""
    rows = list(pack(documents, size, None))
    owners = [int(owner) for row in rows for owner in row.documents]
    tokens = [int(token) for row in rows for token in row.tokens]
    expected = [(index, token) for index, document in enumerate(documents) for token in document]
    assert list(zip(owners, tokens, strict=True)) == expected[: len(tokens)]


def test_a_separator_belongs_to_the_document_before_it() -> None:
    """And a row's first BOS to the document that follows it."""
    (first, second) = pack([[5, 6], [7, 7, 7], [8, 8]], 5, 1)
    assert first.tokens.tolist() == [1, 5, 6, 1, 7]
    assert first.documents.tolist() == [0, 0, 0, 0, 1]
    assert second.tokens.tolist() == [1, 7, 7, 1, 8]
    assert second.documents.tolist() == [1, 1, 1, 1, 2]


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_padding_is_never_under_test_or_scored(lengths: list[int], side: str) -> None:
    """Unpadded positions of a batch are the rows as they were, on either side."""
    rows = tuple(whole_row(i, list(range(n)), np.full(n, i, dtype=np.int32)) for i, n in enumerate(lengths))
    batch = TokenData("rows", rows, padding=side).batch(range(len(rows)))  # type: ignore[arg-type]
    assert (batch.kinds[~batch.mask] == NOT_UNDER_TEST).all()
    assert not batch.scored[~batch.mask].any()
    for i, row in enumerate(rows):
        assert batch.tokens[i][batch.mask[i]].tolist() == row.tokens.tolist()
        assert batch.scored[i][batch.mask[i]].tolist() == [True] * (len(row.tokens) - 1) + [False]
        assert all(a >= b if side == "right" else a <= b for a, b in pairwise(batch.mask[i].tolist()))
