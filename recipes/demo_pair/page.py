"""The recipe's logs -> docs/demo_pair.md's tables: `python -m recipes.demo_pair.page` writes them, a test holds them."""

import json
import re
from pathlib import Path
from typing import Any

from recipes.demo_pair.ablation import LOG
from sae_transfer.workflows.demo import pair

PAGE = Path(__file__).parents[2] / "docs" / "demo_pair.md"
Table = list[list[str]]


def tables() -> dict[str, str]:
    """Markdown tables by name."""
    log = json.loads((pair() / "recipe.json").read_text(encoding="utf-8"))
    seeds: dict[str, Any] = log["seeds"]
    return {
        "training": _markdown("seed", *_training(seeds, str(log["chosen"]))),
        "validation": _markdown("SAE on model", *_figures(seeds, "validation")),
        "held_out": _markdown("SAE on model", *_figures(seeds, "held_out")),
        "norms": _markdown("step", *_norms(seeds[str(log["chosen"])]["base"]["training"])),
        "ablation": _markdown("variant", *_ablation(json.loads(LOG.read_text(encoding="utf-8")))),
    }


def filled(page: str) -> str:
    """The page with every table between its markers."""
    for name, table in tables().items():
        page = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: m[1] + t + m[2], page, flags=re.DOTALL)  # type: ignore[misc]
    return page


def _training(seeds: dict[str, Any], chosen: str) -> tuple[list[str], Table]:
    head = ["tokens", "base loss", "base, validation", "chat", "LoRA", "drifted", "BOS first", "BOS inside", "other"]
    rows = []
    for seed, log in seeds.items():
        end, loss = log["base"]["training"][-1], log["relatives"]["training_loss"]
        norms = [f"{log['relatives']['models']['chat'][key]:.2f}" for key in ("bos_first", "bos_inside", "other")]
        figures = [end["loss"], end["validation"], loss["chat"], loss["lora"], loss["drifted"]]
        shipped = " (shipped)" if seed == chosen else ""
        rows.append([seed + shipped, f"{log['base']['tokens']:,}", *(f"{value:.3f}" for value in figures), *norms])
    return head, rows


WANTED = {
    "base on base": ("base", "base", "text"),
    "base on chat": ("chat", "base", "text"),
    "base on LoRA": ("lora", "base", "text"),
    "base on 8 bit": ("quantised", "base", "text"),
    "base on drifted": ("drifted", "base", "text"),
    "tuned on drifted, on drifted": ("drifted", "tuned-on-drifted", "text"),
    "tuned on drifted, on base": ("base", "tuned-on-drifted", "text"),
    "base on chat, rollouts": ("chat", "base", "rollout"),
    "chat on chat, rollouts": ("chat", "chat", "rollout"),
    "tuned on chat, on chat, rollouts": ("chat", "tuned-on-chat", "rollout"),
    "tuned on chat, on base, rollouts": ("base", "tuned-on-chat", "rollout"),
}


def _figures(seeds: dict[str, Any], split: str) -> tuple[list[str], Table]:
    names = {"CE clean": "ce_clean", "ΔCE": "delta_ce", "CE recovered": "ce_recovered", "EV": "explained_variance", "KL": "kl"}
    rows = []
    for name, (model, sae, place) in WANTED.items():
        cells = [log[split][model][sae][place] for log in seeds.values()]
        rows.append([name, *(" / ".join(f"{cell[key]:.3f}" for cell in cells) for key in names.values())])
    return list(names), rows


def _norms(training: list[dict[str, Any]]) -> tuple[list[str], Table]:
    keys = ("validation", "median_norm", "bos_first", "bos_inside", "other")
    rows = [[str(step["step"]), *(f"{step[key]:.2f}" for key in keys)] for step in training[::2]]
    return ["loss, validation", "median norm", "BOS first", "BOS inside", "other"], rows


def _ablation(variants: dict[str, Any]) -> tuple[list[str], Table]:
    rows = [
        [name, *(f"{end[key]:.2f}" for key in ("validation", "bos_first", "bos_inside", "other"))]
        for name, end in variants.items()
    ]
    return ["loss, validation", "BOS first", "BOS inside", "other"], rows


def _markdown(first: str, head: list[str], rows: Table) -> str:
    lines = [[first, *head], ["---"] * (1 + len(head)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
