"""`drift`: models and data, no SAE -> how far each model's residual stream lies from the first one's, layer by layer."""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sae_transfer.errors import UserError
from sae_transfer.report.drift import Drifts
from sae_transfer.rows import Norms
from sae_transfer.runs import drift as folders
from sae_transfer.runs.drift import DriftManifest
from sae_transfer.runs.manifest import Session, now
from sae_transfer.runs.provenance import hardware, versions
from sae_transfer.specs import (
    TOKEN_KINDS,
    DataRef,
    DriftSpec,
    HookPoint,
    ModelRef,
    byte_count,
    in_formats,
    named_sources,
)
from sae_transfer.workflows.compare import accumulates, compared
from sae_transfer.workflows.evaluate import Sources
from sae_transfer.workflows.prepare import Resolved, resolved_models
from sae_transfer.workflows.progress import Progress, Silent
from sae_transfer.workflows.shelf import Shelf, device
from sae_transfer.workflows.tokenise import Prepared, tokenised

if TYPE_CHECKING:
    from sae_transfer.engine.cache import ActivationCache


def drift(
    models: Sources,
    *,
    text: Sources | None = None,
    chats: Sources | None = None,
    rows: Sources | None = None,
    layers: int | Sequence[int] | None = None,
    out: str | Path | None = None,
    chat_template: str = DriftSpec.chat_template,
    token_kinds: str | Sequence[str] = TOKEN_KINDS,
    context_size: int | None = DriftSpec.context_size,
    batch_size: int = DriftSpec.batch_size,
    max_documents: int | None = DriftSpec.max_documents,
    bos: bool | None = DriftSpec.bos,
    dtype: Sources | None = None,
    device: str = DriftSpec.device,
    activation_cache: str | int = "2GB",
    progress: Progress | None = None,
) -> Drifts:
    """How far every further model moved from the first, on the same tokens: `.table()`, `.records()`, `.forecasts()`.

    Arguments are those of `sae-transfer drift`. With `out` a folder keeps the result, and the same call reads it back.
    Raises: UserError for anything that the caller can mend.
    """
    data: tuple[tuple[str, Sources | None], ...] = (("text", text), ("chats", chats), ("rows", rows))
    kinds = token_kinds.split(",") if isinstance(token_kinds, str) else token_kinds
    refs, default = in_formats((ModelRef.parse(source) for source in named_sources(models)), named_sources(dtype))
    spec = DriftSpec(
        models=refs,
        data=tuple(DataRef.parse(kind, source) for kind, sources in data for source in named_sources(sources)),  # type: ignore[arg-type]
        layers=(layers,) if isinstance(layers, int) else tuple(layers or ()),
        chat_template=chat_template,
        token_kinds=tuple(kind.strip() for kind in kinds),
        context_size=context_size,
        batch_size=batch_size,
        max_documents=max_documents,
        bos=bos,
        dtype=default,
        device=device,
        activation_cache=byte_count("--activation-cache", activation_cache),
    )
    return run(spec, None if out is None else Path(out), progress or Silent())


def run(spec: DriftSpec, out: Path | None, progress: Progress) -> Drifts:
    """Carry out a spec; read it back where the folder `out` has it already."""
    found = resolved_models(spec)
    with _folder(out) as folder:
        before = None if folder is None else folders.read(folder)
        if before is not None:
            if before.spec != spec:
                raise UserError("E-RUN", f"{folder} holds the drift of another command", "give another -o")
            if before.sources != found.sources():
                raise UserError("E-RUN", f"the models or data in {folder} have changed since", "give another -o")
            return Drifts(before, folder)
        manifest = _measured(spec, found, folder, progress)
        if folder is not None:
            folders.write(folder, manifest)
        return Drifts(manifest, folder)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path | None]:
    """The folder, if there is to be one."""
    if out is None:
        yield None
    else:
        with folders.claimed(out) as folder:
            yield folder


def _measured(spec: DriftSpec, found: Resolved, folder: Path | None, progress: Progress) -> DriftManifest:
    import torch

    from sae_transfer.engine.cache import ActivationCache
    from sae_transfer.engine.drift import Setting, by_boundary
    from sae_transfer.models.split import CHECK_SEED

    command = [word.encode(errors="backslashreplace").decode() for word in sys.argv]  # a path may be no UTF-8
    session = Session(command=command, started=now(), versions=versions(), hardware=hardware(device(spec)))
    began = time.monotonic()
    progress.stage("reading data", 0)
    prepared = tokenised(spec, found)
    hook_points = _hook_points(spec, found)
    models = Shelf(found, spec, [max(hook_point.boundary for hook_point in hook_points)], progress)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as spill:
        cache = ActivationCache(spill, spec.activation_cache)
        norms, width = _norms(spec, found, prepared, models, cache, hook_points, progress)
        first, *others = [model.ref.name for model in found.models]
        records = compared(
            {(first, name): hook_points for name in others},
            prepared,
            {(entry.model, entry.hook_point): entry.auto_threshold for entry in norms},
            {name: by_boundary(name, models, cache) for name in (first, *others)},
            Setting(width, spec.batch_size, torch.device(accumulates(device(spec)))),
            progress,
        )
    ended = session.model_copy(update={"finished": now(), "seconds": {"drift": round(time.monotonic() - began, 3)}})
    return DriftManifest(
        spec=spec,
        sources=found.sources(),
        data=prepared.about,
        seeds={"self_check": CHECK_SEED},
        norms=norms,
        d_model=width,
        skipped=prepared.skipped,
        session=ended,
        drift=records,
    )


def _hook_points(spec: DriftSpec, found: Resolved) -> list[HookPoint]:
    """Before the layers that were asked for, else before every one that all models have; and behind their last."""
    depths = [model.facts.n_layers for model in found.models if model.facts.n_layers is not None]
    if not depths:
        raise UserError("E-SPEC", "no model's config says how many layers it has", "give --layer")
    depth = min(depths)
    layers = sorted(spec.layers) or range(depth + 1)
    return [HookPoint(at, "resid_pre") if at < depth else HookPoint(at - 1, "resid_post") for at in layers]


def _norms(
    spec: DriftSpec,
    found: Resolved,
    prepared: Prepared,
    models: Shelf,
    cache: "ActivationCache",
    hook_points: Sequence[HookPoint],
    progress: Progress,
) -> tuple[tuple[Norms, ...], int]:
    """Norms and `auto`'s outlier threshold of every model at every hook point, in one prefix pass each; and the width."""
    import torch

    from sae_transfer.engine import calibrate as engine
    from sae_transfer.engine.drift import by_boundary

    boundaries = [hook_point.boundary for hook_point in hook_points]
    readable = {model.ref.name: prepared.of(model.ref.name) for model in found.models}
    advance = progress.stage("norms", sum(sum(data.lengths) for every in readable.values() for data in every))
    norms: list[Norms] = []
    width = 0
    for name, data in readable.items():
        if data:
            read = by_boundary(name, models, cache)
            with torch.inference_mode():
                samples = engine.sample_norms(
                    name,
                    data,
                    data[0].name,
                    spec.batch_size,
                    lambda batch, tokens, read=read: read(batch, tokens, boundaries),  # type: ignore[misc]
                    hook_points,
                    advance,
                )
            for hook_point, sample in samples.items():
                norms.append(engine.describe(name, hook_point, sample))
                width = sample.d_model
    return tuple(norms), width
