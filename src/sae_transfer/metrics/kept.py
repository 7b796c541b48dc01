"""Two cells over the positions that both keep: L0, MSE and EV of one, without what is an outlier in the other.

Cells of the same data and token kind share their positions under test, but each model (and each SAE's threshold) has its own
outliers. A cell's sums leave out its own; what it measured at the other's lies apart (rows.APART), and is taken off here.
"""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from sae_transfer.metrics.definitions import Floats
from sae_transfer.metrics.documents import Columns, Documents
from sae_transfer.rows import APART_SUMS, CELL_KEYS, Calibration, Scale
from sae_transfer.specs import Cell

Kept = Callable[[Cell, Cell], Mapping[str, Floats] | None]
"""Of (cell, other): sums [documents] of the first over the positions that both keep; None where both keep the same."""
KEPT_SUMS = ("kept", *APART_SUMS)


def of_cell(columns: Columns, cell: Cell) -> Columns:
    """The rows of one cell, of a table that is keyed by cells (rows, apart)."""
    return _where(columns, {name: getattr(cell, name) for name in CELL_KEYS})


def outliers_of(outlying: Columns, cell: Cell, scale: Scale) -> Columns:
    """The outliers of one cell, from those of the run; `scale` is the cell's."""
    own = {"model": cell.model, "data": cell.data, "token_kind": cell.token_kind, "hook_point": scale.hook_point}
    if scale.unscaled_threshold is None:
        return {name: values[:0] for name, values in outlying.items()}
    return _where(outlying, own | {"threshold": scale.unscaled_threshold})


def between(measured: Mapping[Cell, Documents], apart: Columns, outlying: Columns, calibration: Calibration) -> Kept:
    """Sums of one cell over the positions that another keeps too; None where both keep the same."""

    @cache
    def outliers(cell: Cell) -> Columns:
        return outliers_of(outlying, cell, calibration.scale(cell.model, cell.sae))

    def kept(cell: Cell, other: Cell) -> Mapping[str, Floats] | None:
        own = of_cell(apart, cell)
        if not len(own["row"]) or not len(outliers(other)["row"]):
            return None
        both = kept_in_both(measured[cell].rows, own, outliers(other))
        return {name: both[name] for name in KEPT_SUMS}

    return kept


def kept_in_both(rows: Columns, apart: Columns, outliers: Columns) -> dict[str, Floats]:
    """Sums of a cell by document over the positions that another cell keeps too: `document`, `kept` and rows.APART_SUMS.

    `rows` and `apart` are the cell's own (`of_cell`), `outliers` the other's (`outliers_of`). Documents are those of `rows`,
    ascending; deviations stay those from the mean of all positions that the cell keeps.
    """
    documents, which = np.unique(rows["document"], return_inverse=True)
    sums = {name: np.bincount(which, weights=rows[name].astype(np.float64)) for name in KEPT_SUMS}
    theirs = set(zip(outliers["row"].tolist(), outliers["position"].tolist(), strict=True))
    places = zip(apart["row"].tolist(), apart["position"].tolist(), strict=True)
    lost = np.asarray([place in theirs for place in places], dtype=bool)
    owner = np.searchsorted(documents, apart["document"][lost])
    taken: Mapping[str, Floats] = {name: apart[name][lost].astype(np.float64) for name in APART_SUMS} | {
        "kept": np.ones(int(lost.sum()))
    }
    left = {name: sums[name] - np.bincount(owner, weights=taken[name], minlength=len(documents)) for name in KEPT_SUMS}
    return {"document": documents} | {name: np.where(left["kept"] > 0, values, 0.0) for name, values in left.items()}


def _where(columns: Columns, wanted: Mapping[str, object]) -> Columns:
    at = np.ones(len(next(iter(columns.values()))), dtype=bool)
    for name, value in wanted.items():
        at &= columns[name] == value
    return {name: values[at] for name, values in columns.items()}
