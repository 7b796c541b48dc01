"""sae-transfer: does a sparse autoencoder trained on one language model still work on its fine-tuned version?

Public names are resolved on first use, so that importing the package loads neither torch nor sae_lens.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_transfer.errors import UserError as UserError
    from sae_transfer.report.run import Run as Run
    from sae_transfer.workflows.check import check as check
    from sae_transfer.workflows.demo import demo as demo
    from sae_transfer.workflows.drift import drift as drift
    from sae_transfer.workflows.evaluate import evaluate as evaluate
    from sae_transfer.workflows.rollouts import rollouts as rollouts

_HOME = {
    "Run": "sae_transfer.report.run",
    "UserError": "sae_transfer.errors",
    "check": "sae_transfer.workflows.check",
    "demo": "sae_transfer.workflows.demo",
    "drift": "sae_transfer.workflows.drift",
    "evaluate": "sae_transfer.workflows.evaluate",
    "rollouts": "sae_transfer.workflows.rollouts",
}

__all__ = ["Run", "UserError", "check", "demo", "drift", "evaluate", "rollouts"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
