"""On what a run was made: versions of what computes, and the machine."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("sae-transfer", "torch", "transformers", "sae-lens", "peft", "gguf", "safetensors", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Version of Python and of each package that a number depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def hardware(device: str) -> dict[str, str]:
    """The machine, without its name."""
    return {
        "device": device,
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
