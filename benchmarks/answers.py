"""What answers add to the evaluation that they ride on: drift beside it, intervals and verdicts after it, of one demo run.

What the breakdown adds is in `benchmarks.speed`: there the same evaluation runs with it and without.
"""

import tempfile
import time
from pathlib import Path

from sae_transfer import Run, demo

MOST = 0.15
"""Of the evaluation's own time, drift, intervals and verdicts together."""


def main() -> None:
    """Print the shares. Raises SystemExit where they are more than MOST together."""
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
    if drift + answering > MOST * alone:
        raise SystemExit(f"FAIL: drift, intervals and verdicts take {(drift + answering) / alone:.1%}, at most {MOST:.0%}")


if __name__ == "__main__":
    main()
