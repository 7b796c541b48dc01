"""What the published code does to chats, and what is right, side by side."""

import json
import pickle
from pathlib import Path

import pytest

from sae_transfer import UserError
from sae_transfer.data import chat, pickles, published
from sae_transfer.data.published import cut_of
from sae_transfer.specs import TOKEN_KINDS
from sae_transfer.workflows import demo
from tests.conftest import chat_tokenizer, write_jsonl

USER, ROLLOUT, CONTROL = (TOKEN_KINDS.index(kind) for kind in ("user_prompt", "rollout", "control_tokens"))


@pytest.mark.parametrize(("raw", "theirs", "right"), [("Yes.<eos>", "Yes.", "Yes."), ("Yes.", "Yes", "Yes.")])
def test_a_completion_without_end_token_loses_its_last_character(raw: str, theirs: str, right: str) -> None:
    """Published, `find` gives -1; right, it is kept whole. With an end token both are the same."""
    assert published.cut(raw, "<eos>") == theirs
    assert pickles.cut(raw) == right


def test_published_pickles_are_cut_as_published(tmp_path: Path) -> None:
    """The same file, read for --published and without."""
    file = tmp_path / "generated_data_qwen.pkl"
    file.write_bytes(pickle.dumps({"instructions": ["a", "b"], "completions": ["one<|im_end|>x", "two"]}))
    assert [messages[1].content for messages in chat.read(file, None, cut_of("qwen"))] == ["one", "tw"]
    assert [messages[1].content for messages in chat.read(file, None)] == ["one", "two"]


def test_num_samples_counts_records_before_those_with_an_input_are_left_out() -> None:
    """Published, 3 records give 2 instructions; right, 3 are asked for and come."""
    records = [{"instruction": str(number), "input": "x" if number == 1 else " "} for number in range(5)]
    assert published.asked(records, 3) == ["0", "2"]
    assert [record["instruction"] for record in records if not record["input"].strip()][:3] == ["0", "2", "3"]


def test_gemmas_user_prompt_begins_one_token_early() -> None:
    """Rows have BOS (9), the published tokens of the template's first half (1 2) have not; right, BOS is counted."""
    row, eoi = [9, 1, 2, 50, 51, 3, 4, 60, 61, 62, 63], [3, 4]
    theirs, right = published.kinds(row, [1, 2], eoi), published.kinds(row, [9, 1, 2], eoi)
    assert theirs is not None
    assert right is not None
    assert theirs.tolist() == [CONTROL] * 2 + [USER] * 3 + [CONTROL] + [ROLLOUT] * 3 + [-1] * 2
    assert right.tolist() == [CONTROL] * 3 + [USER] * 2 + [CONTROL] + [ROLLOUT] * 3 + [-1] * 2


def test_gemmas_halves_are_encoded_without_bos_and_mistrals_lose_their_last_token() -> None:
    """By a tokenizer that adds BOS itself: the demo's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo.pair() / "models" / "chat")
    bos = tokenizer.bos_token_id
    assert [published.halves(template, tokenizer)[0][0] == bos for template in ("qwen", "mistral", "gemma")] == [
        *(True, True),
        False,
    ]
    before, after = (tokenizer.decode(half) for half in published.halves("mistral", tokenizer))
    assert (before, after) == ("<s> [INST]", " [/INST]")


def test_every_row_of_a_batch_has_the_mask_that_it_has_alone() -> None:
    """Published, `control_tokens` zeroes the batch's mask at every row: right only at batch size 1, as it is here."""
    from sae_transfer.data import templates

    tokenizer = chat_tokenizer()
    render = templates.renderer("qwen", tokenizer)
    chats = [[templates.Message("user", text), templates.Message("assistant", text * 2)] for text in ("fox", "lazy dogs")]
    exact = chat.tokenise(chats, render, tokenizer, "chats", None)
    theirs = published.masked(exact, "qwen", tokenizer)
    assert [row.kinds.tolist() for row in theirs.rows] == [row.kinds.tolist() for row in exact.rows]
    assert all(CONTROL in row.kinds for row in theirs.rows)


def test_chats_of_another_template_are_refused(tmp_path: Path) -> None:
    """Published, their whole rows would be under test, whatever the mask."""
    tokenizer = chat_tokenizer()
    file = write_jsonl(tmp_path / "chats.jsonl", [{"messages": [{"role": "assistant", "content": "no question"}]}])
    from sae_transfer.data import templates

    data = chat.tokenise(chat.read(file, None), templates.renderer("qwen", tokenizer), tokenizer, "chats", None)
    with pytest.raises(UserError, match="E-TEMPLATE"):
        published.masked(data, "qwen", tokenizer)
    assert json.loads(file.read_text())
