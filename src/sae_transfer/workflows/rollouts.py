"""`rollouts`: a model and instructions -> its greedy answers, perhaps with an SAE in its stream, as a .jsonl for `--chats`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_transfer.errors import ELSEWHERE, UserError
from sae_transfer.rows import Scale
from sae_transfer.runs.manifest import now
from sae_transfer.runs.provenance import hardware, versions
from sae_transfer.sources import configs, resolve
from sae_transfer.sources.resolve import Located, ResolvedData, ResolvedModel, ResolvedSae
from sae_transfer.specs import DataRef, ModelRef, RolloutsSpec, SaeRef, choice_or_number
from sae_transfer.workflows.prepare import check_formats
from sae_transfer.workflows.progress import Progress, Silent
from sae_transfer.workflows.shelf import device as device_of
from sae_transfer.workflows.shelf import placement, refuse_shift

if TYPE_CHECKING:
    from sae_transfer.models.split import SplitModel
    from sae_transfer.saes import LoadedSae

PART = 64
"""Rollouts that are written at once, and at most lost by a kill; batches of similar length are made within a part."""


@dataclass(frozen=True)
class Rollouts:
    """A file of rollouts. `made`: those that this call generated, 0 where all were there. `left_out`: instructions that are
    too long for the model; `with_input`: records with an `input`, which are no instruction alone."""

    path: Path
    count: int
    made: int
    left_out: int
    with_input: int


def rollouts(
    model: str,
    instructions: str | Path,
    *,
    out: str | Path,
    chat_template: str = RolloutsSpec.chat_template,
    max_tokens: int = RolloutsSpec.max_tokens,
    batch_size: int = RolloutsSpec.batch_size,
    splice: str | None = None,
    norm_scaling_factor: str | float = RolloutsSpec.norm_scaling_factor,
    outlier_threshold: str | float = RolloutsSpec.outlier_threshold,
    max_documents: int | None = RolloutsSpec.max_documents,
    dtype: str = RolloutsSpec.dtype,
    device: str = RolloutsSpec.device,
    progress: Progress | None = None,
) -> Rollouts:
    """Let a model answer instructions greedily, and give the file of its answers, which `evaluate(chats=...)` takes.

    Arguments are those of `sae-transfer rollouts`. The same call goes on where it was cut off, and reads what is finished.
    Raises: UserError for anything that the caller can mend.
    """
    spec = RolloutsSpec(
        model=ModelRef.parse(str(model)),
        instructions=DataRef.parse("instructions", str(instructions)),
        out=Path(out),
        chat_template=chat_template,
        max_tokens=max_tokens,
        batch_size=batch_size,
        splice=None if splice is None else SaeRef.parse(str(splice)),
        norm_scaling_factor=choice_or_number("--norm-scaling-factor", norm_scaling_factor, ("auto", "saelens")),  # type: ignore[arg-type]
        outlier_threshold=choice_or_number("--outlier-threshold", outlier_threshold, ("auto", "off")),  # type: ignore[arg-type]
        max_documents=max_documents,
        dtype=dtype,
        device=device,
    )
    return run(spec, progress or Silent())


@dataclass(frozen=True)
class _Found:
    """Every source, checked by name and config alone."""

    model: ResolvedModel
    sae: ResolvedSae | None
    data: ResolvedData
    template: Located | None


def run(spec: RolloutsSpec, progress: Progress) -> Rollouts:
    """Carry out a spec, or go on with what was begun in its file."""
    found = _resolved(spec)

    from sae_transfer.data import rollouts as data

    identity = _identity(spec, found)
    with data.claimed(spec.out):
        noted = data.begun(spec.out, identity)
        if noted is not None and (there := _all_there(spec, found, noted)):
            return there
        progress.stage("reading data", 0)
        began = now() if noted is None else _began(noted, spec.out)
        prompts = _prompts(spec, found, began)
        asked = prompts.asked
        ends = [] if noted is None else data.finished(spec.out, asked)
        if len(ends) == len(asked):
            return Rollouts(spec.out, len(asked), 0, prompts.left_out, prompts.with_input)
        model, sae = _loaded(spec, found, progress)
        if noted is None:
            scale = None if sae is None else _scale(spec, model, sae, prompts.ids, progress)
            data.begin(spec.out, identity, _noted(spec, scale, began, _asked(spec, found), prompts))
        else:
            scale = None if sae is None else _noted_scale(noted, spec.out)
        generate = _generate(spec, model, sae, scale, prompts)
        part = spec.batch_size * max(1, PART // spec.batch_size)
        first = len(ends) // part * part  # the same parts as without the interruption: the same batches, the same text
        at = ends[first - 1] if first else 0
        advance = progress.stage("generating", (len(asked) - first) * spec.max_tokens)
        for start in range(first, len(asked), part):
            rows = range(start, min(start + part, len(asked)))
            texts: dict[int, str] = {}
            for batch in _batches(rows, [len(ids) for ids in prompts.ids], spec.batch_size):
                texts |= zip(batch, generate(batch), strict=True)
                advance(len(batch) * spec.max_tokens)
            at = data.append(spec.out, at, [(asked[row], texts[row]) for row in rows])
        return Rollouts(spec.out, len(asked), len(asked) - first, prompts.left_out, prompts.with_input)


def _resolved(spec: RolloutsSpec) -> _Found:
    check_formats({spec.dtype})
    data = resolve.data(spec.instructions)
    template = resolve.template(spec.chat_template)
    sae = None if spec.splice is None else resolve.sae(spec.splice)
    model = resolve.model(spec.model)
    if sae is not None:
        configs.check_fits(sae.ref.name, sae.facts, model.ref.name, model.facts)
    return _Found(model, sae, data, template)


def _identity(spec: RolloutsSpec, found: _Found) -> dict[str, Any]:
    """What decides the text of a rollout: sources by their hashes, and settings."""

    def hashes(at: Located | None) -> dict[str, Any] | None:
        return None if at is None else {"files": at.files, "revision": at.revision}

    return {
        "model": hashes(found.model.base),
        "adapter": hashes(found.model.adapter),
        "chat_template": spec.chat_template if found.template is None else hashes(found.template),
        "max_tokens": spec.max_tokens,
        "published": spec.published or None,
        "dtype": spec.dtype,
        "splice": hashes(None if found.sae is None else found.sae.at),
        "norm_scaling_factor": spec.norm_scaling_factor,
        "outlier_threshold": spec.outlier_threshold,
    }


def _asked(spec: RolloutsSpec, found: _Found) -> dict[str, Any]:
    """What decides which instructions are asked, beside the identity."""
    return {"files": found.data.at.files, "revision": found.data.at.revision, "max_documents": spec.max_documents}


def _noted(
    spec: RolloutsSpec, scale: Scale | None, began: datetime, asked: dict[str, Any], prompts: "_Prompts"
) -> dict[str, Any]:
    """How the rollouts came about; time and scale are read back when they go on, `asked` when they are asked for again."""
    from sae_transfer.data.rollouts import fingerprint

    left = {"sha256": fingerprint(prompts.asked), "left_out": prompts.left_out, "with_input": prompts.with_input}
    return {
        "command": [word.encode(errors="backslashreplace").decode() for word in sys.argv],
        "started": began.isoformat(),
        "versions": versions(),
        "hardware": hardware(device_of(spec)),
        "scale": None if scale is None else asdict(scale),
        "asked": asked | left,
    }


def _all_there(spec: RolloutsSpec, found: _Found, noted: dict[str, Any]) -> Rollouts | None:
    """The rollouts that were asked for when their file was begun, if all are in it: no tensor library is needed to tell."""
    from sae_transfer.data.rollouts import answered, fingerprint

    then = noted.get("asked")
    if not isinstance(then, dict) or any(then.get(key) != value for key, value in _asked(spec, found).items()):
        return None
    there = answered(spec.out)
    counts = [then.get("left_out"), then.get("with_input")]
    if fingerprint(there) != then.get("sha256") or not all(isinstance(count, int) for count in counts):
        return None
    return Rollouts(spec.out, len(there), 0, int(then["left_out"]), int(then["with_input"]))


def _began(noted: dict[str, Any], out: Path) -> datetime:
    try:
        return datetime.fromisoformat(noted["started"])
    except (KeyError, TypeError, ValueError):
        raise UserError("E-RUN", f"the origin of {out} is damaged at started", ELSEWHERE) from None


def _noted_scale(noted: dict[str, Any], out: Path) -> Scale:
    try:
        return Scale(**noted["scale"])
    except (KeyError, TypeError):
        raise UserError("E-RUN", f"the origin of {out} is damaged at scale", ELSEWHERE) from None


@dataclass(frozen=True)
class _Prompts:
    """Instructions that the model can answer, as text and as ids."""

    asked: list[str]
    ids: list[list[int]]
    ends: set[int]
    tokenizer: Any
    left_out: int
    with_input: int


def _prompts(spec: RolloutsSpec, found: _Found, began: datetime) -> _Prompts:
    """Read, render and tokenise; what has no room for `max_tokens` more is left out. Raises UserError."""
    from sae_transfer.data import prompts as data
    from sae_transfer.data import templates
    from sae_transfer.models import loading

    tokenizer = loading.tokenizer(found.model)
    if tokenizer is None:
        raise UserError("E-TOKENIZER", f"model {found.model.ref.name} has no tokenizer", "save one into its folder")
    render = templates.renderer(spec.chat_template, tokenizer, began)
    read, with_input = data.instructions(found.data.source, spec.max_documents)
    every = [(text, data.prompt(text, render, tokenizer)) for text in read]
    limit = found.model.facts.max_positions
    kept = [(text, ids) for text, ids in every if limit is None or len(ids) + spec.max_tokens <= limit]
    if not kept:
        what = f"no instruction leaves room for {spec.max_tokens} tokens of the model's {limit}"
        raise UserError("E-DATA", what, "give shorter ones or a smaller --max-tokens")
    size = found.model.facts.vocab_size
    most = max(max(ids) for _, ids in kept)
    if size is not None and most >= size:
        raise UserError("E-TOKEN", f"token {most} is outside the model's vocabulary of {size}", "mend its tokenizer")
    ends = templates.end_tokens(spec.chat_template, tokenizer)
    return _Prompts([t for t, _ in kept], [ids for _, ids in kept], ends, tokenizer, len(every) - len(kept), with_input)


def _loaded(spec: RolloutsSpec, found: _Found, progress: Progress) -> tuple["SplitModel", "LoadedSae | None"]:
    from sae_transfer import saes
    from sae_transfer.models import loading

    sae = None if found.sae is None else saes.load(found.sae, device_of(spec))
    progress.stage(f"loading {found.model.ref.name}", 0)
    hook = None if sae is None else sae.facts.hook_point
    model = loading.load(found.model, spec.dtype, placement(spec), set() if hook is None else {hook.boundary})
    if sae is not None and hook is not None and hook.centred:
        refuse_shift(model, {sae.name: hook.boundary})
    return model, sae


def _scale(spec: RolloutsSpec, model: "SplitModel", sae: "LoadedSae", ids: list[list[int]], progress: Progress) -> Scale:
    """Norm scaling factor and outlier threshold, of the prompts as evaluate's are of its data."""
    import numpy as np
    import torch

    from sae_transfer.data.packing import TokenData, whole_row
    from sae_transfer.engine import calibrate

    hook = sae.facts.hook_point
    rows = (whole_row(row, prompt, np.full(len(prompt), row, dtype=np.int32)) for row, prompt in enumerate(ids))
    data = TokenData("prompts", tuple(rows))
    advance = progress.stage("calibrating", sum(data.lengths))
    with torch.inference_mode():
        samples = calibrate.sample_norms(
            *(model.name, [data], data.name, spec.batch_size),
            read=lambda _, tokens: model.prefix(tokens.tokens, tokens.mask, [hook.boundary]),
            hook_points=[hook],
            advance=advance,
        )
    norms = calibrate.describe(model.name, hook, samples[hook])
    return calibrate.scale(norms, None, sae.name, sae.facts.wants_scaling, spec.norm_scaling_factor, spec.outlier_threshold)


def _generate(
    spec: RolloutsSpec, model: "SplitModel", sae: "LoadedSae | None", scale: Scale | None, prompts: _Prompts
) -> Callable[[Sequence[int]], list[str]]:
    """Completions of some prompts, by their indices."""
    from sae_transfer.data import published
    from sae_transfer.data.prompts import completion
    from sae_transfer.engine.splice import reconstructed
    from sae_transfer.models.generate import end_tokens, greedy

    ends = prompts.ends | end_tokens(model)
    change = None
    if sae is not None and scale is not None:
        factor, threshold, own = scale.factor, scale.unscaled_threshold, sae
        hook = own.facts.hook_point
        change = (
            hook.boundary,
            lambda resid: reconstructed(resid, lambda x: own.reconstruct(x)[0], factor, threshold, hook.centred),
        )

    def text(ids: Sequence[int], before: Sequence[int]) -> str:
        ended = len(ids) < spec.max_tokens
        if spec.published and not ended:
            return published.cut_of(spec.chat_template)(completion(ids, before, prompts.tokenizer, ended=True))
        return completion(ids, before, prompts.tokenizer, ended=ended)

    def generate(rows: Sequence[int]) -> list[str]:
        asked = [prompts.ids[row] for row in rows]
        found = greedy(model, asked, spec.max_tokens, ends, change)
        return [text(ids, before) for ids, before in zip(found, asked, strict=True)]

    return generate


def _batches(rows: range, lengths: list[int], size: int) -> list[list[int]]:
    """Rows by length, so that little of a batch is padding."""
    ordered = sorted(rows, key=lambda row: (lengths[row], row))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
