"""Chat templates -> pieces of text with their token kinds: the published templates, a user's file, the tokenizer's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from sae_transfer.data.sandbox import Sandbox
from sae_transfer.errors import UserError

PieceKind = Literal["user_prompt", "rollout", "control_tokens", "system"]


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Piece:
    """A stretch of the rendered chat and the kind of the tokens that begin in it."""

    text: str
    kind: PieceKind


Render = Callable[[Sequence[Message]], list[Piece]]

KIND_OF_ROLE: dict[str, PieceKind] = {"user": "user_prompt", "assistant": "rollout", "system": "system"}

PUBLISHED: dict[str, str] = {
    "qwen": "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    "mistral": " [INST] {instruction} [/INST] ",
    "gemma": "<start_of_turn>user\n{instruction}<end_of_turn>\n<start_of_turn>model\n",
}
"""The templates of "SAEs (usually) Transfer Between Base and Chat Models" (2024); no system message is added."""

SPECIAL_TOKENS: dict[str, tuple[str, ...]] = {
    "qwen": ("<|im_start|>", "<|im_end|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
}
"""Tokens that a published template is written with: a tokenizer that splits them renders another text."""

END_OF_TURN: dict[str, str] = {"qwen": "<|im_end|>", "gemma": "<end_of_turn>"}
"""What ends an answer in a published template; Mistral's ends with the tokenizer's end-of-text token alone."""


@runtime_checkable
class ChatTokenizer(Protocol):
    """What is used of a Hugging Face tokenizer here."""

    chat_template: Any
    eos_token_id: Any
    special_tokens_map: Any

    def get_added_vocab(self) -> dict[str, int]: ...
    def get_chat_template(self) -> Any: ...
    def convert_tokens_to_ids(self, tokens: str) -> Any: ...
    def convert_ids_to_tokens(self, ids: int) -> Any: ...


def renderer(template: str, tokenizer: ChatTokenizer, clock: datetime | None = None) -> Render:
    """The rendering that `--chat-template` names: `tokenizer`, `qwen`, `mistral`, `gemma`, or a file with {instruction}.

    A tokenizer's own template may print the date: that of `clock`, by default the present.

    Raises: UserError E-TEMPLATE where the tokenizer lacks the template or its tokens, or the file is no template.
    """
    if template == "tokenizer":
        if not tokenizer.chat_template:
            raise UserError("E-TEMPLATE", "no model's tokenizer has a chat template", "give --chat-template")
        try:
            sandbox = Sandbox(str(tokenizer.get_chat_template()), tokenizer.special_tokens_map, clock)
        except ValueError:  # several, none of them the default
            raise UserError("E-TEMPLATE", "the tokenizer has several chat templates", "give --chat-template FILE") from None
        return lambda messages: _by_sandbox(sandbox, messages)
    for token in SPECIAL_TOKENS.get(template, ()):
        known = tokenizer.convert_tokens_to_ids(token)
        if known is None or tokenizer.convert_ids_to_tokens(known) != token:
            raise UserError("E-TEMPLATE", f"the tokenizer has no token {token!r} of template {template}", "choose another")
    text = PUBLISHED.get(template)
    if text is None:
        try:
            text = Path(template).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, RuntimeError, ValueError):
            raise UserError(
                "E-TEMPLATE",
                f"--chat-template {template[:200]!r} is no file",
                "give tokenizer, qwen, mistral, gemma or a file",
            ) from None
    if text.count("{instruction}") != 1:
        raise UserError("E-TEMPLATE", f"{template} holds {text.count('{instruction}')} {{instruction}}", "it must hold one")
    before, after = text.split("{instruction}")
    return lambda messages: _by_text(before, after, messages)


def end_tokens(template: str, tokenizer: ChatTokenizer) -> set[int]:
    """Tokens that end an answer: the tokenizer's end-of-text token, and the one that the template writes behind an answer.

    In the tokenizer's own template that is the added token which comes first behind the answer, if one does.
    """
    found = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    if template == "tokenizer":
        mark = "\ue000\ue001"
        conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        try:
            sandbox = Sandbox(str(tokenizer.get_chat_template()), tokenizer.special_tokens_map)
            text = sandbox.render(conversation, add_generation_prompt=False)
        except Exception:  # a template may raise anything; one that takes no answer has no end of one
            text = ""
        behind = text.rpartition(mark)[2].lstrip()
        return found | {
            token for spelled, token in tokenizer.get_added_vocab().items() if spelled and behind.startswith(spelled)
        }
    if template in END_OF_TURN:
        found.add(int(tokenizer.convert_tokens_to_ids(END_OF_TURN[template])))
    return found


def _by_text(before: str, after: str, messages: Sequence[Message]) -> list[Piece]:
    """The published rendering: each user message between the template's halves, each answer as it stands."""
    pieces = []
    for message in messages:
        if message.role == "system":
            raise UserError("E-TEMPLATE", "this chat template has no place for a system message", "use the tokenizer's own")
        if message.role == "user":
            pieces += [
                Piece(before, "control_tokens"),
                Piece(message.content, "user_prompt"),
                Piece(after, "control_tokens"),
            ]
        else:
            pieces.append(Piece(message.content, "rollout"))
    return pieces


def _by_sandbox(sandbox: Sandbox, messages: Sequence[Message]) -> list[Piece]:
    """The tokenizer's own template. Its text around the contents is found by rendering marks in their place, and the
    pieces must then spell what it renders of the real contents: a template that rewrites them is refused."""
    asked, answer = (messages[:-1], messages[-1:]) if messages[-1].role == "assistant" else (messages, ())

    def rendered(contents: Sequence[str]) -> str:
        conversation = [{"role": m.role, "content": c} for m, c in zip(asked, contents, strict=True)]
        try:
            return sandbox.render(conversation, add_generation_prompt=bool(answer))
        except Exception as error:  # a template may raise anything, MemoryError and RecursionError among them
            what = f"the tokenizer's template refuses a chat ({str(error) or type(error).__name__:.300})"
            raise UserError("E-TEMPLATE", what, "mend the chat, or give --chat-template FILE") from None

    marks = [f"\ue000{index}\ue001" for index in range(len(asked))]
    marked = rendered(marks)
    for contents in ([m.content for m in asked], [m.content.strip() for m in asked]):
        pieces: list[Piece] = []
        rest = marked
        for message, mark, content in zip(asked, marks, contents, strict=True):
            before, found, rest = rest.partition(mark)
            if not found:
                raise UserError("E-TEMPLATE", f"the tokenizer's template drops a {message.role} message", "give another")
            pieces += [Piece(before, "control_tokens"), Piece(content, KIND_OF_ROLE[message.role])]
        pieces.append(Piece(rest, "control_tokens"))
        if "".join(piece.text for piece in pieces) == rendered([m.content for m in asked]):
            return [*pieces, *(Piece(m.content, "rollout") for m in answer)]
    raise UserError("E-TEMPLATE", "the tokenizer's template rewrites messages", "give --chat-template FILE")
