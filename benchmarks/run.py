"""`make bench`: speed against SAELens's run_evals, where our time goes, and memory. Exit 1, with one line, on a failure."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version

PARTS = ("benchmarks.memory", "benchmarks.answers", "benchmarks.speed")
"""Each in its own process, so that none measures what another left in memory."""


def main() -> int:
    """Every part, even after one that failed."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "sae-lens", "transformer-lens"))
    print(f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, {libraries}", flush=True)
    quiet = os.environ | {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    codes = [subprocess.run([sys.executable, "-m", part], env=quiet, check=False).returncode for part in PARTS]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
