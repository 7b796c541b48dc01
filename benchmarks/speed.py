"""Time both sides turn by turn in one process, hold their losses against each other, and print a table."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks import ours, saelens, setting
from benchmarks.saelens import Losses
from benchmarks.setting import Setting

ROUNDS = 3
AGREE = 1e-3
"""Relative difference up to which two losses count as the same."""

T = TypeVar("T")


def main() -> None:
    """Print the comparison and our stages. Raises SystemExit where the two sides don't compute the same thing."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        at = setting.load(Path(folder))
        other = saelens.hooked(at)
        sides: dict[str, Callable[[], Any]] = {
            "clean pass": lambda: clean_pass(at),
            "sae-transfer": lambda: ours.evaluate(at),
            "run_evals": lambda: saelens.evals(at, other),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        found: dict[str, Any] = {}
        for turn in range(ROUNDS):
            for name, side in sides.items():
                found[name], spent = timed(side)
                seconds[name].append(spent)
            print(f"round {turn + 1}: " + ", ".join(f"{n} {s[-1]:.1f} s" for n, s in seconds.items()), file=sys.stderr)
            agree(found["clean pass"], found["sae-transfer"], found["run_evals"])
        report(at, seconds, found["sae-transfer"], found["run_evals"])


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and its seconds."""
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


@torch.inference_mode()
def clean_pass(at: Setting) -> float:
    """The unit of work: the Hugging Face model once over all rows, and the mean cross-entropy."""
    rows, total = torch.tensor(at.rows), 0.0
    for batch in torch.split(rows, setting.BATCH_SIZE):
        logits = at.model.lm(input_ids=batch, use_cache=False).logits[:, :-1]
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    return total / rows[:, 1:].numel()


def agree(clean: float, here: Losses, there: Losses) -> None:
    """Raises SystemExit, naming the quantity, where two sides differ by more than AGREE."""
    for sae, values in there.items():
        for name, value in values.items():
            for got in (here[sae][name], *([clean] if name == "CE clean" else [])):
                if not abs(got - value) <= AGREE * abs(value):
                    raise SystemExit(f"FAIL: {name} of {sae}: {got:.6g} here, {value:.6g} in run_evals")


def report(at: Setting, seconds: dict[str, list[float]], here: Losses, there: Losses) -> None:
    """Medians, in seconds and in clean passes; stages; losses side by side."""
    median = {name: statistics.median(spent) for name, spent in seconds.items()}
    unit, count = median["clean pass"], len(at.saes)
    what = "SAEs and WikiText-2 of the golden numbers" if at.real else "random SAEs and tokens"
    print(f"SmolLM2-135M-Instruct, float32, {count} SAEs, {setting.ROWS} x {setting.CONTEXT} tokens ({what})")
    print(f"median of {ROUNDS} rounds, turn by turn     seconds   (least - most)   clean passes   per SAE")
    for name, spent in seconds.items():
        spread = f"({min(spent):.1f} - {max(spent):.1f})"
        per_sae = f"{median[name] / unit / count:10.2f}" if name != "clean pass" else ""
        print(f"  {name:<32} {median[name]:8.2f}   {spread:>14}   {median[name] / unit:12.2f}{per_sae}")
    print(f"  run_evals / sae-transfer         {median['run_evals'] / median['sae-transfer']:8.2f} x")
    stages = [ours.stages(at) for _ in range(ROUNDS)]
    total = statistics.median(sum(spent.values()) for spent in stages)
    print("where sae-transfer's time goes     seconds   clean passes")
    for stage in ours.STAGES:
        spent_here = statistics.median(spent[stage] for spent in stages)
        print(f"  {stage:<32} {spent_here:8.2f}   {spent_here / unit:12.2f}   {spent_here / total:4.0%}")
    print("what both compute                  sae-transfer     run_evals")
    for sae, values in there.items():
        for name, value in values.items():
            print(f"  {sae} {name:<26} {here[sae][name]:14.6g}{value:14.6g}")


if __name__ == "__main__":
    main()
