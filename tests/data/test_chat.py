"""Chats -> ids and kinds: the published positions, every kind of template, BOS, multi-turn, what is left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sae_transfer.data.chat import read, tokenise, tokens_and_kinds
from sae_transfer.data.packing import NOT_UNDER_TEST
from sae_transfer.data.templates import PUBLISHED, Message, Piece, renderer
from sae_transfer.errors import UserError
from sae_transfer.specs import TOKEN_KINDS
from tests.conftest import chat_tokenizer, write_jsonl

TOKENIZER = chat_tokenizer()
QWEN = renderer("qwen", TOKENIZER)
NEEDS = "a message needs a role of system, user, assistant"
CHAT = [Message("user", "the quick fox"), Message("assistant", "jumps over lazy dogs")]


def names(kinds: Any) -> list[str]:
    """Kinds by name, `-` where a position is not under test."""
    return ["-" if kind == NOT_UNDER_TEST else TOKEN_KINDS[kind] for kind in kinds.tolist()]


def spelled(messages: list[Message], render: Any = QWEN, tokenizer: Any = TOKENIZER) -> list[tuple[str, str]]:
    """Each token's text and kind."""
    ids, kinds = tokens_and_kinds(render(messages), tokenizer)
    return [(tokenizer.decode([token]), kind) for token, kind in zip(ids.tolist(), names(kinds), strict=True)]


def test_kinds_of_a_published_chat_are_those_of_the_published_masks() -> None:
    """soi and eoi are control tokens, the last of eoi is rollout, the last two positions are never under test."""
    ids, kinds = tokens_and_kinds(QWEN(CHAT), TOKENIZER)
    soi, eoi = (TOKENIZER.encode(part, add_special_tokens=False) for part in PUBLISHED["qwen"].split("{instruction}"))
    instruction = TOKENIZER.encode("the quick fox", add_special_tokens=False)
    n, i = len(ids), len(soi) + len(instruction)
    assert ids.tolist()[:i] == soi + instruction
    expected = ["control_tokens"] * len(soi) + ["user_prompt"] * len(instruction) + ["control_tokens"] * (len(eoi) - 1)
    assert names(kinds) == [*expected, *["rollout"] * (n - 2 - len(expected)), "-", "-"]
    assert [str(array.dtype) for array in (ids, kinds)] == ["int32", "int8"]


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_the_text_is_tokenised_once_as_one_string(instruction: str, completion: str) -> None:
    """Ids are those of the whole rendered chat, and every kind is that of the piece with the token's first character."""
    pieces = QWEN([Message("user", instruction), Message("assistant", completion)])
    text = "".join(piece.text for piece in pieces)
    ids, kinds = tokens_and_kinds(pieces, TOKENIZER)
    encoded = TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ids.tolist() == encoded["input_ids"]
    owner = [piece.kind for piece in pieces for _ in piece.text]
    expected = [owner[start] for start, _ in encoded["offset_mapping"]]
    for index, kind in enumerate(names(kinds)[:-2]):
        before_answer = expected[index] == "control_tokens" and expected[index + 1] == "rollout"
        assert kind == ("rollout" if before_answer else expected[index])


def test_a_token_across_pieces_has_the_kind_of_its_first_character() -> None:
    """The space before a word belongs to the template when the template wrote it."""
    pieces = [Piece("say ", "control_tokens"), Piece("fox over lazy dogs", "user_prompt")]
    ids, kinds = tokens_and_kinds(pieces, TOKENIZER)
    joined = TOKENIZER.encode(" fox", add_special_tokens=False)
    assert len(joined) == 1
    assert names(kinds)[ids.tolist().index(joined[0])] == "control_tokens"


def test_every_turn_of_a_chat_has_its_own_kinds() -> None:
    """System, user and assistant messages in turn; the token before each answer is rollout."""
    turns = [Message("system", "be brief"), Message("user", "fox"), Message("assistant", "dogs"), *CHAT]
    found = spelled(turns, renderer("tokenizer", TOKENIZER))
    by_kind = {kind: "".join(text for text, own in found if own == kind) for kind in (*TOKEN_KINDS, "-")}
    assert by_kind["system"] == "be brief"
    assert by_kind["user_prompt"] == "foxthe quick fox"
    assert by_kind["rollout"] + by_kind["-"] == "\ndogs\njumps over lazy dogs"
    assert by_kind["control_tokens"].count("<|im_start|>") == 5
    assert by_kind["control_tokens"].count("<|im_end|>") == 4
    assert by_kind["all"] == ""


def test_a_chat_without_an_answer_has_no_rollout() -> None:
    """A last message of the user opens no answer."""
    kinds = {kind for _, kind in spelled([Message("user", "the quick fox")], renderer("tokenizer", TOKENIZER))}
    assert kinds == {"control_tokens", "user_prompt", "-"}


@pytest.mark.parametrize(("adds", "has", "count"), [(True, False, 1), (True, True, 1), (False, False, 0), (False, True, 1)])
def test_one_bos_where_the_tokenizer_adds_one_and_the_template_has_not(adds: bool, has: bool, count: int) -> None:
    """It stands in front and is a control token."""
    tokenizer = bos_tokenizer() if adds else TOKENIZER
    pieces = [Piece("<|endoftext|>" if has else "", "control_tokens"), *QWEN(CHAT)]
    ids, kinds = tokens_and_kinds(pieces, tokenizer)
    assert ids.tolist().count(0) == count
    assert (ids[0] == 0) == (count == 1)
    assert names(kinds)[0] == "control_tokens"


def test_a_tokenizer_without_a_bos_token_adds_none() -> None:
    """Its id None is not searched for."""
    bare = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer)
    assert bare.bos_token_id is None
    assert tokens_and_kinds(QWEN(CHAT), bare)[0].tolist() == tokens_and_kinds(QWEN(CHAT), TOKENIZER)[0].tolist()


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts BOS (id 0) in front of what it encodes."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    return tokenizer


def test_offsets_past_the_text_keep_to_it() -> None:
    """A tokenizer that reports the end of the text as a token's start gets the last piece's kind."""

    class Odd:
        bos_token, bos_token_id = None, None

        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            return {"input_ids": [1, 2, 3, 4], "offset_mapping": [(0, 1), (1, 2), (9, 9), (9, 9)]}

    _, kinds = tokens_and_kinds([Piece("a", "control_tokens"), Piece("b", "user_prompt")], Odd())
    assert names(kinds) == ["control_tokens", "user_prompt", "-", "-"]
    _, kinds = tokens_and_kinds([Piece("a", "system"), Piece("b", "user_prompt")], Longer())
    assert names(kinds)[:3] == ["system", "user_prompt", "user_prompt"]


class Longer:
    """A tokenizer with five tokens for two characters."""

    bos_token, bos_token_id = None, None

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        return {"input_ids": [1, 2, 3, 4, 5], "offset_mapping": [(0, 1), (1, 2), (2, 2), (2, 2), (2, 2)]}


def test_long_chats_are_left_out_and_counted() -> None:
    """Documents keep their index in the file; a chat of exactly the context size stays."""
    long = [Message("user", "fox " * 50), Message("assistant", "dogs")]
    size = len(tokens_and_kinds(QWEN(CHAT), TOKENIZER)[0])
    data = tokenise([CHAT, long, CHAT, long], QWEN, TOKENIZER, "chats", size)
    assert (data.name, data.left_out, len(data.rows)) == ("chats", 2, 2)
    assert [set(row.documents.tolist()) for row in data.rows] == [{0}, {2}]
    assert [row.index for row in data.rows] == [0, 1]
    assert tokenise([CHAT, long], QWEN, TOKENIZER, "chats", None).left_out == 0
    for row in data.rows:
        assert (row.scored == (row.kinds != NOT_UNDER_TEST)).all()
        assert len(row.documents) == len(row.tokens)
        assert row.documents.dtype == np.int32


def test_chats_too_short_to_score_are_passed_over() -> None:
    """A chat of two tokens has no position under test; where no other is left, that is an error."""
    render = renderer_of("{instruction}")
    tiny = [Message("user", "fo")]
    assert [row.documents[0] for row in tokenise([tiny, CHAT], render, TOKENIZER, "c", None).rows] == [1]
    with pytest.raises(UserError, match=r"^c: no chat has a scored position, 1 are longer than 3 tokens: give shorter chats"):
        tokenise([tiny, CHAT], render, TOKENIZER, "c", 3)


def renderer_of(template: str) -> Callable[[Any], list[Piece]]:
    """A rendering that writes messages one after the other."""
    assert template == "{instruction}"
    kinds: dict[str, Any] = {"user": "user_prompt", "assistant": "rollout"}
    return lambda messages: [Piece(message.content, kinds[message.role]) for message in messages]


def test_records_are_read_in_both_forms(tmp_path: Path) -> None:
    """instruction + completion, or messages; the first N."""
    records: list[dict[str, Any]] = [{"instruction": "a", "completion": "b"}, {"messages": [{"role": "user", "content": "c"}]}]
    path = write_jsonl(tmp_path / "chats.jsonl", records)
    first = [Message("user", "a"), Message("assistant", "b")]
    assert read(path, None) == [first, [Message("user", "c")]]
    assert read(path, 1) == [first]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"instruction": "a"}, "record 1 has neither instruction and completion nor messages: give one or the other"),
        ({"completion": "a"}, "record 1 has neither"),
        ({"instruction": 1, "completion": "b"}, "record 1 has neither"),
        ({"instruction": "a", "completion": 1}, "record 1 has neither"),
        ({"messages": []}, "record 1 has neither"),
        ({"messages": "hello"}, "record 1 has neither"),
        (
            {"messages": ["hello"]},
            "record 1: a message needs a role of system, user, assistant and a content that is a str",
        ),
        ({"messages": [{"role": "tool"}]}, f"record 1: {NEEDS} and a content that is a string: mend it [E-DATA]"),
        ({"messages": [{"role": "user", "content": 3}]}, "record 1: a message needs"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user"}]}, "record 1: a message needs"),
    ],
)
def test_a_record_that_is_no_chat_is_named(tmp_path: Path, record: dict[str, Any], says: str) -> None:
    """The error says which record and what is missing."""
    path = write_jsonl(tmp_path / "chats.jsonl", [{"instruction": "a", "completion": "b"}, record])
    with pytest.raises(UserError) as error:
        read(path, None)
    assert str(error.value).startswith(f"{path} {says}")
    assert error.value.code == "E-DATA"


def test_a_file_without_chats_is_refused(tmp_path: Path) -> None:
    """An empty file is no data set."""
    path = write_jsonl(tmp_path / "chats.jsonl", [])
    with pytest.raises(UserError) as error:
        read(path, None)
    assert str(error.value) == f"{path} holds no chat: give one record a line [E-DATA]"


def test_golden_masks_of_a_real_tokenizer(golden: Callable[[str], Path], smollm2: Path) -> None:
    """The published scored positions of the first two SmolLM2 chats, kind by kind."""
    folder = golden("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    chats = read(folder / "rollouts.jsonl", 2)
    rows = tokenise(chats, renderer("qwen", tokenizer), tokenizer, "chats", None).rows
    for expected in json.loads((folder / "golden.json").read_text())["chat"]:
        for row, key in zip(rows, ("first_mask", "second_mask"), strict=True):
            code = TOKEN_KINDS.index(expected["mask_type"])
            assert np.flatnonzero(row.kinds == code).tolist() == expected[key]


@pytest.mark.parametrize("template", ["qwen", "mistral"])
def test_offsets_that_leave_out_white_space_change_no_kind(template: str) -> None:
    """GPT-NeoX's tokenizers trim them: a token still begins with its space."""
    trimming = chat_tokenizer()
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    (ids, kinds), (same, expected) = (
        tokens_and_kinds(renderer(template, tokenizer)(CHAT), tokenizer) for tokenizer in (trimming, TOKENIZER)
    )
    assert ids.tolist() == same.tolist()
    assert names(kinds) == names(expected)


def test_the_first_token_begins_with_the_text() -> None:
    """Where the tokenizer trims the space that a template starts with, the token is still the template's."""
    trimming = chat_tokenizer()
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    pieces = [Piece(" ", "control_tokens"), Piece("fox over lazy dogs", "user_prompt")]
    assert names(tokens_and_kinds(pieces, trimming)[1])[0] == "control_tokens"
