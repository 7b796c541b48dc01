"""Outliers by name: found while calibrating, and measured apart by cells that keep what another cell leaves out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae_transfer.data.packing import NOT_UNDER_TEST, TokenBatch
from sae_transfer.engine.splice import outliers
from sae_transfer.engine.watching import Seen
from sae_transfer.rows import APART_SUMS, OUTLIERS, Block
from sae_transfer.specs import TOKEN_KINDS

Columns = dict[str, NDArray[Any]]
WITHOUT_TEXT = tuple(column.name for column in OUTLIERS if column.role != "text")
LONGEST = 2**32
"""No token row is longer."""


def outlying(
    model: str,
    hook_point: str,
    threshold: float,
    data: str,
    tokens: TokenBatch,
    norms: Float[Tensor, "batch pos"],
) -> Columns:
    """The positions under test above a threshold, as columns of rows.OUTLIERS without their text."""
    at = (outliers(norms, threshold).cpu() & (tokens.kinds != NOT_UNDER_TEST)).nonzero()
    row, column = at[:, 0], at[:, 1]
    place = tokens.mask.long().cumsum(-1) - 1
    count = len(at)
    return {
        "model": np.full(count, model, dtype=object),
        "hook_point": np.full(count, hook_point, dtype=object),
        "threshold": np.full(count, threshold),
        "data": np.full(count, data, dtype=object),
        "token_kind": np.asarray(TOKEN_KINDS, dtype=object)[tokens.kinds[row, column].numpy()],
        "document": tokens.documents[row, column].numpy(),
        "row": tokens.rows[row].numpy(),
        "position": place[row, column].numpy(),
        "token": tokens.tokens[row, column].numpy(),
        "norm": norms.cpu()[row, column].double().numpy(),
    }


def together(found: Sequence[Columns]) -> Columns:
    """All of them in a fixed order: by model, data set, token row and position."""
    joined = {name: np.concatenate([each[name] for each in found] or [np.empty(0)]) for name in WITHOUT_TEXT}
    order = np.lexsort((joined["position"], joined["row"], joined["data"].astype(str), joined["model"].astype(str)))
    return {name: values[order] for name, values in joined.items()}


@dataclass(frozen=True)
class Apart:
    """Watches for positions that a cell keeps and another cell of the data set leaves out: `elsewhere`, token row by row."""

    model: str
    data: str
    elsewhere: Int[Tensor, " positions"]
    """Sorted, each as `_keys` writes it."""
    found: list[Block] = field(default_factory=list)
    table = "apart"

    @classmethod
    def of(cls, model: str, data: str, found: Mapping[str, NDArray[Any]]) -> "Apart":
        """For one unit, from the run's outliers (rows.OUTLIERS)."""
        own = found["data"] == data
        rows, positions = (torch.from_numpy(found[name][own].astype(np.int64)) for name in ("row", "position"))
        return cls(model, data, torch.unique(_keys(rows, positions)))

    def see(self, seen: Seen) -> None:
        """Keep what such positions add to the sums over kept positions."""
        if not len(self.elsewhere):
            return
        positions = seen.positions
        keys = _keys(positions.rows, positions.places)
        nearest = self.elsewhere[torch.searchsorted(self.elsewhere, keys).clamp(max=len(self.elsewhere) - 1)]
        at = ((nearest == keys) & (seen.of("kept") > 0)).nonzero().squeeze(-1)
        if not len(at):
            return
        owners = [positions.keys[group] for group in positions.group[at].tolist()]
        self.found.append(
            {
                **{name: [value] * len(at) for name, value in (("model", self.model), ("sae", seen.sae), ("data", self.data))},
                "token_kind": [TOKEN_KINDS[kind] for kind, _, _ in owners],
                "document": [document for _, _, document in owners],
                "row": positions.rows[at].tolist(),
                "position": positions.places[at].tolist(),
                **{name: seen.of(name)[at].tolist() for name in APART_SUMS},
            }
        )

    def blocks(self) -> list[Block]:
        """Rows of rows.APART."""
        return self.found


def _keys(rows: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    return rows * LONGEST + positions
