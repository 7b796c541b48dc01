"""What answers add to the evaluation that they ride on, on the demo pair: drift beside it, intervals and verdicts after it, of
one run; and the breakdown within it, by the same evaluation with and without, turn by turn.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks import ours, setting
from sae_transfer import Run, demo
from sae_transfer.specs import DataRef, EvaluateSpec, ModelRef, SaeRef
from sae_transfer.workflows import demo as workflow

MOST = 0.15
"""Of the evaluation's own time, all of them together."""
TURNS = 4


def main() -> None:
    """Print the shares. Raises SystemExit where they are more than MOST together."""
    torch.set_num_threads(1)  # as `demo` does: the pair's products gain nothing from threads
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        run = demo(Path(folder) / "run")
        laps = dict(run.manifest.sessions[0].seconds)
        started = time.perf_counter()
        records = Run(run.path).records()
        answering = time.perf_counter() - started
    drift = laps.pop("drift")
    alone = sum(laps.values())
    print(f"the demo pair: {len(records)} cells, 200 documents of text and 200 chats; the evaluation alone {alone:.1f} s")
    for name, spent in (("drift of every model from the SAEs' own", drift), ("intervals and verdicts of all cells", answering)):
        print(f"  {name:<40} {spent:6.2f} s {spent / alone:8.1%}")
    breakdown = _breakdown()
    print(f"  {'breakdown, worst tokens and outliers':<40} {'':>8} {breakdown:8.1%} of the engine's processor time")
    total = (drift + answering) / alone + breakdown
    if total > MOST:
        raise SystemExit(f"FAIL: answers take {total:.1%} of the evaluation, at most {MOST:.0%}")


def _breakdown() -> float:
    """What it adds, as a share of the least time without, on the drifted model with every SAE, text and chats."""
    pair = workflow.pair()
    spec = EvaluateSpec(
        models=(ModelRef("drifted", str(pair / "models" / "drifted")),),
        saes=tuple(SaeRef.parse(f"{name}={source}") for name, source in _unowned(workflow.saes(pair)).items()),
        data=tuple(DataRef(kind, kind, str(pair / f"{kind}.jsonl")) for kind in ("text", "chats")),
        max_documents=60,
        device="cpu",
    )
    at = setting.of(spec, [], real=True)
    ours.rows_alone(at)  # the first pass of all is slower
    spent: dict[str, list[float]] = {"without": [], "with": []}
    sides = [("without", ours.rows_alone), ("with", ours.evaluate)]
    for _ in range(TURNS):
        for name, side in sides:
            started = time.process_time()
            side(at)
            spent[name].append(time.process_time() - started)
        sides.reverse()
    return min(spent["with"]) / min(spent["without"]) - 1


def _unowned(saes: Mapping[str, str]) -> dict[str, str]:
    """SAEs by NAME alone: the models that they belong to are not there."""
    return {name.partition("@")[0]: source for name, source in saes.items()}


if __name__ == "__main__":
    main()
