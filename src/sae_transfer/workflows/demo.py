"""`demo`: the pair that ships with the package -> its transfer matrix, and what it says in plain sentences."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from sae_transfer.metrics.cells import Record
from sae_transfer.report import findings
from sae_transfer.report.findings import Place
from sae_transfer.report.run import Run
from sae_transfer.workflows.evaluate import evaluate
from sae_transfer.workflows.progress import Progress

OUT = Path("runs/demo")
TEXT = Place("text", "all", "text")
ROLLOUTS = Place("chats", "rollout", "rollouts")


def pair() -> Path:
    """The folder of the pair: models, SAEs, held-out text and chats, made by recipes/demo_pair in the repository."""
    return Path(str(files("sae_transfer") / "assets" / "demo"))


def models(pair: Path) -> Mapping[str, str]:
    """The base model and its relatives, by name."""
    at = pair / "models"
    named = {name: str(at / name) for name in ("base", "chat", "drifted", "quantised")}
    return named | {"lora": f"{at / 'base'}+{at / 'lora'}"}


def saes(pair: Path) -> Mapping[str, str]:
    """SAEs by NAME@MODEL: the model that each belongs to."""
    at = pair / "saes"
    return {
        "base@base": str(at / "base"),
        "chat@chat": str(at / "chat"),
        "tuned-on-chat@chat": str(at / "tuned-on-chat"),
        "tuned-on-drifted@drifted": str(at / "tuned-on-drifted"),
    }


def demo(out: str | Path = OUT, progress: Progress | None = None) -> Run:
    """Evaluate the pair in the directory `out`: every SAE on every model, on held-out text and chats. `sae-transfer demo`
    prints the run's table and what it shows. Raises: UserError E-RUN where `out` holds another run."""
    at = pair()
    text, chats = str(at / "text.jsonl"), str(at / "chats.jsonl")
    with _one_thread():
        return evaluate(models(at), saes(at), text=text, chats=chats, out=out, progress=progress)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Products as small as the pair's gain nothing from threads, and are many times slower on ones that must wait."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def found(run: Run) -> list[str]:
    """A sentence for what the drift did and for what each fine-tuning gave."""
    records = run.records()
    return [
        findings.damage(records, "base", "base", "drifted", TEXT),
        findings.repair(records, "base", "tuned-on-drifted", "base", "drifted", TEXT, goal=("base", "base")),
        findings.repair(records, "base", "tuned-on-chat", "base", "chat", ROLLOUTS, goal=("chat", "chat")),
    ]


def transfers(run: Run) -> list[Record]:
    """The records that answer the question: the base SAE on each relative of its model."""
    return [record for record in run.records() if record["sae"] == "base" and record["model"] != "base"]
