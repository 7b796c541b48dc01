"""The same metrics by part of a cell: position, token class, norm decile, document, token kind; worst tokens and outliers.

A bucket's metrics are those of its sums. Beside them stand its shares, and what the rest of the cell has, so that a reader sees
whether damage is spread or sits somewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sae_transfer.metrics.cells import Record
from sae_transfer.metrics.definitions import METRICS, Floats, ratio
from sae_transfer.metrics.documents import Columns
from sae_transfer.rows import AXES, CELL_KEYS, OUTLIERS, SQUARES, SUMS, WORST, Calibration
from sae_transfer.specs import Cell

BUCKETS = {axis.name: axis.buckets for axis in AXES}
DOCUMENT, KIND = "document", "token-kind"
BY = (*BUCKETS, DOCUMENT, KIND)
"""What a run can be divided by."""

COMPARED = {"kl": ("kl", "scored"), "mse": ("squared_error", "kept")}
"""Means that are compared with those of the rest of the cell: their sum and its count."""
BY_COLUMNS = (
    *CELL_KEYS,
    "axis",
    "bucket",
    "tokens",
    "kept",
    "outliers",
    "token_share",
    "kl_share",
    "squared_error_share",
    *(metric.name for metric in METRICS),
    *(f"{name}_{what}" for name in COMPARED for what in ("elsewhere", "standard_error")),
    "note",
)
"""The columns that `show --by` and `Run.by()` give, in order."""

MEANINGS = {
    "axis": "what the cell is divided by",
    "bucket": "the part; a document's index, or a token kind (then `token_kind` is null)",
    "tokens": "scored positions of the bucket",
    "kept": "positions under test that are no outliers",
    "outliers": "outliers among the positions under test",
    "token_share": "its scored positions, as a share of the cell's",
    "kl_share": "its share of the cell's summed KL",
    "squared_error_share": "its share of the cell's summed squared error",
    "kl_elsewhere": "mean KL of the cell's other positions",
    "kl_standard_error": "of kl - kl_elsewhere, positions taken as independent; null by document",
    "mse_elsewhere": "MSE of the cell's other positions",
    "mse_standard_error": "of mse - mse_elsewhere, likewise",
    "note": "why metrics are missing",
}
"""What the columns mean that are no metric of the table."""

WORST_COLUMNS = tuple(column.name for column in WORST)
OUTLIER_COLUMNS = (*(column.name for column in OUTLIERS if column.name != "threshold"), "norm_in_medians", "saes")


def by(axis: str, rows: Columns, breakdown: Columns, cells: Sequence[Cell]) -> list[Record]:
    """A record for each bucket of an axis that has a position, cell by cell. `rows`, `breakdown`: the run's tables."""
    if axis == DOCUMENT:
        documents = [str(document) for document in np.unique(rows["document"])]
        return _records(axis, rows, rows["document"].astype(str), documents, cells)
    if axis == KIND:
        whole = _where(breakdown, breakdown["axis"] == AXES[0].name)  # every position has one
        kinds = list(dict.fromkeys(cell.token_kind for cell in cells))
        together = list(dict.fromkeys(replace(cell, token_kind="") for cell in cells))
        named = {**whole, "token_kind": np.full(len(whole["axis"]), "", dtype=object)}
        return [record | {"token_kind": None} for record in _records(axis, named, whole["token_kind"], kinds, together)]
    own = _where(breakdown, breakdown["axis"] == axis)
    return _records(axis, own, own["bucket"], BUCKETS[axis], cells)


def _records(axis: str, columns: Columns, bucket: Any, order: Sequence[str], cells: Sequence[Cell]) -> list[Record]:
    place = {name: index for index, name in enumerate(order)}
    number = {(cell.model, cell.sae, cell.data, cell.token_kind): index for index, cell in enumerate(cells)}
    keys = zip(*(columns[name].tolist() for name in CELL_KEYS), strict=True)
    group = np.asarray([number[key] for key in keys], dtype=np.int64) * len(order)
    group += np.asarray([place[name] for name in bucket.tolist()], dtype=np.int64)
    found, which = np.unique(group, return_inverse=True)
    sums = {name: _added(which, columns[name]) for name in (*SUMS, *SQUARES) if name in columns}
    _, owner = np.unique(found // max(len(order), 1), return_inverse=True)
    whole = {name: _added(owner, values)[owner] for name, values in sums.items()}
    values = _values(sums, whole)
    out = []
    for index, code in enumerate(found.tolist()):
        cell = cells[code // len(order)]
        each = {name: np.asarray(column[index]) for name, column in sums.items()}
        missing = [m for m in METRICS if not np.isfinite(values[m.name][index])]
        record = dict.fromkeys(BY_COLUMNS) | {name: getattr(cell, name) for name in CELL_KEYS}
        record |= {"axis": axis, "bucket": order[code % len(order)]}
        record |= {
            name: int(each[column]) for name, column in (("tokens", "scored"), ("kept", "kept"), ("outliers", "outliers"))
        }
        record |= {name: float(column[index]) if np.isfinite(column[index]) else None for name, column in values.items()}
        out.append(record | {"note": "; ".join(f"{m.name}: {m.why_missing(each)}" for m in missing) or None})
    return out


def _added(group: Any, values: Any) -> Floats:
    return np.asarray(np.bincount(group, weights=values), dtype=np.float64)


def _values(sums: Mapping[str, Floats], whole: Mapping[str, Floats]) -> dict[str, Floats]:
    """Every number of the buckets; `whole` holds the sums of each bucket's cell."""
    rest = {name: whole[name] - values for name, values in sums.items()}
    found = {metric.name: metric.formula(sums) for metric in METRICS}
    for share, name in (("token_share", "scored"), ("kl_share", "kl"), ("squared_error_share", "squared_error")):
        found[share] = ratio(sums[name], whole[name])
    for name, (total, count) in COMPARED.items():
        found[f"{name}_elsewhere"] = ratio(rest[total], rest[count])
        if f"{total}_squared" in sums:
            here, there = (_variance(part[total], part[f"{total}_squared"], part[count]) for part in (sums, rest))
            found[f"{name}_standard_error"] = np.sqrt(here + there)
    return found


def _variance(total: Floats, squared: Floats, count: Floats) -> Floats:
    """Of a mean of independent values, from their sum and sum of squares; nan with fewer than two."""
    several = np.where(count >= 2, count, np.nan)
    return np.asarray(np.maximum(squared / several - (total / several) ** 2, 0.0) / (several - 1))


def worst(columns: Columns, cells: Sequence[Cell], count: int) -> list[Record]:
    """The `count` scored positions of largest KL of each cell, worst first. `columns`: rows.WORST."""
    order = np.lexsort((columns["position"], columns["row"], -columns["kl"]))
    by_cell: dict[tuple[Any, ...], list[int]] = {}
    keys = list(zip(*(columns[name].tolist() for name in CELL_KEYS), strict=True))
    for index in order.tolist():
        by_cell.setdefault(keys[index], []).append(index)
    wanted = [i for cell in cells for i in by_cell.get((cell.model, cell.sae, cell.data, cell.token_kind), [])[:count]]
    return _picked(columns, WORST_COLUMNS, wanted)


def outliers(columns: Columns, calibration: Calibration) -> list[Record]:
    """Every outlier under test, by model, with the SAEs that leave it out. `columns`: rows.OUTLIERS."""
    saes: dict[tuple[Any, ...], list[str]] = {}
    for scale in calibration.scales:
        saes.setdefault((scale.model, scale.hook_point, scale.unscaled_threshold), []).append(scale.sae)
    found: dict[tuple[Any, ...], Record] = {}
    for record in _picked(columns, tuple(columns), range(len(columns["model"]))):
        leaving = saes[record["model"], record["hook_point"], record.pop("threshold")]
        key = tuple(record[name] for name in ("model", "hook_point", "data", "row", "position"))
        median = calibration.norms_of(record["model"], record["hook_point"]).quantiles["0.5"]
        record |= {"norm_in_medians": record["norm"] / median if median else None, "saes": []}
        found.setdefault(key, record)["saes"].extend(leaving)
    return [{name: record[name] for name in OUTLIER_COLUMNS} for record in found.values()]


def _picked(columns: Columns, names: Sequence[str], at: Sequence[int]) -> list[Record]:
    lists: dict[str, list[Any]] = {name: columns[name].tolist() for name in names}
    return [{name: lists[name][index] for name in names} for index in at]


def _where(columns: Columns, at: Any) -> dict[str, Any]:
    return {name: values[at] for name, values in columns.items()}
