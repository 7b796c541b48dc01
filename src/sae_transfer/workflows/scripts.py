"""The three published scripts: their flags -> one `evaluate` run, published quirks on -> a record in their results file.

MSE, L0 and explained variance are over the tokens of the losses: the published code draws three other sets of batches for them,
without a seed, so nobody can draw them again.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from sae_transfer.errors import ELSEWHERE, UserError
from sae_transfer.report.run import Run
from sae_transfer.runs.directory import write_atomically
from sae_transfer.sources import resolve
from sae_transfer.specs import DataKind, DataRef, EvaluateSpec, ModelRef, RolloutsSpec, SaeRef
from sae_transfer.workflows import evaluate, published, rollouts
from sae_transfer.workflows.progress import Progress

RESULTS = Path("results")
PILE = RESULTS / "sae_transfer_results_post.json"
CHATS = RESULTS / "alpaca_sae_transfer_results.json"
FINETUNED = RESULTS / "sae_finetuning_evals.json"
Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A record, and the file that it was appended to."""

    record: Record
    path: Path


def pile(progress: Progress, sae_project: str, model_name: str, wandb_entity: str, **options: Any) -> Result:
    """One SAE on one model, on text. Raises: UserError."""
    model = published.model(model_name, "--model_name")
    artifact = published.artifact(sae_project, "--sae_project", {**published.BASE_SAES, **published.CHAT_SAES})
    names = {"model_name": model_name, "sae": sae_project}
    measured = _text(progress, model, f"{wandb_entity}/{artifact}", **options)
    return _appended(PILE, lambda: names | measured())


def finetuned(progress: Progress, model_name: str, wandb_entity: str, **options: Any) -> Result:
    """The base SAE that was fine-tuned on a chat model, there, on text. Raises: UserError."""
    model = published.chat_model(model_name, "--model_name")
    if model.finetuned is None and options["sae_path"] is None:
        what = f"no SAE was published that is fine-tuned on {model_name}"
        raise UserError("E-OPTION", what, "give another --model_name, or --sae_path")
    at = f"{wandb_entity}/{model.finetuned}"
    measured = _text(progress, model, at, **options)
    return _appended(FINETUNED, lambda: {"model_name": model_name} | measured() | {"artifact_path": options["sae_path"] or at})


def _text(
    progress: Progress,
    model: published.PublishedModel,
    artifact: str,
    *,
    eval_batch_size_prompts: int,
    eval_batches: int,
    num_act_batches: int,
    ignore_outliers: bool,
    outlier_threshold: float,
    norm_scaling_factor: float | None,
    model_path: str | None,
    sae_path: str | None,
    text: str | None,
) -> Callable[[], Record]:
    """What measures a Pile or fine-tuned record, its options checked."""
    spec = EvaluateSpec(
        models=(_model(model, model_path),),
        saes=(_sae("sae", artifact, sae_path),),
        data=() if text is None else (_data("text", text),),
        norm_scaling_factor=model.norm_scaling_factor if norm_scaling_factor is None else norm_scaling_factor,
        outlier_threshold=float(outlier_threshold) if ignore_outliers else "off",
        batch_size=eval_batch_size_prompts,
        max_rows=eval_batches * eval_batch_size_prompts,
        published=True,
    )

    def measured() -> Record:
        with _here():
            run = evaluate.run(spec, None, progress, published.PILE)
        return {
            **published.text_values(run.records()[0]),
            "ignore_outliers": ignore_outliers,
            "eval_tokens": run.manifest.data["text"].tokens,
            "MSE/L0/Explained Variance batches": num_act_batches,
            "Outlier threshold": outlier_threshold,
        }

    return measured


def alpaca(
    progress: Progress,
    *,
    chat_model_name: str,
    base_sae_project: str,
    chat_sae_project: str,
    wandb_entity: str,
    mask_type: str,
    num_samples: int | None,
    ignore_outliers: bool,
    batch_size: int,
    outlier_threshold: float | None,
    norm_scaling_factor: float | None,
    model_path: str | None,
    base_sae_path: str | None,
    chat_sae_path: str | None,
    chats: str | None,
) -> Result:
    """The base and the chat SAE on a chat model, on one kind of tokens of its own answers to Alpaca. Raises: UserError."""
    model = published.chat_model(chat_model_name, "--chat_model_name")
    base = published.artifact(base_sae_project, "--base_sae_project", published.BASE_SAES)
    chat = published.artifact(chat_sae_project, "--chat_sae_project", published.CHAT_SAES)
    if mask_type not in published.MASK_TYPES:
        raise UserError("E-OPTION", f"--mask_type {mask_type!r} is none", f"choose from {', '.join(published.MASK_TYPES)}")
    if ignore_outliers and outlier_threshold is None:
        raise UserError("E-OPTION", "--ignore_outliers without --outlier_threshold ignores nothing", "give both")
    ref = _model(model, model_path)
    saes = (_sae("chat", f"{wandb_entity}/{chat}", chat_sae_path), _sae("base", f"{wandb_entity}/{base}", base_sae_path))
    data = _data("chats", chats or _found(model))
    if data.source == published.ALPACA or _holds(data.source, "instruction", without="completion"):
        for sae in saes:
            resolve.sae(sae)  # a mistake there is told before hours of answers
        data = _rollouts(progress, model, ref, data.source, num_samples, batch_size)
    spec = EvaluateSpec(
        models=(ref,),
        saes=saes,
        data=(data,),
        chat_template=model.template or "",
        token_kinds=("all",) if data.kind == "rows" else (mask_type,),
        norm_scaling_factor=model.norm_scaling_factor if norm_scaling_factor is None else norm_scaling_factor,
        outlier_threshold=float(outlier_threshold) if ignore_outliers and outlier_threshold is not None else "off",
        batch_size=batch_size,
        published=True,
    )

    def measured() -> Record:
        with _here():
            run: Run = evaluate.run(spec, None, progress)
        return {
            "chat_model": chat_model_name,
            "mask_type": mask_type,
            **published.chat_values({record["sae"]: record for record in run.records()}),
            "ignore_outliers": ignore_outliers,
            "outlier_threshold": outlier_threshold,
        }

    return _appended(CHATS, measured)


def _found(model: published.PublishedModel) -> str:
    """The published file of rollouts where it lies in the working directory, however many are asked for; else Alpaca."""
    return model.chats if model.chats is not None and Path(model.chats).exists() else published.ALPACA


def _rollouts(
    progress: Progress, model: published.PublishedModel, ref: ModelRef, source: str, num_samples: int | None, batch_size: int
) -> DataRef:
    """The chat model's own answers, in a .jsonl under the name of the published file, which a later call reads: then there
    are at least as many as before, however few are asked for."""
    out = Path(model.chats or "generated_data").with_suffix(".jsonl")
    there = out.read_bytes().count(b"\n") if out.is_file() else 0
    if num_samples is None and not there:
        raise UserError("E-OPTION", "there are no chats yet", "say how many records to answer with --num_samples")
    instructions = resolve.data(DataRef("instructions", "instructions", source))

    from sae_transfer.data.published import asked
    from sae_transfer.data.text import records

    with closing(records(instructions.source)) as found:
        count = max(there, len(asked(found, num_samples or 0)))
    if not count:
        raise UserError("E-OPTION", f"--num_samples {num_samples} holds no instruction without an input", "give a larger one")
    spec = RolloutsSpec(
        model=ref,
        instructions=instructions.ref,
        out=out,
        chat_template=model.template or "",
        batch_size=batch_size,
        max_documents=count,
        published=True,
    )
    with _here():
        return DataRef("chats", "chats", str(rollouts.run(spec, progress).path))


@contextmanager
def _here() -> Iterator[None]:
    """The workflows' mistakes, with advice that holds for scripts: what these write lies in the working directory."""
    try:
        yield
    except UserError as error:
        then = error.then.replace(ELSEWHERE, "move it elsewhere, or run in another directory")
        raise UserError(error.code, error.what, then) from None


def _model(model: published.PublishedModel, path: str | None) -> ModelRef:
    return ModelRef.parse(f"model={path or model.hub}")


def _sae(name: str, artifact: str, path: str | None) -> SaeRef:
    return SaeRef(name, path or published.wandb_source(artifact))


def _data(kind: DataKind, source: str) -> DataRef:
    """Rows of token ids where a .jsonl begins with one."""
    return DataRef(kind, "rows" if _holds(source, "tokens") else kind, source)


def _holds(source: str, key: str, without: str | None = None) -> bool:
    """Whether the first record of a .jsonl has a key, and not another."""
    path = Path(source)
    if path.suffix.lower() != ".jsonl":
        return False
    try:
        with path.expanduser().open(encoding="utf-8-sig") as file:
            first = json.loads(next((line for line in file if line.strip()), "{}"))
    except (OSError, ValueError, RecursionError, RuntimeError):  # whoever reads it as text or chats says why
        return False
    return isinstance(first, dict) and key in first and without not in first


def _appended(path: Path, measure: Callable[[], Record]) -> Result:
    """Measure a record and append it; a file that can't be appended to is noticed before."""
    _earlier(path)
    record = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")) as lock:
            text = json.dumps([*_earlier(path), record], indent=2)
            write_atomically(path, lambda beside: _write(beside, text))
            Path(lock.lock_file).unlink(missing_ok=True)
    except OSError as error:
        raise UserError("E-PATH", f"{path} can't be written ({error.strerror})", "run in another directory") from None
    return Result(record, path)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _earlier(path: Path) -> list[Any]:
    """Records that are there. Raises UserError E-DATA where the file holds anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("E-DATA", f"{path} can't be read ({error!s:.200})", "move it elsewhere") from None
    if not isinstance(found, list):
        raise UserError("E-DATA", f"{path} holds no list of records", "move it elsewhere")
    return found
