"""Templates -> pieces that spell exactly what would be sent to the model."""

from pathlib import Path

import pytest

from sae_transfer.data.templates import Message, Piece, renderer
from sae_transfer.errors import UserError
from tests.conftest import chat_tokenizer

ASK, ANSWER = Message("user", " What? "), Message("assistant", "That.")


def text(pieces: list[Piece]) -> str:
    """The rendered chat."""
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen", "<|im_start|>user\n What? <|im_end|>\n<|im_start|>assistant\nThat."),
        ("mistral", " [INST]  What?  [/INST] That."),
    ],
)
def test_published_templates_add_no_system_message(name: str, expected: str) -> None:
    """They are written as the published scripts have them; the answer follows as it stands."""
    assert text(renderer(name, chat_tokenizer())([ASK, ANSWER])) == expected


def test_a_file_is_a_template(tmp_path: Path) -> None:
    """Its {instruction} is the place of the user's message."""
    (tmp_path / "t.txt").write_text("Q: {instruction}\nA:")
    pieces = renderer(str(tmp_path / "t.txt"), chat_tokenizer())([ASK, ANSWER])
    assert [piece.kind for piece in pieces] == ["control_tokens", "user_prompt", "control_tokens", "rollout"]
    assert text(pieces) == "Q:  What? \nA:That."


def test_the_tokenizers_own_template_is_spelt_exactly() -> None:
    """Pieces of the asked part join to what apply_chat_template renders, the completion follows without an end token."""
    tokenizer = chat_tokenizer()
    turns = [Message("system", "Be kind."), ASK, ANSWER, Message("user", "Why?")]
    asked = [{"role": turn.role, "content": turn.content} for turn in turns]
    pieces = renderer("tokenizer", tokenizer)([*turns, Message("assistant", "So.")])
    expected = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text(pieces) == expected + "So."
    assert [piece.text for piece in pieces if piece.kind == "rollout"] == ["That.", "So."]


def test_a_template_that_strips_messages_is_followed() -> None:
    """Many templates trim: the pieces then hold what the model sees."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | trim")
    pieces = renderer("tokenizer", tokenizer)([ASK, ANSWER])
    assert [piece.text for piece in pieces if piece.kind == "user_prompt"] == ["What?"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("m['content'] | upper", "rewrites messages"),
        ("'hidden'", "drops a user message"),
        ("raise_exception('no')", "refuses a chat"),
        ("m['content'].__class__.__mro__", "refuses a chat"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused(change: str, says: str) -> None:
    """Never a guess at which tokens are whose; and never code out of a template."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", change)
    with pytest.raises(UserError, match=says):
        renderer("tokenizer", tokenizer)([ASK, ANSWER])


def test_published_templates_have_no_place_for_a_system_message() -> None:
    """It is refused, not dropped."""
    with pytest.raises(UserError, match="system message"):
        renderer("qwen", chat_tokenizer())([Message("system", "x"), ASK])


@pytest.mark.parametrize(("name", "says"), [("gemma", "<start_of_turn>"), ("nowhere.txt", "no file")])
def test_a_template_that_cannot_be_used_is_refused(name: str, says: str) -> None:
    """Its tokens must be tokens of the tokenizer, its file must exist."""
    with pytest.raises(UserError, match=says):
        renderer(name, chat_tokenizer())


def test_a_tokenizer_without_a_template_is_refused() -> None:
    """There is no default template to fall back to."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no model's tokenizer has a chat template"):
        renderer("tokenizer", tokenizer)
