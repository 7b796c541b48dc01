"""What was asked: frozen values that name models, SAEs, data and conditions. Nothing here opens a file or a tensor."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path, PurePath
from typing import ClassVar, Literal, NoReturn

from sae_transfer.errors import UserError

MOST = 10**15
"""No count that makes sense is larger."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
TOKEN_KINDS = ("all", "user_prompt", "rollout", "control_tokens", "system")
CHAT_KINDS = TOKEN_KINDS[1:]
TEMPLATES = ("tokenizer", "qwen", "mistral", "gemma")
"""Chat templates that have a name; any other is a file."""
PUBLISHED = TEMPLATES[1:]
QUANTISED = ("8bit", "4bit")
"""Number formats that bitsandbytes makes when a model is loaded."""
DTYPES = ("float32", "bfloat16", "float16", *QUANTISED)

TokenKind = Literal["all", "user_prompt", "rollout", "control_tokens", "system"]
DataKind = Literal["text", "chats", "rows", "instructions"]


@dataclass(frozen=True, order=True)
class HookPoint:
    """A place in the residual stream: before (`resid_pre`) or after (`resid_post`) a layer, layers counted from 0.

    `centred`: what is seen there lacks its mean over d_model, as in TransformerLens with `center_writing_weights`.
    """

    layer: int
    site: Literal["resid_pre", "resid_post"]
    centred: bool = False

    @classmethod
    def parse(cls, name: str) -> "HookPoint":
        """`blocks.L.hook_resid_pre|post` (TransformerLens), `layers.L` or `model.layers.L` (a module: its output).

        Raises: UserError E-HOOK for any other hook point.
        """
        if match := re.fullmatch(r"(?:blocks|(?:model\.)?layers)\.(\d{1,9})\.(?:hook_)?(resid_pre|resid_post)", name):
            return cls(int(match[1]), "resid_pre" if match[2] == "resid_pre" else "resid_post")
        if match := re.fullmatch(r"(?:model\.)?layers\.(\d{1,9})(?:\.output)?", name):
            return cls(int(match[1]), "resid_post")
        raise UserError(
            "E-HOOK",
            f"hook point {name!r} is not a residual-stream hook point, where alone the model is cut exactly",
            "choose an SAE at blocks.L.hook_resid_pre or blocks.L.hook_resid_post",
        )

    @property
    def boundary(self) -> int:
        """How many layers lie before the cut: `resid_post` of layer L and `resid_pre` of layer L+1 are the same place."""
        return self.layer + (self.site == "resid_post")

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_{self.site}" + (" (centred)" if self.centred else "")


@dataclass(frozen=True)
class ModelRef:
    """A model under a NAME: a source, and perhaps a PEFT adapter on top of it. `dtype`: None is the run's."""

    name: str
    source: str
    adapter: str | None = None
    dtype: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ModelRef":
        """`[NAME=]SOURCE[+ADAPTER]`; a plus sign in the name of an existing path is part of the path."""
        name, source = _named(text)
        if "+" not in source or os.path.exists(source):  # noqa: PTH110  # no error for a name too long
            return cls(name or _last_part(source), source)
        source, _, adapter = source.partition("+")
        if not (source and adapter):
            raise UserError("E-SPEC", f"--model {text!r} names no model or no adapter", "give SOURCE+ADAPTER, or SOURCE alone")
        return cls(name or _last_part(adapter), source, adapter)


@dataclass(frozen=True)
class SaeRef:
    """An SAE under a NAME. `own_model` is the model that it belongs to, where one of the run's models is it."""

    name: str
    source: str
    own_model: str | None = None

    @classmethod
    def parse(cls, text: str) -> "SaeRef":
        """`[NAME[@MODEL]=]SOURCE`."""
        match = re.match(rf"({NAME.pattern})@({NAME.pattern})=", text)
        if match:
            return cls(match[1], text[match.end() :], match[2])
        name, source = _named(text)
        return cls(name or _last_part(source), source)


@dataclass(frozen=True)
class DataRef:
    """A data set under a NAME, read as text, chats or rows of token ids."""

    name: str
    kind: DataKind
    source: str

    @classmethod
    def parse(cls, kind: DataKind, text: str) -> "DataRef":
        """`[NAME=]SOURCE`; the name defaults to the kind."""
        name, source = _named(text)
        return cls(name or kind, kind, source)


@dataclass(frozen=True)
class HubData:
    """A data set on the Hub. `shuffled`: all of it, in the order of the published evaluation; else streamed from its start."""

    repo: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    shuffled: bool = False

    @classmethod
    def parse(cls, ref: DataRef) -> "HubData | None":
        """`ORG/NAME[:CONFIG[:SPLIT]][@REVISION]`; None for a source that is a path. Chats and instructions are shuffled."""
        match = re.fullmatch(r"([\w.\-]+/[\w.\-]+)(?::([\w.\-]*))?(?::([\w.\-\[:%\]]+))?(?:@([\w.\-/]+))?", ref.source)
        if match is None or ref.source[0] in "./~" or os.path.exists(ref.source):  # noqa: PTH110  # no error for a name too long
            return None
        if ref.kind == "rows" or PurePath(match[1]).suffix.lower() in (".txt", ".jsonl", ".parquet", ".pkl"):
            return None
        return cls(match[1], match[2] or None, match[3] or "train", match[4], ref.kind != "text")

    def __str__(self) -> str:
        return f"{self.repo}:{self.config or ''}:{self.split}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, order=True)
class Cell:
    """One model x one SAE x one data set x one token kind: the unit of every table."""

    model: str
    sae: str
    data: str
    token_kind: str


@dataclass(frozen=True)
class EvaluateSpec:
    """Everything that decides an `evaluate` run's numbers. Raises UserError (E-SPEC, E-OPTION) where it contradicts itself."""

    models: tuple[ModelRef, ...]
    saes: tuple[SaeRef, ...]
    data: tuple[DataRef, ...]
    """None, as a command may have it, is the text that the SAEs record; a run's own spec names it."""
    chat_template: str = "tokenizer"
    token_kinds: tuple[str, ...] = TOKEN_KINDS
    norm_scaling_factor: Literal["auto", "saelens", "own"] | float = "auto"
    outlier_threshold: Literal["auto", "off"] | float = "auto"
    context_size: int | None = None
    batch_size: int = 8
    max_documents: int | None = None
    bos: bool | None = None
    dtype: str = "float32"
    published: bool = False
    """Whether chats and CE recovered are treated as the published code does, where that is otherwise than we do."""
    max_rows: int | None = None
    """Only so many packed rows of text, which must be there: the published scripts count rows."""
    device: str = field(default="auto", compare=False)
    activation_cache: int = field(default=2_000_000_000, compare=False)
    allow_pickle: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        _some("--sae", self.saes)
        _data_of_models(self)
        models = [ref.name for ref in self.models]
        for sae in self.saes:
            if sae.own_model not in (None, *models):
                raise UserError("E-SPEC", f"SAE {sae.name} names model {sae.own_model!r}", f"name one of {models}")
        if self.published and self.chat_template not in PUBLISHED and any(ref.kind == "chats" for ref in self.data):
            raise UserError(
                "E-SPEC", "--published needs a published chat template", f"give --chat-template {', '.join(PUBLISHED)}"
            )
        _positive("--norm-scaling-factor", self.norm_scaling_factor)
        _positive("--outlier-threshold", self.outlier_threshold)
        _whole("rows", self.max_rows, 1)

    def dtype_of(self, model: ModelRef) -> str:
        """The number format that a model is loaded in: its own, else the run's."""
        return model.dtype or self.dtype

    def own_model(self, sae: SaeRef) -> str | None:
        """The model that an SAE belongs to: the one it names, else the one of the same NAME, else None."""
        if sae.own_model is not None:
            return sae.own_model
        return sae.name if sae.name in {ref.name for ref in self.models} else None


@dataclass(frozen=True)
class DriftSpec:
    """Everything that decides a `drift` table's numbers. The first model is the one that the others are compared with.

    `layers`: how many layers lie before each place; none given is all of them. Raises UserError (E-SPEC, E-OPTION).
    """

    models: tuple[ModelRef, ...]
    data: tuple[DataRef, ...]
    layers: tuple[int, ...] = ()
    chat_template: str = "tokenizer"
    token_kinds: tuple[str, ...] = TOKEN_KINDS
    context_size: int | None = None
    batch_size: int = 8
    max_documents: int | None = None
    bos: bool | None = None
    dtype: str = "float32"
    device: str = field(default="auto", compare=False)
    activation_cache: int = field(default=2_000_000_000, compare=False)
    saes: ClassVar[tuple[SaeRef, ...]] = ()
    published: ClassVar[bool] = False
    max_rows: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise UserError("E-SPEC", "drift is between two models", "give --model twice, what it was made of first")
        _some("--text, --chats or --rows", self.data)
        _data_of_models(self)
        for layer in self.layers:
            _whole("--layer", layer, 0)
        if len(set(self.layers)) < len(self.layers):
            raise UserError("E-SPEC", "--layer: a layer stands twice", "give each once")

    def dtype_of(self, model: ModelRef) -> str:
        """The number format that a model is loaded in: its own, else the run's."""
        return model.dtype or self.dtype


ReadingSpec = EvaluateSpec | DriftSpec
"""What reads data and runs models on them."""


@dataclass(frozen=True)
class RolloutsSpec:
    """Everything that decides a file of rollouts. Raises UserError (E-SPEC, E-OPTION) where it contradicts itself."""

    model: ModelRef
    instructions: DataRef
    out: Path
    chat_template: str = "tokenizer"
    max_tokens: int = 64
    batch_size: int = 8
    splice: SaeRef | None = None
    norm_scaling_factor: Literal["auto", "saelens"] | float = "auto"
    outlier_threshold: Literal["auto", "off"] | float = "auto"
    max_documents: int | None = None
    published: bool = False
    """Whether an answer that did not end loses its last character, as in the published rollouts."""
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.out.suffix != ".jsonl":
            raise UserError("E-OPTION", f"--out {str(self.out)!r} is no .jsonl file", "give one, which --chats can read")
        if self.splice is None and (self.norm_scaling_factor, self.outlier_threshold) != ("auto", "auto"):
            raise UserError(
                "E-SPEC", "a norm scaling factor or outlier threshold without an SAE scales nothing", "give --splice"
            )
        _machine(self.dtype, self.device)
        _positive("--norm-scaling-factor", self.norm_scaling_factor)
        _positive("--outlier-threshold", self.outlier_threshold)
        _whole("--max-tokens", self.max_tokens, 1)
        _whole("--batch-size", self.batch_size, 1)
        _whole("--max-documents", self.max_documents, 1)


def choice_or_number(option: str, value: str | float, choices: Iterable[str]) -> str | float:
    """An option's value that is one of some words or a number. Raises UserError E-OPTION for anything else."""
    allowed = list(choices)
    if value in allowed:
        return value
    try:
        return float(value)
    except (ValueError, TypeError):
        raise UserError("E-OPTION", f"{option} {value!r} is no number", f"give {', '.join(allowed)} or a number") from None


def _data_of_models(spec: ReadingSpec) -> None:
    """What every spec that reads data for several models has in common."""
    _some("--model", spec.models)
    _unique("--text, --chats or --rows", [ref.name for ref in spec.data])
    for kind in spec.token_kinds:
        if kind not in TOKEN_KINDS:
            raise UserError("E-OPTION", f"--token-kinds {kind!r} is none of them", f"choose from {', '.join(TOKEN_KINDS)}")
    for dtype in (spec.dtype, *(ref.dtype for ref in spec.models if ref.dtype is not None)):
        _machine(dtype, spec.device)
    _whole("--batch-size", spec.batch_size, 1)
    _whole("--max-documents", spec.max_documents, 1)
    _whole("--context-size", spec.context_size, 2)
    _whole("--activation-cache", spec.activation_cache, 0)


def _some(kind: str, refs: tuple[ModelRef, ...] | tuple[SaeRef, ...] | tuple[DataRef, ...]) -> None:
    if not refs:
        raise UserError("E-SPEC", f"nothing given for {kind}", "give at least one")
    _unique(kind, [ref.name for ref in refs])


def _machine(dtype: str, device: str) -> None:
    if dtype not in DTYPES:
        raise UserError("E-OPTION", f"--dtype {dtype!r} is not known", f"choose from {', '.join(DTYPES)}")
    if not re.fullmatch(r"auto|map|cpu|mps|cuda(:\d+)?", device):
        raise UserError("E-OPTION", f"--device {device!r} is not known", "give auto, cpu, mps, cuda, cuda:N or map")


def _whole(option: str, value: int | None, least: int) -> None:
    if value is not None and (not isinstance(value, int) or not least <= value <= MOST):
        raise UserError("E-OPTION", f"{option} {value!r} makes no sense", f"give a whole number from {least} to {MOST}")


def _positive(option: str, value: str | float) -> None:
    if not isinstance(value, str) and not (math.isfinite(value) and value > 0):
        raise UserError("E-OPTION", f"{option} {value} makes no sense", "give a number above 0")


def _named(text: str) -> tuple[str | None, str]:
    """Split NAME=SOURCE; an equals sign in a path (with a slash before it, or of a file that exists) is part of the path."""
    name, joined, source = text.partition("=")
    if not joined or "/" in name or Path(text).exists():
        return None, text or _no_source(text)
    if not NAME.fullmatch(name):
        raise UserError("E-SPEC", f"{name!r} is no NAME", "use letters, digits, dots, dashes and underscores")
    return name, source or _no_source(text)


def _no_source(text: str) -> NoReturn:
    raise UserError("E-SPEC", f"{text!r} names no source", "give NAME=SOURCE or SOURCE")


def _last_part(source: str) -> str:
    path = PurePath(source if source[:1] in "./~" else source.partition("@")[0])
    name = re.sub(r"[^\w.\-]", "-", path.name).lstrip(".-_")
    if not name:
        raise UserError("E-SPEC", f"no name can be made of {source!r}", "give one as NAME=SOURCE")
    return name


def _unique(kind: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError("E-SPEC", f"{kind}: the name {name!r} stands twice", "give each its own as NAME=SOURCE")


def named_sources(sources: str | Iterable[str] | Mapping[str, str] | None) -> list[str]:
    """`[NAME=]SOURCE` strings of what Python callers give: one source, several, or a mapping of NAME to source."""
    if sources is None:
        return []
    if isinstance(sources, str | PathLike):
        return [str(sources)]
    if isinstance(sources, Mapping):
        for name in sources:
            if not re.fullmatch(rf"{NAME.pattern}(@{NAME.pattern})?", name):
                raise UserError("E-SPEC", f"{name!r} is no NAME", "use letters, digits, dots, dashes and underscores")
        return [f"{name}={source}" for name, source in sources.items()]
    return [str(source) for source in sources]


def several(names: str | Iterable[str] | None) -> list[str]:
    """What Python callers give as one name, several, or none."""
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def in_formats(models: Iterable[ModelRef], dtypes: Iterable[str]) -> tuple[tuple[ModelRef, ...], str]:
    """Models, each with its number format, and the run's: of `[NAME=]DTYPE`, one without NAME is for all others.

    Raises: UserError E-OPTION for a NAME that no model has, or that stands twice.
    """
    refs, given = tuple(models), dict[str, str]()
    for text in dtypes:
        name, _, dtype = text.rpartition("=")
        if name in given:
            raise UserError("E-OPTION", f"--dtype {text!r} is the second for {name or 'all models'}", "give one for each")
        if name and name not in {ref.name for ref in refs}:
            known = ", ".join(ref.name for ref in refs)
            raise UserError("E-OPTION", f"--dtype {text!r} is for a model that is not there", f"name one of {known}")
        given[name] = dtype
    default = given.pop("", EvaluateSpec.dtype)
    return tuple(replace(ref, dtype=given.get(ref.name, default)) for ref in refs), default


def byte_count(option: str, text: str | int) -> int:
    """`2GB`, `500MB` or a number of bytes. Raises UserError E-OPTION for anything else."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kMGT]?)B?", str(text).strip(), re.IGNORECASE)
    if not match:
        raise UserError("E-OPTION", f"{option} {text!r} is no size", "give bytes, or a size such as 2GB")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))
