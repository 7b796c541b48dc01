"""Sums by bucket instead of by document: position in the row, token class, decile of norm. What they add up to is the rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_transfer.engine.plan import Unit
from sae_transfer.engine.positions import Positions, added
from sae_transfer.engine.watching import Seen
from sae_transfer.rows import AXES, OUTLIER, POSITION_STARTS, SQUARES, SUMS, Block, Calibration
from sae_transfer.specs import TOKEN_KINDS

BUCKETS = tuple((axis.name, bucket) for axis in AXES for bucket in axis.buckets)
STARTS = dict(zip((axis.name for axis in AXES), accumulate((len(axis.buckets) for axis in AXES), initial=0), strict=False))
"""The first bucket of each axis."""
NONE = len(BUCKETS)
"""The bucket of positions that an axis says nothing of; it is not told."""
ALL_SUMS = (*SUMS, *SQUARES)
EDGES = torch.tensor(POSITION_STARTS)


@dataclass(frozen=True)
class Breakdown:
    """Watches a unit: for each SAE, sums [token kinds x buckets, ALL_SUMS]."""

    model: str
    data: str
    deciles: Mapping[str, Float[Tensor, " edges"]]
    """By hook point."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    table = "breakdown"

    @classmethod
    def of(cls, unit: Unit, calibration: Calibration) -> "Breakdown":
        """For one unit."""
        own = {n.hook_point: torch.tensor(n.deciles, dtype=torch.float64) for n in calibration.norms if n.model == unit.model}
        return cls(unit.model, unit.data, own)

    def see(self, seen: Seen) -> None:
        """Add every position under test to its bucket of each axis."""
        squares = torch.stack([seen.of(name) ** 2 for name in SQUARES.values()], dim=1)
        bucket = buckets(seen.positions, seen.of("norm"), seen.of("outliers") > 0, self.deciles[seen.scale.hook_point])
        group = seen.positions.kinds[seen.positions.under] * (NONE + 1) + bucket
        sums = added(torch.cat([seen.values, squares], dim=1), group, len(TOKEN_KINDS) * (NONE + 1))
        self.sums[seen.sae] = self.sums[seen.sae] + sums if seen.sae in self.sums else sums

    def blocks(self) -> list[Block]:
        """Rows of rows.BREAKDOWN: the buckets that have a position."""
        return [self._block(sae, sums) for sae, sums in self.sums.items()]

    def _block(self, sae: str, sums: Float[Tensor, "groups sums"]) -> Block:
        counted = sums[:, [ALL_SUMS.index("kept"), ALL_SUMS.index("outliers")]].sum(1) > 0
        at = [group for group in counted.nonzero().flatten().tolist() if group % (NONE + 1) != NONE]
        named = {"model": self.model, "sae": sae, "data": self.data}
        return {
            **{name: [value] * len(at) for name, value in named.items()},
            "token_kind": [TOKEN_KINDS[group // (NONE + 1)] for group in at],
            "axis": [BUCKETS[group % (NONE + 1)][0] for group in at],
            "bucket": [BUCKETS[group % (NONE + 1)][1] for group in at],
            **dict(zip(ALL_SUMS, sums[at].T.tolist(), strict=True)),
        }


def buckets(
    positions: Positions, norms: Float[Tensor, " under"], outlying: Tensor, deciles: Float[Tensor, " edges"]
) -> Int[Tensor, "axes under"]:
    """Index into BUCKETS of each position under test, for each axis; NONE where it has none."""
    classes = positions.batch.classes.flatten()[positions.under]
    tenth = STARTS["norm"] + torch.bucketize(norms.contiguous(), deciles)
    by_axis = {
        "position": STARTS["position"] + torch.bucketize(positions.places, EDGES, right=True),
        "token-class": torch.where(classes < 0, NONE, STARTS["token-class"] + classes),
        "norm": torch.where(outlying, BUCKETS.index(("norm", OUTLIER)), tenth),
    }
    return torch.stack([by_axis[axis.name] for axis in AXES])
