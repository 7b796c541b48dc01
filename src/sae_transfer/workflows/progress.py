"""How a workflow tells how far it is: stages counted in tokens. Who shows them is the caller's business."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Told of each stage and its tokens (0: not known); gives what to call with the tokens of every finished batch."""

    def stage(self, name: str, tokens: int) -> Callable[[int], None]: ...


class Silent:
    """Shows nothing."""

    def stage(self, name: str, tokens: int) -> Callable[[int], None]:  # noqa: ARG002
        """Nothing to call for."""
        return lambda _: None
