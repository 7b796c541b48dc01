"""A run directory as an object: its manifest, its rows, its table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sae_transfer.errors import UserError
from sae_transfer.metrics import breakdown
from sae_transfer.metrics.answers import BOUNDED, DRIFT, TABLE_COLUMNS, answered, difference
from sae_transfer.metrics.cells import Record, empty, records
from sae_transfer.metrics.definitions import ce_recovered, ce_recovered_published
from sae_transfer.metrics.documents import Columns, by_document
from sae_transfer.metrics.intervals import Interval
from sae_transfer.metrics.kept import between
from sae_transfer.metrics.verdict import CRITERIA, Criterion
from sae_transfer.rows import WORST_KEPT, Drift
from sae_transfer.runs.directory import read_manifest, read_outliers, read_rows
from sae_transfer.runs.manifest import Manifest
from sae_transfer.specs import Cell

FACTORS = {
    "auto": "each model's own factor, outliers left out (auto)",
    "saelens": "each model's own factor, outliers included (saelens)",
    "own": "the factor of the SAE's own model (own)",
}
"""What `--norm-scaling-factor` says, in words."""


FLOATS = (
    *BOUNDED,
    *(name for name in TABLE_COLUMNS if name.endswith(("_low", "_high", "_change"))),
    *DRIFT,
    "norm_scaling_factor",
    "outlier_threshold",
)


class Run:
    """A finished or unfinished run, read from its directory. Raises UserError E-RUN where that is none or is damaged."""

    def __init__(self, path: str | Path, criteria: Sequence[Criterion] = CRITERIA) -> None:
        self.path = Path(path)
        self.criteria = criteria
        self.manifest: Manifest = read_manifest(self.path)
        self._records: list[Record] | None = None

    @property
    def cells(self) -> list[Cell]:
        """The transfer matrix's cells, in the order of the command."""
        spec, data = self.manifest.spec, self.manifest.data
        return [
            Cell(model.name, sae.name, source.name, kind)
            for source in spec.data
            for kind in data[source.name].token_kinds
            for model in spec.models
            for sae in spec.saes
        ]

    def rows(self) -> Columns:
        """The rows of sums, by column."""
        return _columns(read_rows(self.path, self.manifest))

    def apart(self) -> Columns:
        """Positions that a cell keeps and another cell leaves out (rows.APART), by column."""
        return _columns(read_rows(self.path, self.manifest, "apart"))

    def outlying(self) -> Columns:
        """Every outlier among the positions under test (rows.OUTLIERS), by column."""
        return _columns(read_outliers(self.path, self.manifest))

    def records(self) -> list[Record]:
        """One record a cell, with intervals and a verdict by the run's criteria; one that can't be measured has nulls and a
        note."""
        if self._records is None:
            self._records = self._answered()
        return [dict(record) for record in self._records]

    def _answered(self) -> list[Record]:
        manifest = self.manifest
        batched = {name: manifest.spec.batch_size for name, data in manifest.data.items() if data.batched}
        score = ce_recovered_published if manifest.spec.published else ce_recovered
        measured = by_document(self.rows())
        found = records(measured, self.cells, manifest.calibration, batched, score)
        by_cell = {Cell(r["model"], r["sae"], r["data"], r["token_kind"]): r for r in found}
        reasons = {(skipped.model, skipped.data): skipped.reason for skipped in manifest.skipped}
        scales = {(scale.model, scale.sae): scale for scale in manifest.calibration.scales}
        for cell in self.cells:
            if cell not in by_cell:
                reason = reasons.get((cell.model, cell.data))
                scale = None if reason else scales[cell.model, cell.sae]
                by_cell[cell] = empty(cell, reason or "not measured yet", scale)
        own = {sae.name: manifest.spec.own_model(sae) for sae in manifest.spec.saes}
        return answered(
            [by_cell[cell] for cell in self.cells],
            measured,
            own,
            manifest.calibration,
            batched,
            self.criteria,
            between(measured, self.apart(), self.outlying(), manifest.calibration),
            self._drifts(own),
        )

    def _drifts(self, own: Mapping[str, str | None]) -> dict[Cell, Drift]:
        """How far each cell's model lies from its SAE's own, `own` by SAE, where the run compared them."""
        hooks = {(scale.model, scale.sae): scale.hook_point for scale in self.manifest.calibration.scales}
        by_place = {(d.reference, d.model, d.data, d.token_kind, d.hook_point): d for d in self.manifest.drift}
        places = {
            cell: (own[cell.sae] or "", cell.model, cell.data, cell.token_kind, hooks.get((cell.model, cell.sae), ""))
            for cell in self.cells
        }
        return {cell: by_place[place] for cell, place in places.items() if place in by_place}

    def drift(self, own: str, model: str, data: str, token_kind: str, hook_point: str) -> Drift | None:
        """How far a model lies from an SAE's own model where the SAE sits; None where the run has no such comparison."""
        asked = (own, model, data, token_kind, hook_point)
        found = ((d, (d.reference, d.model, d.data, d.token_kind, d.hook_point)) for d in self.manifest.drift)
        return next((entry for entry, key in found if key == asked), None)

    def difference(self, first: tuple[str, str, str, str], second: tuple[str, str, str, str]) -> dict[str, Interval]:
        """Every metric of one cell, (model, SAE, data, token kind), minus that of another, with its 95% interval, paired by
        document. Raises: UserError E-OPTION where they are not measured on the same documents."""
        cells, measured = (Cell(*first), Cell(*second)), by_document(self.rows())
        for cell in cells:
            if cell not in measured:
                raise UserError("E-OPTION", f"{' / '.join(asdict(cell).values())} is not measured in this run", "see run.cells")
        if not np.array_equal(measured[cells[0]].ids, measured[cells[1]].ids):
            raise UserError("E-OPTION", f"{first} and {second} are of different documents", "compare cells of the same data")
        return difference(*cells, measured, between(measured, self.apart(), self.outlying(), self.manifest.calibration))

    def by(self, axis: str) -> list[Record]:
        """The metrics of each cell by part: `position`, `token-class`, `norm`, `document` or `token-kind`; a record a bucket.

        Raises: UserError E-OPTION for another axis.
        """
        if axis not in breakdown.BY:
            raise UserError("E-OPTION", f"--by {axis!r} is not known", f"choose from {', '.join(breakdown.BY)}")
        rows = self.rows() if axis == breakdown.DOCUMENT else {}
        parts = {} if axis == breakdown.DOCUMENT else _columns(read_rows(self.path, self.manifest, "breakdown"))
        return breakdown.by(axis, rows, parts, self.cells)

    def worst(self, count: int = WORST_KEPT) -> list[Record]:
        """The `count` scored positions of largest KL of each cell, worst first, with context and what both models expected.

        Raises: UserError E-OPTION where more are asked for than a run keeps.
        """
        if not 1 <= count <= WORST_KEPT:
            raise UserError(
                "E-OPTION", f"--worst {count} can't be had", f"give a number from 1 to {WORST_KEPT}, which a run keeps"
            )
        return breakdown.worst(_columns(read_rows(self.path, self.manifest, "worst")), self.cells, count)

    def outliers(self) -> list[Record]:
        """Every outlier among the positions under test: its token, place and norm, and the SAEs that leave it out."""
        return breakdown.outliers(self.outlying(), self.manifest.calibration)

    def table(self) -> Any:
        """The same as a pandas DataFrame, a row a cell."""
        import pandas as pd  # a third of a second that `show` need not pay

        frame = pd.DataFrame(self.records(), columns=list(TABLE_COLUMNS))
        return frame.astype(dict.fromkeys(FLOATS, "float64"))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.manifest.status}, {len(self.cells)} cells)"

    def footnotes(self) -> list[str]:
        """What a reader of the table must know: scaling, outliers, whose the text is, what was left out, what is unfinished."""
        manifest = self.manifest
        notes = []
        wants = {scale.sae: scale.asked_for for scale in manifest.calibration.scales}
        asking = [sae for sae, asked in wants.items() if asked]
        others = [sae for sae, asked in wants.items() if not asked]
        if asking:
            factor = manifest.spec.norm_scaling_factor
            notes.append(f"Norm scaling is asked for by {', '.join(asking)}: {FACTORS.get(str(factor), 'the number given')}.")
        if others:
            what = "factor 1, so own and other models get the same scale"
            notes.append(f"Norm scaling is not asked for by {', '.join(others)}: {what}.")
        by_model = {norms.model: norms.scaled_by for norms in manifest.calibration.norms}
        if asking and len(set(by_model.values())) > 1:
            said = ", ".join(f"{model} by {data}" for model, data in by_model.items())
            notes.append(f"Not all models can read the same data, so their factors come from different ones: {said}.")
        numeric = isinstance(manifest.spec.outlier_threshold, float)
        if numeric and len({scale.factor for scale in manifest.calibration.scales}) > 1:
            notes.append("The outlier threshold is on scaled norms: SAEs whose factors differ can have different outliers.")
        for ref in manifest.spec.data:
            if ref.kind == "text" and (learnt := self._trained_on(ref.source)):
                what = f"the first {manifest.data[ref.name].documents:,} documents of {ref.source}"
                notes.append(f"{ref.name}: {what}, the training data by the config of {', '.join(learnt)}.")
        for name, data in manifest.data.items():
            if data.left_out:
                notes.append(
                    f"{name}: {data.left_out} of {data.documents} chats left out, longer than {data.context_size} tokens."
                )
        if manifest.status != "done":
            notes.append("This run is unfinished: the same command resumes it.")
        return notes

    def _trained_on(self, dataset: str) -> list[str]:
        """SAEs whose configs say that they were trained on a data set."""
        about = {name: source.about for name, source in self.manifest.sources.items()}
        names = (sae.name for sae in self.manifest.spec.saes)
        return [name for name in names if about.get(f"sae:{name}", {}).get("dataset") == dataset]


def _columns(table: pa.Table) -> Columns:
    return {name: _numpy(column) for name, column in zip(table.column_names, table.columns, strict=True)}


def _numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column as numpy, without pyarrow's own conversion: that loads pandas, a third of a second for `show`."""
    if not len(column):
        return np.empty(0, dtype={pa.int64(): np.int64, pa.float64(): np.float64}.get(column.type, object))
    array = column.combine_chunks()
    if pa.types.is_string(column.type) or pa.types.is_list(column.type):
        values = np.empty(len(array), dtype=object)
        values[:] = array.to_pylist()
        return values
    return np.from_dlpack(array)
