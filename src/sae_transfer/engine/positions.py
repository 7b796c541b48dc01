"""Who is under test in a batch, who is scored, and which row of sums each position adds to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
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
    group: Int[Tensor, " flat"]
    """For each position the index into `keys` of the row that it adds to, -1 where it is not under test."""
    keys: tuple[tuple[int, int, int], ...]
    """(token kind, row, document)."""

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
        group = torch.full((batch.tokens.numel(),), -1)
        group[under] = torch.from_numpy(which.reshape(-1))
        labels = batch.tokens.flatten()[scored + 1]
        named = tuple((int(kind), int(row), int(document)) for kind, row, document in keys)
        return cls(batch, batch.kinds.flatten(), under, scored, labels, group, named)

    def add(self, values: Tensor, at: Int[Tensor, " at"]) -> list[float]:
        """Sums of `values` [at], of any dtype, over each row of sums, in float64 and in position order."""
        sums = torch.zeros(len(self.keys), dtype=torch.float64)
        return sums.index_add_(0, self.group[at], values.cpu().double()).tolist()

    def by_kind(self, at: Int[Tensor, " at"]) -> Iterator[tuple[int, Bool[Tensor, "batch pos"]]]:
        """Each kind under test, and the positions of it that are among `at`."""
        for kind in sorted({kind for kind, _, _ in self.keys}):
            where = torch.zeros(self.kinds.numel(), dtype=torch.bool)
            where[at[self.kinds[at] == kind]] = True
            yield kind, where.view(self.batch.kinds.shape)
