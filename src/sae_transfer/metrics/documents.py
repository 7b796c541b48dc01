"""Rows of a cell -> its sums by document, the unit of resampling, and the ratios whose intervals are wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_transfer.metrics.definitions import Floats, Metric, ce_recovered, total
from sae_transfer.metrics.intervals import Ratio
from sae_transfer.rows import CELL_KEYS, SUMS
from sae_transfer.specs import Cell

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Documents:
    """One cell's sums [documents], by column: token rows that share a document are one unit. `rows` are the cell's own rows."""

    ids: NDArray[np.int64]
    sums: Mapping[str, Floats]
    rows: Columns

    def ratio(self, metric: Metric) -> Ratio:
        """A metric as a ratio of sums over documents."""
        return Ratio(total(self.sums, metric.over), total(self.sums, metric.under))

    def over(self, sums: Mapping[str, Floats]) -> "Documents":
        """With other sums [documents] in some columns: those over fewer positions."""
        return Documents(self.ids, {**self.sums, **sums}, self.rows)

    def legacy(self, batch_size: int) -> Ratio:
        """The mean over batches of CE recovered, linearised: each document's influence on it, by which it is resampled.

        nan where a batch has no defined score.
        """
        _, which = np.unique(self.rows["row"] // batch_size, return_inverse=True)
        each = {name: self.rows[name].astype(np.float64) for name in ("ce_clean", "ce_spliced", "ce_zero", "scored")}
        batch = {name: _added(which, values) for name, values in each.items()}
        used = batch["scored"] > 0
        score = np.where(used, ce_recovered({**batch, "kept": batch["scored"]}), 0.0)
        damage = np.where(used, batch["ce_zero"] - batch["ce_clean"], 1.0)
        residual = each["ce_zero"] - each["ce_spliced"] - score[which] * (each["ce_zero"] - each["ce_clean"])
        influence = residual / damage[which] / max(used.sum(), 1)
        _, document = np.unique(self.rows["document"], return_inverse=True)
        mean = float(score[used].mean()) if used.any() else np.nan
        return Ratio(mean + len(self.ids) * _added(document, influence), np.ones(len(self.ids)))


def by_document(rows: Columns) -> dict[Cell, Documents]:
    """Every cell that has rows."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, key in enumerate(zip(*(rows[name].tolist() for name in CELL_KEYS), strict=True)):
        groups.setdefault(key, []).append(index)
    return {Cell(*key): _of({name: rows[name][at] for name in ("document", "row", *SUMS)}) for key, at in groups.items()}


def _of(rows: Columns) -> Documents:
    ids, document = np.unique(rows["document"], return_inverse=True)
    return Documents(ids, {name: _added(document, rows[name].astype(np.float64)) for name in SUMS}, rows)


def _added(where: NDArray[np.intp], values: Floats) -> Floats:
    """Values added up by the index that each goes to."""
    return np.asarray(np.bincount(where, weights=values), dtype=np.float64)
