"""What one SAE did on one batch, position by position, for whoever wants more of it than rows of sums.

A watcher belongs to one unit of work: `measure` shows it every batch, and its blocks are written beside the unit's rows. What
it keeps must not grow with the tokens.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sae_transfer.engine.positions import Positions
from sae_transfer.rows import SUMS, Block, Scale

NTH = {name: index for index, name in enumerate(SUMS)}
"""The column of each statistic in `Seen.values`."""


@dataclass(frozen=True)
class Seen:
    """One SAE on one batch. `values` are those of rows.SUMS, before they are added, on the CPU in float64."""

    sae: str
    scale: Scale
    positions: Positions
    values: Float[Tensor, "under sums"]
    clean: Float[Tensor, "scored d_model"]
    """Last hidden states of the scored positions, of the unchanged model."""
    spliced: Float[Tensor, "scored d_model"]

    def of(self, name: str) -> Float[Tensor, " under"]:
        """One statistic of each position under test."""
        return self.values[:, NTH[name]]


@runtime_checkable
class Watcher(Protocol):
    """Sees every SAE on every batch of one unit, and gives a table's rows at its end."""

    @property
    def table(self) -> str: ...

    def see(self, seen: Seen) -> None: ...

    def blocks(self) -> list[Block]: ...
