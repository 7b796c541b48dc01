"""Token classes: the tokenizer's own, newlines, first ones, and bands of frequency."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sae_transfer.data.classes import Known, classified
from sae_transfer.data.decoding import Texts
from sae_transfer.data.packing import TokenData, TokenRow, pack, whole_row
from sae_transfer.rows import TOKEN_CLASSES
from sae_transfer.specs import TOKEN_KINDS
from tests.conftest import chat_tokenizer

KNOWN = Known(bos=frozenset({0}), special=frozenset({0, 1}), newline=frozenset({2}))


def names(data: TokenData) -> list[list[str]]:
    """Class names, row by row."""
    return [[TOKEN_CLASSES[code] for code in row.classes.tolist()] for row in data.rows if row.classes is not None]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=6))
def test_bands_depend_on_frequency_alone(rows: list[list[int]]) -> None:
    """More frequent tokens hold less than half of the positions: common; less than nine tenths: middle; else rare."""
    data = TokenData("rows", tuple(whole_row(i, row, np.full(len(row), i, dtype=np.int32)) for i, row in enumerate(rows)))
    flat = [token for row in rows for token in row]
    for row, found in zip(rows, names(classified(data, None)), strict=True):
        for token, name in zip(row, found, strict=True):
            before = sum(flat.count(other) for other in set(flat) if flat.count(other) > flat.count(token)) / len(flat)
            assert name == ("common" if before < 0.5 else "middle" if before < 0.9 else "rare")


def test_a_document_begins_once_however_many_rows_it_fills() -> None:
    """Its first token that is neither BOS, special nor newline; the next row goes on with it."""
    rows = tuple(pack([[2, 5, 6, 7, 8, 9], [1, 5, 5]], 5, 0))
    found = names(classified(TokenData("text", rows), KNOWN))
    assert [row.tokens.tolist() for row in rows] == [[0, 2, 5, 6, 7], [0, 8, 9, 0, 1]]
    assert found[0][:3] == ["bos", "newline", "first"]
    assert "first" not in found[0][3:] + found[1]
    assert found[1][3:] == ["bos", "special"]


def test_each_message_of_a_chat_begins_once() -> None:
    """The template's token before an answer has the answer's kind, but the answer begins behind it."""
    kinds = ["control_tokens", "user_prompt", "user_prompt", "control_tokens", "rollout", "rollout", "rollout"] * 2
    tokens = np.asarray([1, 5, 6, 7, 7, 5, 6] * 2, dtype=np.int32)
    codes = np.asarray([TOKEN_KINDS.index(kind) for kind in kinds], dtype=np.int8)
    row = TokenRow(0, tokens, codes, codes >= 0, np.zeros(14, dtype=np.int32))
    (found,) = names(classified(TokenData("chats", (row,)), KNOWN))
    assert [at for at, name in enumerate(found) if name == "first"] == [1, 5, 8, 12]


def test_a_token_has_the_text_that_it_has_inside_a_sentence() -> None:
    """Its space included; an id that the tokenizer lacks, or no tokenizer, gives none."""
    tokenizer = chat_tokenizer()
    ids = tokenizer("again and again", add_special_tokens=False)["input_ids"]
    texts = Texts(tokenizer)
    assert "".join(texts.one(token) or "" for token in ids) == texts.run(ids) == "again and again"
    assert texts.one(1) == "<|im_start|>"
    assert (texts.one(10**6), Texts(None).one(5), Texts(None).run([5])) == (None, None, None)
