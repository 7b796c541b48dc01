"""Rollouts on disk: what is asked, how an answer becomes text, and a file that grows, resumes and refuses others."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_transfer.data.prompts import completion, instructions, prompt
from sae_transfer.data.rollouts import append, begin, begun, claimed, finished, origin_path
from sae_transfer.data.templates import end_tokens, renderer
from sae_transfer.errors import UserError
from tests.conftest import chat_tokenizer, write_jsonl

TOKENIZER = chat_tokenizer()
ASKED = ["a", "b — ü\u2028🦊", "c"]
IDENTITY: dict[str, Any] = {"model": {"files": {"w": "12"}}, "max_tokens": 64, "splice": None}


def test_instructions_are_the_first_of_those_that_stand_alone(tmp_path: Path) -> None:
    """A completion may be there or not; a record with an input, as Alpaca has, is passed over before any is counted."""
    records = [{"instruction": "a", "input": ""}, {"instruction": "b", "input": "x"}, {"instruction": "c", "completion": "d"}]
    path = write_jsonl(tmp_path / "asked.jsonl", records)
    assert instructions(path, None) == (["a", "c"], 1)
    assert instructions(path, 1) == (["a"], 0)


@pytest.mark.parametrize("records", [[], [{"completion": "a"}], [{"instruction": 3}], [{"instruction": "a", "input": "b"}]])
def test_a_file_without_instructions_is_refused(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    """In one line."""
    with pytest.raises(UserError, match="E-DATA"):
        instructions(write_jsonl(tmp_path / "asked.jsonl", records), None)


def test_a_prompt_ends_where_the_answer_begins() -> None:
    """The template's text before the answer, and no end token."""
    ids = prompt("the quick fox", renderer("tokenizer", TOKENIZER), TOKENIZER)
    assert TOKENIZER.decode(ids) == "<|im_start|>user\nthe quick fox<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_ends_with_the_turn_or_the_text() -> None:
    """By the tokenizer's template, by a published one that has such a token, else by the end-of-text token alone."""
    of_text, start, of_turn = (
        TOKENIZER.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    )
    assert end_tokens("tokenizer", TOKENIZER) == end_tokens("qwen", TOKENIZER) == {of_text, of_turn}
    assert end_tokens("mistral", TOKENIZER) == end_tokens("template.txt", TOKENIZER) == {of_text}
    assert start not in end_tokens("tokenizer", TOKENIZER)


@pytest.mark.parametrize("text", ["jumps over", " jumps", "\n\n", "", "<|im_start|>fox", "🦊"])
def test_the_text_of_a_rollout_gives_its_tokens_again(text: str) -> None:
    """Spaces at its start and special tokens in its middle too."""
    before = prompt("fox", renderer("qwen", TOKENIZER), TOKENIZER)
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert completion(ids, before, TOKENIZER, ended=False) == text


def test_half_a_character_at_the_token_limit_is_left_out() -> None:
    """What was cut off is no text; a rollout that ended by itself stays as it is."""
    ids = TOKENIZER.encode("ok 🦊", add_special_tokens=False)
    assert completion(ids[:-1], [5], TOKENIZER, ended=False) == "ok "
    assert completion(ids[:-1], [5], TOKENIZER, ended=True) == "ok \ufffd"


def test_the_space_that_an_answer_begins_with_is_kept() -> None:
    """A SentencePiece-like decoder drops it at the start of what it is given."""
    pieces = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1}, unk_token="▁a"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert completion([1], [0], PreTrainedTokenizerFast(tokenizer_object=pieces), ended=True) == " b"


def started(folder: Path) -> tuple[Path, int]:
    """A file with two rollouts."""
    path = folder / "r.jsonl"
    begin(path, IDENTITY, {"scale": 1})
    return path, append(path, 0, [(asked, f"to {asked}") for asked in ASKED[:2]])


def test_a_torn_line_is_not_finished_and_is_written_over(tmp_path: Path) -> None:
    """What lies behind the last whole line is replaced by the next part."""
    path, end = started(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"instruction": "c", "compl')
    assert finished(path, ASKED)[1:] == [end]
    append(path, end, [("c", "x")])
    records = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert records == [
        {"instruction": asked, "completion": text} for asked, text in zip(ASKED, ["to a", f"to {ASKED[1]}", "x"], strict=True)
    ]


@pytest.mark.parametrize(("key", "value"), [("model", {"files": {"w": "13"}}), ("max_tokens", 32), ("splice", {"files": {}})])
def test_rollouts_of_another_identity_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    """The difference is named; the same identity gives what was noted."""
    path, _ = started(tmp_path)
    assert begun(path, IDENTITY) == {"scale": 1}
    with pytest.raises(UserError, match=f"{key}.*E-RUN"):
        begun(path, IDENTITY | {key: value})


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"identity": 1, "noted": 1, "version": 1}', '{"identity": {}, "noted": {}, "version": 9}', None]
)
def test_a_file_without_a_sound_origin_is_refused(tmp_path: Path, damage: str | None) -> None:
    """Nobody's file is written over."""
    path, _ = started(tmp_path)
    origin_path(path).unlink() if damage is None else origin_path(path).write_text(damage)
    with pytest.raises(UserError, match="E-RUN"):
        begun(path, {})


@pytest.mark.parametrize("asked", [["a"], ["a", "other", "c"]])
def test_rollouts_of_other_instructions_are_refused(tmp_path: Path, asked: list[str]) -> None:
    """Fewer than there are, or another text."""
    path, _ = started(tmp_path)
    with pytest.raises(UserError, match="E-RUN"):
        finished(path, asked)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    """The second to come is refused at once; nothing is left where nothing was written."""
    path = tmp_path / "made" / "r.jsonl"
    with claimed(path), pytest.raises(UserError, match="another process.*E-RUN"), claimed(path):
        pass
    assert list(tmp_path.iterdir()) == []
