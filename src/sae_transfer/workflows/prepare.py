"""Names -> resolved sources, checked against each other by config alone: no tensor library, no weight is read."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

from sae_transfer.errors import UserError
from sae_transfer.runs.manifest import Source
from sae_transfer.sources import configs, resolve
from sae_transfer.sources.resolve import Located, ResolvedData, ResolvedModel, ResolvedSae
from sae_transfer.specs import QUANTISED, DataRef, DriftSpec, EvaluateSpec, HubData, ReadingSpec

DOCUMENTS = 1_000
"""Of the text that the SAEs record, where nobody says how much of it."""
CONTEXT_SIZE = 128
"""Tokens of a packed row where no SAE says: what many SAEs are trained at."""


@dataclass(frozen=True)
class Resolved:
    """Every source of a run, found and checked by name and config alone."""

    models: tuple[ResolvedModel, ...]
    saes: tuple[ResolvedSae, ...]
    data: tuple[ResolvedData, ...]
    template: Located | None = None
    """The chat template, where it is a file."""

    def sources(self) -> dict[str, Source]:
        """What run.json keeps of them."""
        found = {f"model:{m.ref.name}": _source(m.base, m.facts) for m in self.models}
        found |= {f"adapter:{m.ref.name}": _source(m.adapter) for m in self.models if m.adapter is not None}
        found |= {f"sae:{s.ref.name}": _source(s.at, s.facts) for s in self.saes}
        found |= {} if self.template is None else {"chat_template": _source(self.template)}
        return found | {f"data:{d.ref.name}": _source(d.at) for d in self.data}


def resolved(spec: EvaluateSpec) -> Resolved:
    """Find every source and compare configs: width, depth, BOS, context size. No tensor library is imported.

    Raises: UserError.
    """
    check_formats({spec.dtype_of(ref) for ref in spec.models})
    data = _data(spec)  # before the SAEs, which may take long to download
    saes = tuple(resolve.sae(ref, spec.allow_pickle) for ref in spec.saes)
    models = tuple(resolve.model(ref) for ref in spec.models)
    for sae in saes:
        for model in models:
            configs.check_fits(sae.ref.name, sae.facts, model.ref.name, model.facts)
    if spec.norm_scaling_factor == "own":
        _own_models(spec, saes)
    return _found(spec, models, saes, data)


def resolved_models(spec: DriftSpec) -> Resolved:
    """The same without SAEs: models must be of one width, and have the layers that are asked for. Raises: UserError."""
    check_formats({spec.dtype_of(ref) for ref in spec.models})
    data = _data(spec)
    models = tuple(resolve.model(ref) for ref in spec.models)
    for model in models:
        configs.check_alike(models[0].ref.name, models[0].facts, model.ref.name, model.facts)
        for layer in spec.layers:
            configs.check_layer(layer, model.ref.name, model.facts)
    return _found(spec, models, (), data)


def _data(spec: ReadingSpec) -> tuple[ResolvedData, ...]:
    data = tuple(resolve.data(ref) for ref in spec.data)
    for entry in data:
        if entry.hub and not entry.hub.shuffled and spec.max_documents is None and spec.max_rows is None:
            what = f"--{entry.ref.kind} {entry.ref.source} is streamed from the Hub, where it may have no end"
            raise UserError("E-SPEC", what, "give --max-documents N")
    return data


def _found(
    spec: ReadingSpec, models: tuple[ResolvedModel, ...], saes: tuple[ResolvedSae, ...], data: tuple[ResolvedData, ...]
) -> Resolved:
    """What was found, where the packing of text is clear and the chat template is there."""
    if any(ref.kind == "text" for ref in spec.data):
        prepend_bos(spec, saes)
        context_size(spec, saes, models)
    template = resolve.template(spec.chat_template) if any(ref.kind == "chats" for ref in spec.data) else None
    return Resolved(models, saes, data, template)


def with_data(spec: EvaluateSpec, else_text: str | None = None) -> EvaluateSpec:
    """A spec as it is where it names data; else with the text that its SAEs record, or `else_text`, a data set on the Hub.

    Raises: UserError.
    """
    if spec.data:
        return spec
    check_formats({spec.dtype_of(ref) for ref in spec.models})
    named = with_own_text(spec, tuple(resolve.sae(ref, spec.allow_pickle) for ref in spec.saes), else_text)
    try:
        _data(named)
    except UserError as error:
        raise UserError(error.code, f"no data given, and {error.what}", f"give --text, or {error.then}") from None
    return named


def with_own_text(spec: EvaluateSpec, saes: tuple[ResolvedSae, ...], else_text: str | None = None) -> EvaluateSpec:
    """A spec without data, with the text that its SAEs record that they were trained on; `else_text` where none does.

    The name comes out of a config, so it is a data set on the Hub or nothing: never a path of this machine.

    Raises: UserError E-SPEC.
    """
    recorded = {sae.facts.dataset: sae.ref.name for sae in saes if sae.facts.dataset is not None}
    if len(recorded) > 1:
        said = ", ".join(f"{sae} on {name!r:.200}" for name, sae in recorded.items())
        raise UserError("E-SPEC", f"no data given, and the SAEs were trained on different text ({said})", "give --text")
    source = next(iter(recorded), else_text)
    if source is None:
        what = "nothing given for --text, --chats or --rows, and no SAE records what it was trained on"
        raise UserError("E-SPEC", what, "give at least one")
    text = DataRef("text", "text", source)
    hub = HubData.parse(text)
    if hub is None or hub.repo != source or ".." in source:
        what = f"no data given, and the text by default, {source!r:.200}, is no ORG/NAME of the Hub, or is a path here"
        raise UserError("E-SPEC", what, "give --text")
    return replace(spec, data=(text,), max_documents=spec.max_documents or (DOCUMENTS if spec.max_rows is None else None))


def check_formats(dtypes: Collection[str]) -> None:
    """Whether this installation can make the number formats. Raises UserError E-OPTION."""
    for dtype in sorted(set(dtypes) & set(QUANTISED)):
        if find_spec("bitsandbytes") is None:
            what = f"--dtype {dtype} needs bitsandbytes, which is not installed"
            raise UserError("E-OPTION", what, "pip install 'sae-transfer[bitsandbytes]'")


def _source(at: Located, facts: Any = None) -> Source:
    about = {} if facts is None else {key: str(value) for key, value in asdict(facts).items() if key != "hook_point"}
    if hasattr(facts, "hook_point"):
        about["hook_point"] = str(facts.hook_point)
    return Source(path=str(at.path), revision=at.revision, files=at.files, about=about)


def _own_models(spec: EvaluateSpec, saes: tuple[ResolvedSae, ...]) -> None:
    """An SAE that asks for scaling must have an own model to take it from. Raises UserError E-SPEC."""
    for sae in saes:
        if sae.facts.wants_scaling and spec.own_model(sae.ref) is None:
            names = ", ".join(model.name for model in spec.models)
            what = f"--norm-scaling-factor own: SAE {sae.ref.name} has no own model among {names}"
            raise UserError("E-SPEC", what, f"name it as --sae {sae.ref.name}@MODEL=SOURCE")


def prepend_bos(spec: ReadingSpec, saes: tuple[ResolvedSae, ...]) -> bool:
    """Whether text is packed with BOS: `--bos`, else what the SAEs agree on, without SAEs yes. Raises UserError E-SPEC."""
    if spec.bos is not None:
        return spec.bos
    wanted = {sae.ref.name: sae.facts.prepend_bos for sae in saes}
    if len(set(wanted.values())) > 1:
        raise UserError(
            "E-SPEC", f"SAEs disagree on prepend_bos ({wanted}), and one run has one packing", "give --bos or --no-bos"
        )
    return next(iter(wanted.values()), True)


def context_size(spec: ReadingSpec, saes: tuple[ResolvedSae, ...], models: tuple[ResolvedModel, ...]) -> int:
    """Tokens of a packed row: `--context-size`, else the SAEs' smallest, without SAEs CONTEXT_SIZE. Raises UserError E-SPEC."""
    if not saes and spec.context_size is None:
        return min(CONTEXT_SIZE, longest(models) or CONTEXT_SIZE)
    sizes = [sae.facts.context_size for sae in saes if sae.facts.context_size is not None]
    size = spec.context_size or min(sizes, default=None)
    if size is None:
        raise UserError("E-SPEC", "no SAE records the context size it was trained at", "give --context-size")
    if size < 2:
        raise UserError("E-SPEC", f"an SAE records context size {size}, and a row needs two tokens", "give --context-size")
    limit = longest(models)
    if limit is not None and size > limit:
        raise UserError("E-SPEC", f"context size {size} is more than the models take", f"give --context-size {limit}")
    return size


def longest(models: tuple[ResolvedModel, ...]) -> int | None:
    """Positions that every model takes, where their configs say."""
    return min((m.facts.max_positions for m in models if m.facts.max_positions is not None), default=None)
