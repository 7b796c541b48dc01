"""The result of `drift` as an object, and its records -> terminal, Markdown, CSV, JSON."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sae_transfer.errors import printable
from sae_transfer.report.forecast import forecast
from sae_transfer.report.tables import as_json, number
from sae_transfer.rows import DRIFT_COLUMNS
from sae_transfer.runs.drift import DriftManifest

Record = dict[str, Any]

FLOATS = ("cosine", "norm_ratio", "relative_distance", "cka", "scalar_share", "shift_share", "orthogonal_share")


class Drifts:
    """How far models moved: records, table, forecasts. `path` is its folder, None where it has none."""

    def __init__(self, manifest: DriftManifest, path: Path | None) -> None:
        self.manifest = manifest
        self.path = path

    def records(self) -> list[Record]:
        """One record a model, data set, hook point and token kind; a missing value is None, and `note` says why."""
        return [{name: asdict(entry)[name] for name in DRIFT_COLUMNS} for entry in self.manifest.drift]

    def table(self) -> Any:
        """The same as a pandas DataFrame."""
        import pandas as pd  # as in report/run.py

        frame = pd.DataFrame(self.records(), columns=list(DRIFT_COLUMNS))
        return frame.astype(dict.fromkeys(FLOATS, "float64"))

    def forecasts(self) -> list[str]:
        """A plain sentence for every model but the first."""
        records = self.records()
        return [forecast(records, model.name) for model in self.manifest.spec.models[1:]]

    def footnotes(self) -> list[str]:
        """What a reader of the table must know."""
        notes = ["Forecasts go by fixed thresholds at the worst place of each model; --layer N asks about an SAE's own layer."]
        counts = [entry.positions for entry in self.manifest.drift if entry.positions]
        if min(counts, default=self.manifest.d_model) < self.manifest.d_model:
            notes.append(f"CKA reads too high where there are fewer positions than d_model ({self.manifest.d_model}).")
        for name, data in self.manifest.data.items():
            if data.left_out:
                notes.append(
                    f"{name}: {data.left_out} of {data.documents} chats left out, longer than {data.context_size} tokens."
                )
        return notes

    def __repr__(self) -> str:
        return f"Drifts({len(self.manifest.drift)} records{f', {str(self.path)!r}' if self.path else ''})"


def _first(record: Record) -> float | None:
    return record["difference_pcs"][0] if record["difference_pcs"] else None


def _sum(record: Record) -> float | None:
    return sum(record["difference_pcs"]) if record["difference_pcs"] else None


def _short(record: Record) -> str:
    """`2 pre` for blocks.2.hook_resid_pre."""
    return re.sub(r"blocks\.(\d+)\.hook_resid_", r"\1 ", record["hook_point"])


SHOWN: dict[str, tuple[Callable[[Record], Any], str]] = {
    "model": (lambda record: record["model"], ""),
    "data": (lambda record: record["data"], ""),
    "kind": (lambda record: record["token_kind"], ""),
    "at": (_short, ""),
    "posi-\ntions": (lambda record: record["positions"], ","),
    "out-\nliers": (lambda record: record["outliers"], ","),
    "cosine": (lambda record: record["cosine"], ".3f"),
    "norm\nratio": (lambda record: record["norm_ratio"], ".4g"),
    "rel.\ndist.": (lambda record: record["relative_distance"], ".3g"),
    "CKA": (lambda record: record["cka"], ".3f"),
    "scalar\nshare": (lambda record: record["scalar_share"], ".3f"),
    "shift\nshare": (lambda record: record["shift_share"], ".3f"),
    "orth.\nshare": (lambda record: record["orthogonal_share"], ".3f"),
    "PC 1": (_first, ".3f"),
    "PC\n1-5": (_sum, ".3f"),
}
"""Columns of the terminal table: how each comes out of a record, and its format."""

NAMES = ("model", "data", "kind", "at")
"""Columns of words, which stand in one line above the table where they say the same everywhere."""

FIRST_TO_GO = ("PC 1", "out-\nliers", "shift\nshare", "PC\n1-5", "scalar\nshare", "posi-\ntions", "orth.\nshare", "rel.\ndist.")


def terminal(records: Sequence[Record], forecasts: Sequence[str], notes: Sequence[str], width: int | None, colour: bool) -> str:
    """A table, what is the same everywhere above it; notes and forecasts below. Too narrow, it does without some columns."""
    out = io.StringIO()
    console = Console(file=out, width=10_000, force_terminal=colour, highlight=False, soft_wrap=True)
    same = [name for name in NAMES if len(records) > 1 and len({SHOWN[name][0](record) for record in records}) == 1]
    columns = [name for name in SHOWN if name not in same]
    dropped: list[str] = []
    for name in FIRST_TO_GO:
        if width is not None and console.measure(_table(records, columns)).maximum > width:
            columns.remove(name)
            dropped.append(name.replace("-\n", "").replace("\n", " "))
    above = [f"compared with: {records[0]['reference']}", *(f"{name}: {SHOWN[name][0](records[0])}" for name in same)]
    console.print(escape("   ".join(printable(said) for said in above)))
    table = _table(records, columns)
    Console(file=out, width=console.measure(table).maximum, force_terminal=colour, highlight=False).print(table)
    for reason in dict.fromkeys(record["note"] for record in records if record["note"]):
        places = [f"{r['model']} / {r['data']} / {r['token_kind']} / {r['hook_point']}" for r in records if r["note"] == reason]
        more = f"; and {len(places) - 1} more" if len(places) > 1 else ""
        console.print(escape(printable(f"{places[0]}{more}: {reason}")), style="yellow")
    if dropped:
        console.print(escape(f"Left out for width: {', '.join(dropped)}; --format csv has every column."), style="dim")
    for note in notes:
        console.print(escape(printable(note)), style="dim")
    console.print()
    for sentence in forecasts:
        console.print(escape(printable(f"- {sentence}")))
    return out.getvalue()


def _table(records: Sequence[Record], columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1), collapse_padding=True)
    for column in columns:
        justify: Literal["left", "right"] = "left" if column in NAMES else "right"
        table.add_column(column, justify=justify, no_wrap=True, vertical="bottom")
    for record in records:
        table.add_row(*(escape(number(SHOWN[column][0](record), SHOWN[column][1])) for column in columns))
    return table


def markdown(records: Sequence[Record]) -> str:
    """Every column."""
    lines = ["| " + " | ".join(DRIFT_COLUMNS) + " |", "|" + " --- |" * len(DRIFT_COLUMNS)]
    for record in records:
        cells = (_text(record[name], ", ", number) for name in DRIFT_COLUMNS)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def as_csv(records: Sequence[Record]) -> str:
    """A header and a line a record; the shares of a list stand between spaces."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(DRIFT_COLUMNS)
    writer.writerows([_text(record[name], " ", str) for name in DRIFT_COLUMNS] for record in records)
    return out.getvalue()


def _text(value: Any, between: str, say: Callable[[Any], str]) -> str:
    if value is None:
        return ""
    return between.join(say(entry) for entry in value) if isinstance(value, tuple) else say(value)


FORMATS: dict[str, Callable[[Sequence[Record]], str]] = {"markdown": markdown, "csv": as_csv, "json": as_json}
