"""`evaluate`: models, SAEs and data -> the transfer matrix in a run directory. Reads like a method section, top to bottom."""

import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from json import dumps
from pathlib import Path

from pydantic import TypeAdapter

from sae_transfer.errors import ELSEWHERE, UserError
from sae_transfer.report.run import Run
from sae_transfer.runs import directory
from sae_transfer.runs.manifest import DataTokens, Manifest, Session, Source, now
from sae_transfer.runs.provenance import hardware, versions
from sae_transfer.specs import (
    TOKEN_KINDS,
    DataRef,
    EvaluateSpec,
    ModelRef,
    SaeRef,
    byte_count,
    choice_or_number,
    in_formats,
    named_sources,
)
from sae_transfer.workflows import breaking
from sae_transfer.workflows.calibrate import calibrate
from sae_transfer.workflows.compare import beside
from sae_transfer.workflows.prepare import resolved, with_data
from sae_transfer.workflows.progress import Progress, Silent
from sae_transfer.workflows.shelf import Shelf, device
from sae_transfer.workflows.tokenise import tokenised

Sources = str | Iterable[str] | Mapping[str, str]


def evaluate(
    models: Sources,
    saes: Sources,
    *,
    text: Sources | None = None,
    chats: Sources | None = None,
    rows: Sources | None = None,
    out: str | Path | None = None,
    chat_template: str = EvaluateSpec.chat_template,
    token_kinds: str | Sequence[str] = TOKEN_KINDS,
    norm_scaling_factor: str | float = EvaluateSpec.norm_scaling_factor,
    outlier_threshold: str | float = EvaluateSpec.outlier_threshold,
    context_size: int | None = EvaluateSpec.context_size,
    batch_size: int = EvaluateSpec.batch_size,
    max_documents: int | None = EvaluateSpec.max_documents,
    bos: bool | None = EvaluateSpec.bos,
    dtype: Sources | None = None,
    published: bool = EvaluateSpec.published,
    device: str = EvaluateSpec.device,
    activation_cache: str | int = "2GB",
    allow_pickle: bool = EvaluateSpec.allow_pickle,
    progress: Progress | None = None,
) -> Run:
    """Evaluate every SAE on every model and data set, and give the run: `run.table()` is the transfer matrix.

    Arguments are those of `sae-transfer evaluate`; sources are a string, several, or a mapping of NAME to source, and so is
    `dtype`: `"bfloat16"`, or `{"base": "float32", "small": "8bit"}`. The same call with the same `out` resumes a run that
    was cut off. Without any data, it is the text that the SAEs record that they were trained on, streamed from the Hub.
    Raises: UserError for anything that the caller can mend.
    """
    data: tuple[tuple[str, Sources | None], ...] = (("text", text), ("chats", chats), ("rows", rows))
    factor = choice_or_number("--norm-scaling-factor", norm_scaling_factor, ("auto", "saelens", "own"))
    threshold = choice_or_number("--outlier-threshold", outlier_threshold, ("auto", "off"))
    kinds = token_kinds.split(",") if isinstance(token_kinds, str) else token_kinds
    refs, default = in_formats((ModelRef.parse(source) for source in named_sources(models)), named_sources(dtype))
    spec = EvaluateSpec(
        models=refs,
        saes=tuple(SaeRef.parse(source) for source in named_sources(saes)),
        data=tuple(DataRef.parse(kind, source) for kind, sources in data for source in named_sources(sources)),  # type: ignore[arg-type]
        chat_template=chat_template,
        token_kinds=tuple(kind.strip() for kind in kinds),
        norm_scaling_factor=factor,  # type: ignore[arg-type]
        outlier_threshold=threshold,  # type: ignore[arg-type]
        context_size=context_size,
        batch_size=batch_size,
        max_documents=max_documents,
        bos=bos,
        dtype=default,
        published=published,
        device=device,
        activation_cache=byte_count("--activation-cache", activation_cache),
        allow_pickle=allow_pickle,
    )
    return run(spec, None if out is None else Path(out), progress or Silent())


def run(spec: EvaluateSpec, out: Path | None, progress: Progress, else_text: str | None = None) -> Run:
    """Carry out a spec in the directory `out`, or go on with what was begun there.

    `else_text`: a data set on the Hub for a spec without data whose SAEs record none.
    """
    command = [word.encode(errors="backslashreplace").decode() for word in sys.argv]  # a path may be no UTF-8
    session, laps = Session(command=command, started=now(), versions=versions()), _Laps()
    spec = with_data(spec, else_text)
    found = resolved(spec)
    sources = found.sources()
    with directory.claimed(out or _default_folder(spec, sources)) as folder:
        before = directory.read_manifest(folder) if (folder / directory.RUN_FILE).exists() else None
        if before is not None:
            _refuse_other_run(before, spec, sources, folder)
            before = directory.intact(folder, before)
            if before.status == "done":
                return Run(folder)

        from sae_transfer import saes
        from sae_transfer.engine.cache import ActivationCache
        from sae_transfer.engine.calibrate import residuals
        from sae_transfer.engine.measure import measure
        from sae_transfer.engine.plan import plan
        from sae_transfer.models.split import CHECK_SEED

        session = session.model_copy(update={"hardware": hardware(device(spec))})
        progress.stage("reading data", 0)
        prepared = tokenised(spec, found, before.sessions[0].started if before else session.started)
        if before is not None:
            _refuse_other_tokens(before, prepared.about, folder)
        loaded = [saes.load(sae, device(spec)) for sae in found.saes]
        models = Shelf(found, spec, sorted({sae.facts.hook_point.boundary for sae in loaded}), progress)
        laps.end("prepare")
        with tempfile.TemporaryFile(dir=folder, buffering=0) as spill:
            cache = ActivationCache(spill, spec.activation_cache)
            if before:
                calibration, outliers = before.calibration, before.outliers
            else:
                calibration, outlying = calibrate(spec, found, prepared, models, cache, progress)
                outliers = directory.write_outliers(folder, breaking.named(outlying, prepared), calibration.hash)
            laps.end("calibrate")
            drift = before.drift if before else beside(spec, found, prepared, models, cache, calibration, progress)
            laps.end("drift")
            manifest = directory.write_manifest(
                folder,
                Manifest(
                    spec=spec,
                    sources=sources,
                    data=prepared.about,
                    seeds={"self_check": CHECK_SEED},
                    calibration=calibration,
                    calibration_hash=calibration.hash,
                    outliers=outliers,
                    skipped=prepared.skipped,
                    drift=drift,
                    sessions=(*(before.sessions if before else ()), session),
                    parts=before.parts if before else (),
                ),
            )
            units = plan(prepared.pairs(found), prepared.lengths, spec.batch_size, manifest.done)
            apart = Run(folder).outlying()
            advance = progress.stage("measuring", sum(unit.tokens for unit in units))
            for unit in units:
                model, kinds = models.get(unit.model), prepared.about[unit.data].token_kinds
                read = residuals(unit.model, models, cache)
                data, texts = prepared.data[unit.data], prepared.texts[unit.data]
                watchers = breaking.watch(unit, model, data, calibration, apart)
                blocks = list(measure(unit, model, loaded, data, kinds, calibration, read, advance, watchers))
                seen = {watcher.table: breaking.blocks(watcher, texts) for watcher in watchers}
                manifest = directory.append(folder, manifest, unit.key, blocks, seen)
        laps.end("measure")
        ended = session.model_copy(update={"finished": now(), "seconds": laps.seconds})
        done = {"status": "done", "sessions": (*manifest.sessions[:-1], ended)}
        directory.write_manifest(folder, manifest.model_copy(update=done))
        return Run(folder)


class _Laps:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def end(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now


def _refuse_other_run(before: Manifest, spec: EvaluateSpec, sources: Mapping[str, Source], folder: Path) -> None:
    """Refuse to go on with a run of another spec, or whose files have changed since."""
    if before.spec != spec:
        raise UserError("E-RUN", f"{folder} holds a run of another command", f"repeat that command or {ELSEWHERE}")
    for name, source in sources.items():
        then = before.sources.get(name)
        if then is None or (source.files, source.revision) != (then.files, then.revision):
            raise UserError("E-RUN", f"{name} has changed since the run in {folder} began", ELSEWHERE)


def _refuse_other_tokens(before: Manifest, about: Mapping[str, DataTokens], folder: Path) -> None:
    """Refuse to add to rows of other tokens: the files are those of the run's beginning, what reads them may not be."""
    for name, data in about.items():
        if before.data[name].sha256 not in (None, data.sha256):
            what = f"{name} gives other tokens than when the run in {folder} began, by other versions of the libraries"
            raise UserError("E-RUN", what, f"go on with those that run.json names, or {ELSEWHERE}")


def _default_folder(spec: EvaluateSpec, sources: Mapping[str, Source]) -> Path:
    """A folder under runs/ that the same command finds again."""
    asked = TypeAdapter(EvaluateSpec).dump_json(spec, exclude={"device", "activation_cache", "allow_pickle"})
    hashes = dumps({name: [source.files, source.revision] for name, source in sources.items()}, sort_keys=True)
    return Path("runs") / f"evaluate-{sha256(asked + hashes.encode()).hexdigest()[:8]}"
