"""Drift beside the base SAE's cost on the demo pair, for docs/drift.md: `python -m recipes.demo_pair.drift [RUN]` writes it.

RUN is the folder of a `sae-transfer demo`, measured if it is not there. A test holds the tables against one.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_transfer import Run, demo, drift
from sae_transfer.report.forecast import THRESHOLDS, worst
from sae_transfer.workflows.demo import models, pair
from sae_transfer.workflows.published import MODELS

PAGE = Path(__file__).parents[2] / "docs" / "drift.md"
LAYER = 2
KINDS = ("all", "user_prompt", "rollout", "control_tokens")
SAID = ("transfers", "may", "does not")
"""The forecasts of report/forecast.py in short."""
HEAD = (
    "model",
    "tokens",
    "cosine",
    "norm ratio",
    "rel. dist.",
    "CKA",
    "scalar",
    "shift",
    "orth.",
    "forecast",
    "ΔCE on it",
    "ΔCE on base",
    "EV on it",
    "EV on base",
)


def demo_rows(run: Run) -> list[list[str]]:
    """A row for each model and token kind, both from the same tokens."""
    cells = {(r["model"], r["token_kind"]): r for r in run.records() if r["sae"] == "base"}
    text, chats = (str(pair() / name) for name in ("text.jsonl", "chats.jsonl"))
    records = drift(models(pair()), text=text, chats=chats, layers=LAYER).records()
    return [_row(record, cells) for kind in KINDS for record in records if record["token_kind"] == kind]


def _row(record: dict[str, Any], cells: dict[tuple[str, str], Any]) -> list[str]:
    kind = record["token_kind"]
    it, base = cells[record["model"], kind], cells["base", kind]
    return [
        record["model"],
        {"all": "text"}.get(kind, kind),
        f"{record['cosine']:.3f}",
        f"{record['norm_ratio']:.2f}",
        f"{record['relative_distance']:.3g}",
        f"{record['cka']:.3f}",
        *(f"{record[name]:.2f}" for name in ("scalar_share", "shift_share", "orthogonal_share")),
        SAID[worst(record)],
        *(f"{value:.3f}" for cell in (it, base) for value in (cell["delta_ce"],)),
        *(f"{value:.3f}" for cell in (it, base) for value in (cell["explained_variance"],)),
    ]


@dataclass(frozen=True)
class PublishedPair:
    """A published base model and its chat model, and what the base SAE cost on either on the Pile (nats, `results/*.json`)."""

    base: str
    chat: str
    on_chat: float
    on_base: float
    ev_on_chat: float
    ev_on_base: float


PUBLISHED = (
    PublishedPair("qwen1.5-0.5B", "qwen1.5-0.5B-chat", 0.239, 0.363, 0.593, 0.745),
    PublishedPair("mistral-7B", "mistral-7B-instruct", 0.098, 0.114, 0.610, 0.682),
    PublishedPair("gemma-2b", "gemma-2b-it", 6.982, 0.446, -14.991, 0.776),
)


def published_rows() -> list[list[str]]:
    """What the published scaling factors say: a factor is sqrt(d_model) / mean norm. No more is known of their drift."""
    rows = []
    for found in PUBLISHED:
        ratio = MODELS[found.base].norm_scaling_factor / MODELS[found.chat].norm_scaling_factor
        said = SAID[worst({"cosine": None, "norm_ratio": ratio, "cka": None})]
        figures = (found.on_chat, found.on_base, found.ev_on_chat, found.ev_on_base)
        rows.append([f"{found.base} → {found.chat}", f"{ratio:.2f}", said, *(f"{value:.3f}" for value in figures)])
    return rows


def thresholds() -> list[list[str]]:
    """The table of report/forecast.py; a limit on a ratio of norms holds upwards too."""
    rows = []
    for entry in THRESHOLDS:
        limits = [f"{entry.keeps:g}", f"{entry.loses:g}"]
        if entry.statistic == "norm_ratio":
            limits = [f"{limit} to {1 / float(limit):g}" for limit in limits]
        rows.append([f"`{entry.statistic}` ({entry.what})", *limits])
    return rows


def tables(run: Run) -> dict[str, str]:
    """Markdown tables by name."""
    return {
        "thresholds": markdown(("statistic", "probably transfers from", "probably does not below"), thresholds()),
        "demo": markdown(HEAD, demo_rows(run)),
        "published": markdown(("pair", "norm ratio", "forecast", *HEAD[-4:]), published_rows()),
    }


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def shown(page: str, name: str) -> str:
    """What stands between a table's markers."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", page, flags=re.DOTALL)
    assert found is not None, name
    return found[1]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables(demo(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/demo"))).items():
        text = text.replace(f"<!-- {name} -->\n{shown(text, name)}", f"<!-- {name} -->\n{table}")
    PAGE.write_text(text, encoding="utf-8")
