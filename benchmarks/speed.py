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

CLEAN, OURS, ROWS = "clean pass with CE", "sae-transfer", "sae-transfer, no breakdown"
PROXY, HOOKED = "run_evals, HookedProxyLM", "run_evals, HookedTransf."
"""The first is the quicker one, and takes part in every round; the second, SAELens's default, only in the first."""

T = TypeVar("T")


def main() -> None:
    """Print the comparison and our stages. Raises SystemExit where the two sides don't compute the same thing."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        at = setting.load(Path(folder))
        proxy, hooked = saelens.proxied(at), saelens.hooked(at)
        sides: dict[str, Callable[[], Any]] = {
            CLEAN: lambda: clean_pass(at),
            OURS: lambda: ours.evaluate(at),
            ROWS: lambda: ours.rows_alone(at),
            PROXY: lambda: saelens.evals(at, proxy, saelens.PROXY_HOOK),
            HOOKED: lambda: saelens.evals(at, hooked),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        found: dict[str, Any] = {}
        for turn in range(ROUNDS):
            for name, side in sides.items():
                if name != HOOKED or turn == 0:
                    found[name], spent = timed(side)
                    seconds[name].append(spent)
                    print(f"round {turn + 1}: {name} {spent:.1f} s", file=sys.stderr, flush=True)
            for name in (PROXY, HOOKED):
                agree(name, found[CLEAN], found[OURS], found[name])
        report(at, seconds, found)


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


def agree(side: str, clean: float, here: Losses, there: Losses) -> None:
    """Raises SystemExit, naming the quantity, where two sides differ by more than AGREE."""
    for sae, values in there.items():
        for name, value in values.items():
            for got in (here[sae][name], *([clean] if name == "CE clean" else [])):
                if not abs(got - value) <= AGREE * abs(value):
                    raise SystemExit(f"FAIL: {name} of {sae}: {got:.6g} here, {value:.6g} by {side}")


def report(at: Setting, seconds: dict[str, list[float]], found: dict[str, Any]) -> None:
    """Medians, in seconds and in clean passes; stages; losses side by side."""
    median = {name: statistics.median(spent) for name, spent in seconds.items()}
    unit, count = median[CLEAN], len(at.saes)
    what = "SAEs and WikiText-2 of the golden numbers" if at.real else "random SAEs and tokens"
    print(f"SmolLM2-135M-Instruct, float32, {count} SAEs, {setting.ROWS} x {setting.CONTEXT} tokens ({what})")
    print(f"{torch.get_num_threads()} threads, turn by turn{'':<17} seconds (least - most)  rounds  clean passes   per SAE")
    for name, spent in seconds.items():
        spread = f"({min(spent):.1f} - {max(spent):.1f})"
        per_sae = f"{median[name] / unit / count:10.2f}" if name != CLEAN else ""
        print(f"  {name:<37} {median[name]:7.2f} {spread:>15}  {len(spent):6}{median[name] / unit:14.2f}{per_sae}")
    for name in (PROXY, HOOKED):
        print(f"  {f'{name}: sae-transfer is faster by':<62} {median[name] / median[OURS]:6.2f} x")
    each = [with_it / without for with_it, without in zip(seconds[OURS], seconds[ROWS], strict=True)]
    print(f"  {'breakdown, worst tokens and outliers: sae-transfer takes':<62} {statistics.median(each):6.3f} x as long")
    stages = ours.stages(at)
    print(f"where sae-transfer's time goes{'':<10} seconds{'':<24}  clean passes   share")
    for stage, spent_here in stages.items():
        share = spent_here / sum(stages.values())
        print(f"  {stage:<37} {spent_here:7.2f}{'':<24}{spent_here / unit:14.2f}{share:8.0%}")
    print(f"what all of them compute{'':<10} {OURS:>14} {PROXY:>24} {HOOKED:>24}")
    for sae, values in found[OURS].items():
        for name, value in values.items():
            there = "".join(f"{found[side][sae][name]:25.7g}" for side in (PROXY, HOOKED))
            print(f"  {f'{sae} {name}':<32} {value:14.7g}{there}")


if __name__ == "__main__":
    main()
