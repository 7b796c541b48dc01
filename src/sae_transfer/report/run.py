"""A run directory as an object: its manifest, its rows, its table."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sae_transfer.errors import UserError
from sae_transfer.metrics import breakdown
from sae_transfer.metrics.cells import LEGACY, TABLE_COLUMNS, Columns, Record, empty, records
from sae_transfer.metrics.definitions import METRICS, ce_recovered, ce_recovered_published
from sae_transfer.rows import WORST_KEPT
from sae_transfer.runs.directory import read_manifest, read_outliers, read_rows
from sae_transfer.runs.manifest import Manifest
from sae_transfer.specs import Cell

FACTORS = {
    "auto": "each model's own factor, outliers left out (auto)",
    "saelens": "each model's own factor, outliers included (saelens)",
    "own": "the factor of the SAE's own model (own)",
}
"""What `--norm-scaling-factor` says, in words."""


FLOATS = (*(metric.name for metric in METRICS), LEGACY, "norm_scaling_factor", "outlier_threshold")


class Run:
    """A finished or unfinished run, read from its directory. Raises UserError E-RUN where that is none or is damaged."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)

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
        """One record a cell; cells that can't be measured have nulls and a note."""
        manifest = self.manifest
        batched = frozenset(name for name, data in manifest.data.items() if data.batched)
        score = ce_recovered_published if manifest.spec.published else ce_recovered
        measured = records(self.rows(), self.cells, manifest.calibration, batched, manifest.spec.batch_size, score)
        by_cell = {Cell(r["model"], r["sae"], r["data"], r["token_kind"]): r for r in measured}
        reasons = {(skipped.model, skipped.data): skipped.reason for skipped in manifest.skipped}
        scales = {(scale.model, scale.sae): scale for scale in manifest.calibration.scales}
        for cell in self.cells:
            if cell not in by_cell:
                reason = reasons.get((cell.model, cell.data))
                scale = None if reason else scales[cell.model, cell.sae]
                by_cell[cell] = empty(cell, reason or "not measured yet", scale)
        return [by_cell[cell] for cell in self.cells]

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
        """What a reader of the table must know: scaling, outliers, what was left out, what is unfinished."""
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
        for name, data in manifest.data.items():
            if data.left_out:
                notes.append(
                    f"{name}: {data.left_out} of {data.documents} chats left out, longer than {data.context_size} tokens."
                )
        if manifest.status != "done":
            notes.append("This run is unfinished: the same command resumes it.")
        return notes


def _columns(table: pa.Table) -> Columns:
    return {name: _numpy(column.combine_chunks()) for name, column in zip(table.column_names, table.columns, strict=True)}


def _numpy(column: pa.Array) -> NDArray[Any]:
    """A column as numpy, without pyarrow's own conversion: that loads pandas, a third of a second for `show`."""
    if pa.types.is_string(column.type) or pa.types.is_list(column.type):
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    return np.from_dlpack(column)
