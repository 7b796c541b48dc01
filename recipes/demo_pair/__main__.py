"""`python -m recipes.demo_pair -o FOLDER`: three seeds, two at a time; the median one becomes the package's assets."""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from shutil import copy, copytree, rmtree
from typing import Any

from recipes.demo_pair.files import write_json
from recipes.demo_pair.measuring import figures
from recipes.demo_pair.recipe import FULL, SMOKE, make_base, make_relatives
from sae_transfer.runs.provenance import versions

SHIPPED = Path(__file__).parents[2] / "src" / "sae_transfer" / "assets" / "demo"
CHOSEN_BY = "delta_ce of the base SAE on drifted, validation text"


def main() -> None:
    """Make every seed in `out`, log it, and copy the median to the package."""
    parser = argparse.ArgumentParser(prog="python -m recipes.demo_pair", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="where the seeds and the log go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ship", type=Path, default=SHIPPED, help="where the chosen seed goes")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything")
    asked = parser.parse_args()
    recipe = SMOKE if asked.smoke else FULL
    began = time.monotonic()
    folders = {seed: asked.out / f"seed-{seed}" for seed in asked.seeds}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        bases = {seed: pool.submit(make_base, recipe, seed, folder) for seed, folder in folders.items()}
        rest = []
        for seed, folder in folders.items():
            bases[seed].result()
            rest.append(pool.submit(make_relatives, recipe, seed, folder))
        for one in rest:
            one.result()
        validation = dict(zip(folders, pool.map(figures, folders.values(), ["validation"] * len(folders)), strict=True))
        ranked = sorted(folders, key=lambda seed: validation[seed]["drifted"]["base"]["text"]["delta_ce"])
        chosen = ranked[len(ranked) // 2]  # before any held-out document is looked at
        held_out = dict(zip(folders, pool.map(figures, folders.values(), ["held_out"] * len(folders)), strict=True))
    log: dict[str, Any] = {"chosen": chosen, "chosen_by": CHOSEN_BY, "versions": versions(), "seeds": {}}
    for seed, folder in folders.items():
        made = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("base", "relatives")}
        log["seeds"][str(seed)] = {**made, "validation": validation[seed], "held_out": held_out[seed]}
    ship(folders[chosen], asked.ship, log)
    sys.stdout.write(f"seed {chosen} is in {asked.ship}, after {time.monotonic() - began:.0f} s\n")


def ship(folder: Path, to: Path, log: dict[str, object]) -> None:
    """The chosen seed's files, the log, and a manifest of their hashes; what was there before is replaced."""
    beside = to.with_name(f"{to.name}.new")
    rmtree(beside, ignore_errors=True)
    for part in ("models", "saes"):
        copytree(folder / part, beside / part)
    for name in ("text.jsonl", "chats.jsonl"):
        copy(folder / "held_out" / name, beside / name)
    write_json(beside / "recipe.json", log)
    hashes = {
        path.relative_to(beside).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(beside.rglob("*"))
        if path.is_file()
    }
    write_json(beside / "manifest.json", {"sha256": hashes})
    rmtree(to, ignore_errors=True)
    beside.rename(to)


if __name__ == "__main__":
    main()
