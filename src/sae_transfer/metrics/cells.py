"""Rows of a run -> one record a cell, with every column of the table and a note for every value that is missing."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sae_transfer.metrics.definitions import METRICS, Floats, Sums, ce_recovered, ce_recovered_legacy
from sae_transfer.metrics.documents import Columns, Documents
from sae_transfer.rows import CELL_KEYS, SUMS, Calibration, Scale
from sae_transfer.specs import Cell

Record = dict[str, Any]

LEGACY = "ce_recovered_legacy"

MEASURED_COLUMNS = (
    *CELL_KEYS,
    "documents",
    "tokens",
    "outliers",
    *(name for metric in METRICS for name in ((metric.name, LEGACY) if metric.name == "ce_recovered" else (metric.name,))),
    "norm_scaling_factor",
    "outlier_threshold",
    "note",
)
"""The columns of what was measured, in order."""

MEANINGS = {
    "model": "NAME of the model",
    "sae": "NAME of the SAE",
    "data": "NAME of the data set",
    "token_kind": "kind of the positions under test: all, user_prompt, rollout, control_tokens, system",
    "documents": "documents with a position under test",
    "tokens": "scored positions",
    "outliers": "outliers among the positions under test",
    LEGACY: "mean over batches of the batch's CE recovered (text, and rows without a mask); else ce_recovered",
    "norm_scaling_factor": "what activations are multiplied by before the SAE",
    "outlier_threshold": "scaled norm above which a position is an outlier; null without outliers",
    "note": "why values are missing, and what a reader of the numbers should know",
}
"""What the columns mean that are no metric by themselves."""


def records(
    measured: Mapping[Cell, Documents],
    cells: Sequence[Cell],
    calibration: Calibration,
    batched: Mapping[str, int],
    score: Callable[[Sums], Floats] = ce_recovered,
) -> list[Record]:
    """A record for each cell that was measured, in the order of `cells`.

    `batched`: rows in a batch, of the data sets whose legacy CE recovered is a mean over batches (text, and rows without a
    mask). `score`: its formula.
    """
    return [
        _record(cell, measured[cell].rows, calibration, batched.get(cell.data), score) for cell in cells if cell in measured
    ]


def empty(cell: Cell, note: str, scale: Scale | None = None) -> Record:
    """A record of a cell that was not measured; its scale is known once the run is calibrated."""
    record: Record = dict.fromkeys(MEASURED_COLUMNS)
    known = {} if scale is None else {"norm_scaling_factor": scale.factor, "outlier_threshold": scale.threshold}
    return record | _keys(cell) | known | {"note": note}


def _record(
    cell: Cell, rows: Columns, calibration: Calibration, batch_size: int | None, score: Callable[[Sums], Floats]
) -> Record:
    each = {name: rows[name].astype(np.float64) for name in SUMS}
    sums = {name: np.asarray(values.sum()) for name, values in each.items()}
    values = {metric.name: float(metric.formula(sums)) for metric in METRICS}
    reasons = {metric.name: metric.why_missing(sums) for metric in METRICS}
    values[LEGACY] = float(score(sums)) if batch_size is None else ce_recovered_legacy(rows["row"], each, batch_size, score)
    reasons[LEGACY] = reasons["ce_recovered"]
    notes = [] if sums["kept"] else ["nothing was spliced: every position under test is an outlier"]
    notes += [f"{name}: {reasons[name]}" for name, value in values.items() if not math.isfinite(value)]
    if values["ce_zero"] < values["ce_clean"]:
        notes.append("zero ablation lowers the CE, so ce_recovered measures nothing")
    elif values["ce_recovered"] > 1:
        notes.append("ce_recovered is above 1: the splice lowers the CE")
    scale = calibration.scale(cell.model, cell.sae)
    record = {
        **_keys(cell),
        "documents": len(np.unique(rows["document"])),
        "tokens": int(sums["scored"]),
        "outliers": int(sums["outliers"]),
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
        "norm_scaling_factor": scale.factor,
        "outlier_threshold": scale.threshold,
        "note": "; ".join(notes) or None,
    }
    return {column: record[column] for column in MEASURED_COLUMNS}


def _keys(cell: Cell) -> Record:
    return {"model": cell.model, "sae": cell.sae, "data": cell.data, "token_kind": cell.token_kind}
