"""Measured records -> records with intervals and verdicts: what each cell is compared with, and the columns that this adds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sae_transfer.metrics import verdict
from sae_transfer.metrics.cells import LEGACY, MEASURED_COLUMNS, Record
from sae_transfer.metrics.definitions import BY_NAME, METRICS
from sae_transfer.metrics.documents import Documents
from sae_transfer.metrics.intervals import Interval, Ratio, Statistic, intervals
from sae_transfer.metrics.kept import Kept
from sae_transfer.metrics.verdict import ALONE, CRITERIA, Circumstances, Criterion, Verdict, judge
from sae_transfer.rows import Calibration, Drift, Scale
from sae_transfer.specs import Cell

BOUNDED = tuple(
    name for metric in METRICS for name in ((metric.name, LEGACY) if metric.name == "ce_recovered" else (metric.name,))
)
"""Columns that have an interval."""
ENDS = ("", "_low", "_high")
ON_BOTH = ("l0", "explained_variance")
"""Metrics that are compared over the positions that both cells keep."""
DRIFT = {
    "drift_cosine": "cosine",
    "drift_norm_ratio": "norm_ratio",
    "drift_cka": "cka",
}
"""How far the model's residual stream lies from that of the SAE's own model, at the hook point: columns, and whose they are."""
TABLE_COLUMNS = (
    *MEASURED_COLUMNS,
    "reference",
    "verdict",
    "why",
    *DRIFT,
    *(f"{name}_{bound}" for name in BOUNDED for bound in ("low", "high")),
    *(f"{criterion.metric}_change{end}" for criterion in CRITERIA for end in ENDS),
)
"""The columns that `show` and `Run.table()` give, in order. Later ones are added, none is renamed."""


def _change_in_words(criterion: Criterion) -> str:
    how = "/" if criterion.worse == "ratio" else "-"
    kept = ", over the positions that both keep" if criterion.metric in ON_BOTH else ""
    return f"{criterion.metric} {how} that of the reference{kept}; what the verdict is on"


MEANINGS = {
    "reference": "what the verdict compares with: an SAE made for this model, else the same SAE on its own model",
    "verdict": f"{', '.join(verdict.VERDICTS)}; null for an SAE on its own model",
    "why": "the verdict's reason, and what to do next",
    "drift_cosine": "mean cosine of the model's activations and the own model's, at the hook point",
    "drift_norm_ratio": "mean norm of the model's activations / the own model's",
    "drift_cka": "linear CKA of the two",
    **{f"{c.metric}_change": _change_in_words(c) for c in CRITERIA},
    **{f"{c.metric}_change_low": f"lower bound of the 95% interval of {c.metric}_change" for c in CRITERIA},
    **{f"{c.metric}_change_high": f"upper bound of the 95% interval of {c.metric}_change" for c in CRITERIA},
    **{f"{name}_low": f"lower bound of the 95% interval of {name}" for name in BOUNDED},
    **{f"{name}_high": f"upper bound of the 95% interval of {name}" for name in BOUNDED},
}


@dataclass(frozen=True)
class Reference:
    """The cell that another is compared with, and what it is called."""

    cell: Cell
    words: str


def same_positions(_: Cell, __: Cell) -> None:
    """For cells without outliers."""


def reference(cell: Cell, own: Mapping[str, str | None], cells: Mapping[Cell, Documents]) -> Reference | None:
    """The replacement reference: the first other SAE whose own model this is; else the origin reference. `own`: by SAE."""
    for sae, model in own.items():
        there = replace(cell, sae=sae)
        if model == cell.model and sae != cell.sae and there in cells:
            return Reference(there, f"SAE {sae}, made for {model}")
    origin = own.get(cell.sae)
    there = replace(cell, model=origin or "")
    return Reference(there, f"the same SAE on {origin}") if there in cells else None


def answered(
    records: Sequence[Record],
    measured: Mapping[Cell, Documents],
    own: Mapping[str, str | None],
    calibration: Calibration,
    batched: Mapping[str, int],
    criteria: Sequence[Criterion] = CRITERIA,
    kept: Kept = same_positions,
    drifts: Mapping[Cell, Drift] | None = None,
) -> list[Record]:
    """The records with every column. `batched`: rows in a batch of the data sets whose legacy CE recovered is a mean of
    batches."""
    groups: dict[tuple[str, str, bytes], dict[Cell, Documents]] = {}
    for cell, documents in measured.items():  # those of an unfinished run are over different documents
        groups.setdefault((cell.data, cell.token_kind, documents.ids.tobytes()), {})[cell] = documents
    answers: dict[Cell, Record] = {}
    by_cell = {_cell(record): record for record in records}
    for (data, _, _), cells in groups.items():
        references = {cell: reference(cell, own, measured) for cell in cells if own.get(cell.sae) != cell.model}
        group = _Group(cells, references, batched.get(data), criteria, kept)
        answers |= {cell: group.answer(cell, by_cell[cell], own.get(cell.sae), calibration) for cell in cells}
    nothing: Record = dict.fromkeys(TABLE_COLUMNS)
    moved = {cell: {column: getattr(drift, name) for column, name in DRIFT.items()} for cell, drift in (drifts or {}).items()}
    whole = [nothing | record | moved.get(_cell(record), {}) | answers.get(_cell(record), {}) for record in records]
    return [{column: record[column] for column in TABLE_COLUMNS} for record in whole]


def difference(first: Cell, second: Cell, measured: Mapping[Cell, Documents], kept: Kept) -> dict[str, Interval]:
    """Every metric of the first cell minus that of the second, over the documents that both have, in the same order; MSE, L0
    and explained variance over the positions that both keep."""
    ratios, statistics = list[Ratio](), list[Statistic]()
    for metric in METRICS:
        for cell, other in ((first, second), (second, first)):
            both = kept(cell, other) if metric.name in (*ON_BOTH, "mse") else None
            ratios.append((measured[cell] if both is None else measured[cell].over(both)).ratio(metric))
        statistics.append(Statistic(len(ratios) - 2, len(ratios) - 1))
    found = intervals(ratios, statistics)
    return {metric.name: interval for metric, interval in zip(METRICS, found, strict=True)}


class _Group:
    """The cells of one data set, token kind and set of documents: all their intervals by one bootstrap over these."""

    def __init__(
        self,
        cells: Mapping[Cell, Documents],
        references: Mapping[Cell, Reference | None],
        batch_size: int | None,
        criteria: Sequence[Criterion],
        kept: Kept,
    ) -> None:
        self._criteria = criteria
        self._references = references
        self._ratios: list[Ratio] = []
        self._statistics: list[Statistic] = []
        self._at: dict[tuple[Cell, str], int] = {}
        for cell, documents in cells.items():
            for metric in METRICS:
                self._at[cell, metric.name] = self._add(Statistic(self._ratio(documents.ratio(metric))))
            legacy = documents.ratio(BY_NAME["ce_recovered"]) if batch_size is None else documents.legacy(batch_size)
            self._at[cell, LEGACY] = self._add(Statistic(self._ratio(legacy)))
        for cell, other in self._references.items():
            if other is not None and other.cell in cells:
                for criterion in criteria:
                    self._compare(cell, other.cell, criterion, cells, kept)
        self._found = intervals(self._ratios, self._statistics)

    def _ratio(self, ratio: Ratio) -> int:
        self._ratios.append(ratio)
        return len(self._ratios) - 1

    def _add(self, statistic: Statistic) -> int:
        self._statistics.append(statistic)
        return len(self._statistics) - 1

    def _compare(self, cell: Cell, other: Cell, criterion: Criterion, cells: Mapping[Cell, Documents], kept: Kept) -> None:
        at = [self._statistics[self._at[one, criterion.metric]].first for one in (cell, other)]
        if criterion.metric in ON_BOTH:
            for index, pair in enumerate(((cell, other), (other, cell))):
                both = kept(*pair)
                if both is not None:
                    at[index] = self._ratio(cells[pair[0]].over(both).ratio(BY_NAME[criterion.metric]))
        change = Statistic(at[0], at[1], "log_ratio" if criterion.worse == "ratio" else "difference")
        self._at[cell, f"change of {criterion.metric}"] = self._add(change)

    def interval(self, cell: Cell, name: str) -> Interval | None:
        """Of a metric, or of its change from the reference; None where it was not compared."""
        at = self._at.get((cell, name))
        return None if at is None else self._found[at]

    def answer(self, cell: Cell, record: Record, own: str | None, calibration: Calibration) -> Record:
        """The columns that are added to a record. `own`: the SAE's own model."""
        bounds: Record = {}
        for name in BOUNDED:
            found = self._found[self._at[cell, name]]
            low, high = (found.low, found.high) if record[name] is not None else (math.nan, math.nan)
            bounds |= {f"{name}_low": _number(low), f"{name}_high": _number(high)}
        if cell not in self._references:
            return {"reference": None, "verdict": None, "why": f"{cell.model} is its own model", **bounds}
        changes, other = self._changes(cell), self._references[cell]
        for criterion in self._criteria:
            change = changes.get(criterion.metric, Interval(math.nan, math.nan, math.nan))
            values = (change.value, change.low, change.high)
            scaled = (math.exp(value) for value in values) if criterion.worse == "ratio" else values
            bounds |= {f"{criterion.metric}_change{end}": _number(value) for end, value in zip(ENDS, scaled, strict=True)}
        judged = self._verdict(cell, changes, circumstances(cell, record, own, calibration))
        return {"reference": None if other is None else other.words, "verdict": judged.verdict, "why": judged.why, **bounds}

    def _changes(self, cell: Cell) -> dict[str, Interval]:
        """From the reference, by metric, where they are defined."""
        changes = {c.metric: self.interval(cell, f"change of {c.metric}") for c in self._criteria}
        return {name: found for name, found in changes.items() if found is not None and math.isfinite(found.value)}

    def _verdict(self, cell: Cell, changes: Mapping[str, Interval], at: Circumstances) -> Verdict:
        other = self._references[cell]
        if other is None:
            alone = {criterion.metric: self.interval(cell, criterion.metric) for criterion in ALONE}
            return judge({name: found for name, found in alone.items() if found is not None}, None, at, ALONE)
        if (other.cell, "delta_ce") not in self._at:
            return Verdict(None, f"{other.words} is not measured on the same documents yet")
        at = replace(at, reference_delta_ce=self.interval(other.cell, "delta_ce"))
        return judge(changes, other.words, at, self._criteria)


def circumstances(cell: Cell, record: Record, origin: str | None, calibration: Calibration) -> Circumstances:
    """What decides what to do next about a cell: norms against those of the SAE's own model, and outliers that were spliced."""
    scale = calibration.scale(cell.model, cell.sae)
    norms = {one.model: one for one in calibration.norms if one.hook_point == scale.hook_point}
    ratio = None
    if origin in norms and cell.model in norms:
        theirs = _scaled_mean(calibration.scale(origin, cell.sae), norms[origin].factor_auto)
        ratio = _scaled_mean(scale, norms[cell.model].factor_auto) / theirs
    spliced = norms[cell.model].outliers if scale.threshold is None and cell.model in norms else 0
    return Circumstances(
        documents=record["documents"],
        norm_ratio=ratio,
        outliers_spliced=spliced,
        ce_recovered=record["ce_recovered"],
        explained_variance=record["explained_variance"],
    )


def _scaled_mean(scale: Scale, factor_auto: float) -> float:
    """Mean norm of the activations that the SAE gets, but for a constant: `auto` factors are 1 / the mean norm."""
    return scale.factor / factor_auto


def _cell(record: Record) -> Cell:
    return Cell(record["model"], record["sae"], record["data"], record["token_kind"])


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
