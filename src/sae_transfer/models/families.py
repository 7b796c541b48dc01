"""One entry per architecture that needs something special. An architecture without an entry takes the defaults.

Where an architecture's layers are is found by running it (`split.py`), so a new one needs an entry only for what its own
forward pass cannot show.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What is odd about an architecture. `attention`: the implementation that it must be loaded with."""

    attention: str | None = None
    why: str = ""


FAMILIES: dict[str, Family] = {
    "gemma2": Family(attention="eager", why="the soft cap on attention logits exists in the eager implementation only"),
}


def family(model_type: str) -> Family:
    """The entry of a config's `model_type`, or the defaults."""
    return FAMILIES.get(model_type, Family())
