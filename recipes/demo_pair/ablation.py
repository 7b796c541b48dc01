"""`python -m recipes.demo_pair.ablation`: short trainings of the base model with one thing changed -> the norms of BOS.

Why the first token of a row is so much larger than any other is an open question; this asks which choices it depends on.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from recipes.demo_pair.recipe import FULL, Log, Recipe, trained_base

LOG = Path(__file__).with_name("ablation.json")
SHORT = replace(FULL, documents=23_000, plain_chats=1_800, manners=350)
VARIANTS: dict[str, Recipe] = {
    "as in the recipe": SHORT,
    "learning rate 2e-3, not 1e-3": replace(SHORT, base_rate=2e-3),
    "learning rate 4e-3": replace(SHORT, base_rate=4e-3),
    "weight decay 0.1": replace(SHORT, weight_decay=0.1),
    "every document in a row of its own": replace(SHORT, packed=0.0),
    "every document packed": replace(SHORT, packed=1.0),
}


def last(name: str) -> Log:
    """The end of one variant's training."""
    _, _, log = trained_base(VARIANTS[name], seed=0)
    end: Log = log["training"][-1]
    return {"tokens": log["tokens"], **end}


def main() -> None:
    """Two at a time; about ten minutes on two cores."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = dict(zip(VARIANTS, pool.map(last, VARIANTS), strict=True))
    LOG.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, end in found.items():
        sys.stdout.write(f"{name}: BOS {end['bos_first']:.2f}, other {end['other']:.2f}, loss {end['validation']:.3f}\n")


if __name__ == "__main__":
    main()
