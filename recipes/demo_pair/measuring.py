"""A finished seed -> the figures that the recipe's log keeps, by the project's own `evaluate`."""

from pathlib import Path
from typing import Any

import sae_transfer
from sae_transfer.workflows.demo import models, saes

KEPT = ("delta_ce", "kl", "explained_variance", "ce_recovered", "ce_clean", "l0")


def figures(folder: Path, split: str) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """model -> SAE -> `text` or a chat's token kind -> metric."""
    run = sae_transfer.evaluate(
        models(folder),
        saes(folder),
        text=str(folder / split / "text.jsonl"),
        chats=str(folder / split / "chats.jsonl"),
        out=folder / f"run-{split}",
    )
    found: dict[str, Any] = {}
    for record in run.records():
        place = {"all": "text"}.get(record["token_kind"], record["token_kind"])
        kept = {name: None if record[name] is None else round(record[name], 6) for name in KEPT}
        found.setdefault(record["model"], {}).setdefault(record["sae"], {})[place] = kept
    return found
