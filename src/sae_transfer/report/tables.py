"""Records -> terminal, Markdown, CSV, JSON. JSON and CSV print the records at full precision and nothing else."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sae_transfer.errors import printable
from sae_transfer.metrics.answers import TABLE_COLUMNS
from sae_transfer.metrics.cells import Record

NAMES = ("model", "sae", "data", "token_kind")

SHOWN: dict[str, tuple[str, str]] = {
    "model": ("model", ""),
    "sae": ("sae", ""),
    "data": ("data", ""),
    "token_kind": ("kind", ""),
    "documents": ("docs", ","),
    "tokens": ("tokens", ","),
    "outliers": ("out-\nliers", ","),
    "l0": ("L0", ".1f"),
    "mse": ("MSE", ",.4g"),
    "explained_variance": ("EV", ".3f"),
    "ce_clean": ("CE\nclean", ".3f"),
    "ce_spliced": ("CE\nspliced", ".3f"),
    "ce_zero": ("CE\nzero", ".3f"),
    "delta_ce": ("ΔCE", ".4f"),
    "ce_recovered": ("CE\nrec.", ".4f"),
    "kl": ("KL", ".4f"),
    "norm_scaling_factor": ("scale", ".4g"),
    "outlier_threshold": ("outlier\nabove", ".4g"),
}
"""Columns of the terminal table: heading and format. The others are left to the other formats; notes stand below it."""

LIFTED = (*NAMES, "norm_scaling_factor", "outlier_threshold")
"""Columns that stand in one line above the terminal table where they say the same everywhere."""

FIRST_TO_GO = ("documents", "ce_zero", "outliers", "ce_clean", "ce_spliced", "mse", "tokens", "norm_scaling_factor", "l0")
"""Columns that a terminal too narrow for all of them does without, in this order."""


NAMED = 3
"""Cells that are named below the table where several have the same note; the other formats have each cell's own."""


def number(value: Any, how: str = "") -> str:
    """A value for people: as the column's format says, else with four significant digits; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3e}" if abs(value) >= 1e6 else f"{value:{how or '.4g'}}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def terminal(records: Sequence[Record], footnotes: Sequence[str], width: int | None, colour: bool) -> str:
    """A table for the terminal; above it what is the same everywhere, below it notes and footnotes.

    Where `width` is too little, columns are left out and named below; None is wide enough for all.
    """
    out = io.StringIO()
    console = Console(file=out, width=10_000, force_terminal=colour, highlight=False, soft_wrap=True)
    same = [column for column in LIFTED if len(records) > 1 and len({record[column] for record in records}) == 1]
    columns = [column for column in SHOWN if column not in same]
    dropped: list[str] = []
    for column in FIRST_TO_GO:
        if width is not None and column in columns and console.measure(_table(records, columns)).maximum > width:
            columns.remove(column)
            dropped.append(column)
    if same:
        lifted = (
            f"{SHOWN[column][0].replace(chr(10), ' ')}: {number(records[0][column], SHOWN[column][1])}" for column in same
        )
        console.print(escape("   ".join(lifted)))
    table = _table(records, columns)
    Console(file=out, width=console.measure(table).maximum, force_terminal=colour, highlight=False).print(table)
    notes: dict[str, list[str]] = {}
    for record in records:
        if record["note"]:
            notes.setdefault(record["note"], []).append(" / ".join(str(record[key]) for key in NAMES))
    for note, cells in notes.items():
        more = f"; and {len(cells) - NAMED} more cells" if len(cells) > NAMED else ""
        console.print(escape(printable(f"{'; '.join(cells[:NAMED])}{more}: {note}")), style="yellow")
    if dropped:
        console.print(escape(f"Left out for width: {', '.join(dropped)}; --format csv has every column."), style="dim")
    for note in footnotes:
        console.print(escape(printable(note)), style="dim")
    return out.getvalue()


def _table(records: Sequence[Record], columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1), collapse_padding=True)
    for column in columns:
        justify: Literal["left", "right"] = "left" if column in NAMES else "right"
        table.add_column(SHOWN[column][0], justify=justify, no_wrap=True, vertical="bottom")
    for record in records:
        table.add_row(*(escape(number(record[column], SHOWN[column][1])) for column in columns))
    return table


def markdown(records: Sequence[Record], footnotes: Sequence[str], columns: Sequence[str] = TABLE_COLUMNS) -> str:
    """A Markdown table with every column, footnotes below."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for record in records:
        cells = (number(record[column]) if record[column] is not None else "" for column in columns)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, *([""] if footnotes else []), *(f"- {printable(note)}" for note in footnotes)]) + "\n"


def as_json(records: Sequence[Record], _: Sequence[str] = (), __: Sequence[str] = TABLE_COLUMNS) -> str:
    """A list of records."""
    return json.dumps(list(records), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def as_csv(records: Sequence[Record], _: Sequence[str] = (), columns: Sequence[str] = TABLE_COLUMNS) -> str:
    """A header and a line a record; a missing value is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


FORMATS: dict[str, Callable[[Sequence[Record], Sequence[str], Sequence[str]], str]] = {
    "markdown": markdown,
    "csv": as_csv,
    "json": as_json,
}
"""Formats that don't depend on the terminal."""
