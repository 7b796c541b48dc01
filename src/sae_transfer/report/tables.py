"""Records -> terminal, Markdown, CSV, JSON. JSON and CSV print the records at full precision and nothing else."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sae_transfer.metrics.cells import TABLE_COLUMNS, Record

HEADINGS = {
    "token_kind": "tokens of",
    "documents": "docs",
    "l0": "L0",
    "mse": "MSE",
    "explained_variance": "EV",
    "ce_clean": "CE clean",
    "ce_spliced": "CE spliced",
    "ce_zero": "CE zero",
    "delta_ce": "ΔCE",
    "ce_recovered": "CE rec.",
    "kl": "KL",
    "norm_scaling_factor": "scale",
    "outlier_threshold": "outlier above",
}
"""Short headings of the terminal table; columns without one keep their name."""

HIDDEN = ("explained_variance_legacy", "ce_recovered_legacy", "note")
"""Columns that the terminal table leaves to the other formats; notes stand below it."""

LIFTED = ("model", "sae", "data", "token_kind", "norm_scaling_factor", "outlier_threshold")
"""Columns that stand in one line above the terminal table where they say the same everywhere."""


def number(value: Any) -> str:
    """A value for people: four significant digits, thousands separated, a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def terminal(records: Sequence[Record], footnotes: Sequence[str], width: int | None, colour: bool) -> str:
    """A table for the terminal; above it what is the same everywhere, below it notes and footnotes."""
    shown = [column for column in TABLE_COLUMNS if column not in HIDDEN]
    same = [column for column in LIFTED if len(records) > 1 and len({record[column] for record in records}) == 1]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1), collapse_padding=True)
    columns = [column for column in shown if column not in same]
    for column in columns:
        text = column in ("model", "sae", "data", "token_kind")
        table.add_column(HEADINGS.get(column, column), justify="left" if text else "right", no_wrap=True)
    for record in records:
        table.add_row(*(escape(number(record[column])) for column in columns))
    out = io.StringIO()
    needed = Console(file=out, width=1000).measure(table).maximum
    console = Console(file=out, width=max(width or 0, needed), force_terminal=colour, highlight=False)
    if same:
        console.print(escape("   ".join(f"{HEADINGS.get(column, column)}: {number(records[0][column])}" for column in same)))
    console.print(table)
    for record in records:
        if record["note"]:
            cell = " / ".join(str(record[key]) for key in ("model", "sae", "data", "token_kind"))
            console.print(escape(f"{cell}: {record['note']}"), style="yellow")
    for note in footnotes:
        console.print(escape(note), style="dim")
    return out.getvalue()


def markdown(records: Sequence[Record], footnotes: Sequence[str]) -> str:
    """A Markdown table with every column, footnotes below."""
    lines = ["| " + " | ".join(TABLE_COLUMNS) + " |", "|" + " --- |" * len(TABLE_COLUMNS)]
    for record in records:
        cells = (number(record[column]) if record[column] is not None else "" for column in TABLE_COLUMNS)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, *([""] if footnotes else []), *(f"- {note}" for note in footnotes)]) + "\n"


def as_json(records: Sequence[Record], _: Sequence[str] = ()) -> str:
    """A list of records."""
    return json.dumps(list(records), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def as_csv(records: Sequence[Record], _: Sequence[str] = ()) -> str:
    """A header and a line a record; a missing value is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, TABLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


FORMATS: dict[str, Callable[[Sequence[Record], Sequence[str]], str]] = {
    "markdown": markdown,
    "csv": as_csv,
    "json": as_json,
}
"""Formats that don't depend on the terminal."""
