"""Who is under test in a batch, who is scored, and which row of sums each position adds to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_transfer.data.packing import TokenBatch
from sae_transfer.specs import TOKEN_KINDS


@dataclass(frozen=True)
class Positions:
    """Flat indices (batch x pos) into a batch, ascending, on the CPU. Token kinds share no position."""

    batch: TokenBatch
    kinds: Int[Tensor, " flat"]
    under: Int[Tensor, " under"]
    scored: Int[Tensor, " scored"]
    labels: Int[Tensor, " scored"]
    nth: Int[Tensor, " flat"]
    """For each position its index in `under`, -1 where it is not under test."""
    group: Int[Tensor, " under"]
    """For each position under test the index into `keys` of the row that it adds to."""
    keys: tuple[tuple[int, int, int], ...]
    """(token kind, row, document)."""
    rows: Int[Tensor, " under"]
    """Token row of each position under test, in input order."""
    places: Int[Tensor, " under"]
    """Its index in that row, padding not counted."""

    @classmethod
    def of(cls, batch: TokenBatch, kinds: Sequence[str]) -> "Positions":
        """The positions of some token kinds."""
        wanted = torch.tensor([TOKEN_KINDS.index(kind) for kind in kinds])
        chosen = torch.isin(batch.kinds, wanted)
        under = chosen.flatten().nonzero().squeeze(-1)
        scored = (chosen & batch.scored).flatten().nonzero().squeeze(-1)
        rows = batch.rows.repeat_interleave(batch.tokens.shape[1])
        owners = torch.stack([batch.kinds.flatten(), rows, batch.documents.flatten()], dim=1)
        keys, which = np.unique(owners[under].numpy(), axis=0, return_inverse=True)
        nth = torch.full((batch.tokens.numel(),), -1)
        nth[under] = torch.arange(len(under))
        return cls(
            batch=batch,
            kinds=batch.kinds.flatten(),
            under=under,
            scored=scored,
            labels=batch.tokens.flatten()[scored + 1],
            nth=nth,
            group=torch.from_numpy(which.reshape(-1)),
            keys=tuple((int(kind), int(row), int(document)) for kind, row, document in keys),
            rows=rows[under],
            places=(batch.mask.long().cumsum(-1) - 1).flatten()[under],
        )

    def spread(self, values: Tensor, at: Int[Tensor, " at"]) -> Float[Tensor, " under"]:
        """`values` [at], of any dtype, over the positions under test in float64, 0 at the others."""
        out = torch.zeros(len(self.under), dtype=torch.float64)
        out[self.nth[at]] = values.cpu().double()
        return out

    def by_kind(self, at: Int[Tensor, " at"]) -> Iterator[tuple[int, Bool[Tensor, "batch pos"]]]:
        """Each kind under test, and the positions of it that are among `at`."""
        for kind in sorted({kind for kind, _, _ in self.keys}):
            where = torch.zeros(self.kinds.numel(), dtype=torch.bool)
            where[at[self.kinds[at] == kind]] = True
            yield kind, where.view(self.batch.kinds.shape)


def added(values: Float[Tensor, "pos sums"], group: Int[Tensor, "*axes pos"], count: int) -> Float[Tensor, "count sums"]:
    """Sums of `values` over each of `count` groups, in position order; along each further axis of `group` all values are
    added once more."""
    sums = values.shape[1]
    into = (group.unsqueeze(-1) * sums + torch.arange(sums)).flatten()
    flat = torch.zeros(count * sums, dtype=torch.float64)  # of one dimension: the other way is a loop over positions
    return flat.index_add_(0, into, values.expand(*group.shape, sums).flatten()).view(count, sums)
