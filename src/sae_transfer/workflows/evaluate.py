"""`evaluate`: models, SAEs and data -> the transfer matrix in a run directory. Reads like a method section, top to bottom."""

import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from pydantic import TypeAdapter

from sae_transfer.errors import UserError
from sae_transfer.report.run import Run
from sae_transfer.rows import Calibration, Mean, Norms, Scale
from sae_transfer.runs import directory
from sae_transfer.runs.manifest import Manifest, Session, Source, now
from sae_transfer.runs.provenance import hardware, versions
from sae_transfer.specs import (
    TOKEN_KINDS,
    DataRef,
    EvaluateSpec,
    HookPoint,
    ModelRef,
    SaeRef,
    byte_count,
    choice_or_number,
    named_sources,
)
from sae_transfer.workflows.prepare import Prepared, Resolved, resolved, tokenised
from sae_transfer.workflows.progress import Progress, Silent

if TYPE_CHECKING:
    from sae_transfer.engine.cache import ActivationCache
    from sae_transfer.models.split import SplitModel
    from sae_transfer.saes import LoadedSae

Sources = str | Iterable[str] | Mapping[str, str]


def evaluate(
    models: Sources,
    saes: Sources,
    *,
    text: Sources | None = None,
    chats: Sources | None = None,
    rows: Sources | None = None,
    out: str | Path | None = None,
    chat_template: str = "tokenizer",
    token_kinds: Sequence[str] = TOKEN_KINDS,
    norm_scaling_factor: str | float = "auto",
    outlier_threshold: str | float = "auto",
    context_size: int | None = None,
    batch_size: int = 8,
    max_documents: int | None = None,
    bos: bool | None = None,
    dtype: str = "float32",
    device: str = "auto",
    activation_cache: str | int = "2GB",
    progress: Progress | None = None,
) -> Run:
    """Evaluate every SAE on every model and data set, and give the run: `run.table()` is the transfer matrix.

    Arguments are those of `sae-transfer evaluate`; sources are a string, several, or a mapping of NAME to source. The same
    call with the same `out` resumes a run that was cut off. Raises: UserError for anything that the caller can mend.
    """
    data: tuple[tuple[str, Sources | None], ...] = (("text", text), ("chats", chats), ("rows", rows))
    factor = choice_or_number("--norm-scaling-factor", norm_scaling_factor, ("auto", "saelens", "own"))
    threshold = choice_or_number("--outlier-threshold", outlier_threshold, ("auto", "off"))
    spec = EvaluateSpec(
        models=tuple(ModelRef.parse(source) for source in named_sources(models)),
        saes=tuple(SaeRef.parse(source) for source in named_sources(saes)),
        data=tuple(DataRef.parse(kind, source) for kind, sources in data for source in named_sources(sources)),  # type: ignore[arg-type]
        chat_template=chat_template,
        token_kinds=tuple(token_kinds),
        norm_scaling_factor=factor,  # type: ignore[arg-type]
        outlier_threshold=threshold,  # type: ignore[arg-type]
        context_size=context_size,
        batch_size=batch_size,
        max_documents=max_documents,
        bos=bos,
        dtype=dtype,
        device=device,
        activation_cache=byte_count("--activation-cache", activation_cache),
    )
    return run(spec, None if out is None else Path(out), progress or Silent())


def run(spec: EvaluateSpec, out: Path | None, progress: Progress) -> Run:
    """Carry out a spec in the directory `out`, or go on with what was begun there."""
    started, clock = now(), time.monotonic()
    found = resolved(spec)
    sources = found.sources()
    with directory.claimed(out or _default_folder(spec, sources)) as folder:
        before = directory.read_manifest(folder) if (folder / directory.RUN_FILE).exists() else None
        if before is not None:
            _same(before, spec, sources, folder)
            if before.status == "done":
                return Run(folder)
        seconds = {"resolve": time.monotonic() - clock}
        prepared = tokenised(spec, found)
        session = Session(command=sys.argv, started=started, versions=versions(), hardware=hardware(_device(spec)))
        with tempfile.TemporaryFile(dir=folder) as spill:
            _measure(spec, found, prepared, folder, before, session, seconds, cast(BinaryIO, spill), progress)
        return Run(folder)


def _measure(
    spec: EvaluateSpec,
    found: Resolved,
    prepared: Prepared,
    folder: Path,
    before: Manifest | None,
    session: Session,
    seconds: dict[str, float],
    spill: BinaryIO,
    progress: Progress,
) -> None:
    """Calibrate, write run.json, and append the units that are not done yet, part by part."""
    import torch

    from sae_transfer import saes
    from sae_transfer.engine.cache import ActivationCache
    from sae_transfer.engine.calibrate import residuals
    from sae_transfer.engine.measure import measure
    from sae_transfer.engine.plan import plan
    from sae_transfer.models.split import CHECK_SEED

    clock = time.monotonic()
    loaded = [saes.load(sae, _device(spec)) for sae in found.saes]
    boundaries = sorted({sae.facts.hook_point.boundary for sae in loaded})
    models = _Shelf(found, spec, boundaries)
    cache = ActivationCache(spill, spec.activation_cache)
    seconds["load"] = time.monotonic() - clock
    clock = time.monotonic()
    calibration = _calibrate(spec, found, prepared, models, loaded, cache, progress) if before is None else before.calibration
    seconds["calibrate"] = time.monotonic() - clock
    clock = time.monotonic()
    manifest = directory.write_manifest(
        folder,
        Manifest(
            spec=spec,
            sources=found.sources(),
            tokenisation=prepared.tokenisation,
            data=prepared.about,
            seeds={"self_check": CHECK_SEED},
            calibration=calibration,
            calibration_hash=calibration.hash,
            skipped=prepared.skipped,
            sessions=(*(before.sessions if before else ()), session),
            parts=before.parts if before else (),
        ),
    )
    pairs = [(model.ref.name, data.name) for model in found.models for data in prepared.of(model.ref.name)]
    lengths = {name: data.lengths for name, data in prepared.data.items()}
    units = plan(pairs, lengths, spec.batch_size, manifest.done)
    advance = progress.stage("measuring", sum(unit.tokens for unit in units))
    for unit in units:
        model = models.get(unit.model)
        at = residuals(model, boundaries, cache)
        kinds = prepared.about[unit.data].token_kinds
        blocks = measure(unit, model, loaded, prepared.data[unit.data], kinds, calibration, at, advance)
        manifest = directory.append(folder, manifest, unit.key, list(blocks))
    if torch.cuda.is_available():
        seconds["peak_cuda_gb"] = torch.cuda.max_memory_allocated() / 1e9
    seconds["measure"] = time.monotonic() - clock
    ended = session.model_copy(update={"finished": now(), "seconds": {k: round(v, 3) for k, v in seconds.items()}})
    done = {"status": "done", "sessions": (*manifest.sessions[:-1], ended)}
    directory.write_manifest(folder, manifest.model_copy(update=done))


def _calibrate(
    spec: EvaluateSpec,
    found: Resolved,
    prepared: Prepared,
    models: "_Shelf",
    saes: Sequence["LoadedSae"],
    cache: "ActivationCache",
    progress: Progress,
) -> Calibration:
    """Norms of every model at every hook point, from them the scales, and with those the means of kept activations."""
    import torch

    from sae_transfer.engine import calibrate

    hook_points = sorted({sae.facts.hook_point for sae in saes})
    names = [model.ref.name for model in found.models if prepared.of(model.ref.name)]
    tokens = {name: sum(sum(data.lengths) for data in prepared.of(name)) for name in names}
    advance = progress.stage("calibrating", 2 * sum(tokens.values()))
    norms: dict[tuple[str, HookPoint], Norms] = {}
    with torch.inference_mode():
        for name in names:
            model, data = models.get(name), prepared.of(name)
            at = calibrate.residuals(model, models.boundaries, cache)
            by = _scaled_by(found, [source.name for source in data])
            samples = calibrate.sample_norms(model, models.boundaries, data, by, spec.batch_size, at, advance)
            for hook_point in hook_points:
                norms[name, hook_point] = calibrate.describe(name, hook_point, samples[hook_point.boundary])
        scales = []
        for name in names:
            for sae in found.saes:
                own = norms.get((spec.own_model(sae.ref) or "", sae.facts.hook_point))
                if own is None and spec.norm_scaling_factor == "own":
                    raise UserError("E-TOKEN", f"the own model of SAE {sae.ref.name} can't read the data", "give other data")
                asked = sae.facts.wants_scaling
                at_hook = norms[name, sae.facts.hook_point]
                options = (spec.norm_scaling_factor, spec.outlier_threshold)
                scales.append(calibrate.scale(at_hook, own, sae.ref.name, asked, *options))
        means: list[Mean] = []
        for name in names:
            at = calibrate.residuals(models.get(name), models.boundaries, cache)
            thresholds = _thresholds(name, hook_points, scales)
            means += calibrate.means(name, prepared.of(name), spec.batch_size, at, thresholds, advance)
    return Calibration(tuple(norms.values()), tuple(scales), tuple(means))


def _thresholds(model: str, hook_points: Sequence[HookPoint], scales: Sequence[Scale]) -> dict[HookPoint, list[float | None]]:
    """The different outlier thresholds (unscaled) of a model at each hook point."""
    found: dict[HookPoint, list[float | None]] = {}
    for hook_point in hook_points:
        own = [scale for scale in scales if (scale.model, scale.hook_point) == (model, str(hook_point))]
        found[hook_point] = list(dict.fromkeys(scale.unscaled_threshold for scale in own))
    return found


def _scaled_by(found: Resolved, readable: Sequence[str]) -> str:
    """The data set that sets the norm scaling factor: the first text, else rows, else chats."""
    for kind in ("text", "rows", "chats"):
        for data in found.data:
            if data.ref.kind == kind and data.ref.name in readable:
                return data.ref.name
    raise AssertionError("a model without data is not calibrated")


class _Shelf:
    """Models by name, loaded when asked for. One at a time stays in memory."""

    def __init__(self, found: Resolved, spec: EvaluateSpec, boundaries: list[int]) -> None:
        self.boundaries = boundaries
        self._found = {model.ref.name: model for model in found.models}
        self._spec = spec
        self._held: SplitModel | None = None

    def get(self, name: str) -> "SplitModel":
        from sae_transfer.models import loading

        if self._held is None or self._held.name != name:
            self._held = None
            self._held = loading.load(self._found[name], self._spec.dtype, _device(self._spec), set(self.boundaries))
        return self._held


def _device(spec: EvaluateSpec) -> str:
    """The device that `--device` means. Raises UserError E-OPTION where this machine has none such."""
    import torch

    if spec.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if spec.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("E-OPTION", f"--device {spec.device}: torch sees no CUDA device", "give --device cpu")
    return spec.device


def _same(before: Manifest, spec: EvaluateSpec, sources: Mapping[str, Source], folder: Path) -> None:
    """Refuse to go on with a run of another spec, or whose files have changed since."""
    if before.spec != spec:
        raise UserError("E-RUN", f"{folder} holds a run of another command", "repeat that command or give another -o")
    for name, source in sources.items():
        then = before.sources[name]
        if (source.files, source.revision) != (then.files, then.revision):
            raise UserError("E-RUN", f"{name} has changed since the run in {folder} began", "give another -o")


def _default_folder(spec: EvaluateSpec, sources: Mapping[str, Source]) -> Path:
    """A folder under runs/ that the same command finds again."""
    asked = TypeAdapter(EvaluateSpec).dump_json(spec, exclude={"device", "activation_cache"})
    hashes = dumps({name: [source.files, source.revision] for name, source in sources.items()}, sort_keys=True)
    return Path("runs") / f"evaluate-{sha256(asked + hashes.encode()).hexdigest()[:8]}"
