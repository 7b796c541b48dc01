"""Where a run breaks, for people: tables by bucket, worst tokens with their context, outliers, and plain sentences."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sae_transfer.errors import visible
from sae_transfer.metrics.breakdown import BY_COLUMNS, KIND, OUTLIER_COLUMNS, WORST_COLUMNS
from sae_transfer.metrics.cells import Record
from sae_transfer.report.tables import NAMES, SHOWN, number

LEAST_TOKENS = 20
"""Fewer say nothing of a bucket."""
TIMES = 3.0
"""How many times the mean elsewhere a bucket's must be to be named."""
STANDARD_ERRORS = 4.0
"""By how many standard errors it must exceed it."""
LEAST_KL = 0.01
"""Nats below which nothing is broken."""


@dataclass(frozen=True)
class View:
    """What `show` prints of one kind of records: every column of the other formats, and those of the terminal with heading and
    format."""

    columns: tuple[str, ...]
    shown: Mapping[str, tuple[str, str]]
    first_to_go: tuple[str, ...] = ()


_CELL = {name: SHOWN[name] for name in NAMES}
BUCKETS = View(
    BY_COLUMNS,
    _CELL
    | {
        "axis": ("by", ""),
        "bucket": ("bucket", ""),
        "tokens": SHOWN["tokens"],
        "token_share": ("tokens\nshare", ".1%"),
        "kl_share": ("KL\nshare", ".1%"),
        "kl": ("KL", ".4f"),
        "kl_elsewhere": ("KL\nelsewh.", ".4f"),
        "delta_ce": ("ΔCE", ".4f"),
        "outliers": SHOWN["outliers"],
        "l0": SHOWN["l0"],
        "mse": SHOWN["mse"],
        "mse_elsewhere": ("MSE\nelsewh.", ",.4g"),
        "explained_variance": SHOWN["explained_variance"],
    },
    ("l0", "outliers", "explained_variance", "mse_elsewhere", "delta_ce", "mse", "token_share"),
)
OUTLIERS = View(
    OUTLIER_COLUMNS,
    {
        "model": ("model", ""),
        "hook_point": ("hook point", ""),
        "data": ("data", ""),
        "token_kind": ("kind", ""),
        "document": ("document", ""),
        "row": ("row", ""),
        "position": ("position", ""),
        "token": ("token", ""),
        "text": ("text", ""),
        "norm": ("norm", ",.4g"),
        "norm_in_medians": ("norm /\nmedian", ",.1f"),
        "saes": ("left out for", ""),
    },
    ("hook_point", "token", "row"),
)
WORST = View(WORST_COLUMNS, {})

PARTS = {
    "position": lambda bucket: f"positions {bucket}" if "-" in bucket else f"position {bucket}",
    "token-class": lambda bucket: f"token class {bucket}",
    "norm": lambda bucket: "outliers" if bucket == "outlier" else f"norm decile {bucket}",
    KIND: lambda bucket: f"token kind {bucket}",
    "document": lambda bucket: f"document {bucket}",
}
"""A bucket in words."""


def broken(records: Sequence[Record]) -> list[str]:
    """What stands out in records of buckets (`Run.by`), the largest share of damage first, in sentences that are exact.

    Named is a bucket of LEAST_TOKENS or more whose mean KL (for norms the squared error too) is TIMES that elsewhere in its
    cell and exceeds it by STANDARD_ERRORS. Means are compared, not shares: a share of damage can't be three times a share of
    tokens that is above a third.
    """
    found = []
    for record in records:
        if record["kl"] is not None and record["kl"] >= LEAST_KL and _stands_out(record, "kl", record["tokens"]):
            here, elsewhere = (f"{record[name]:.3g}" for name in ("kl", "kl_elsewhere"))
            where = f"KL {here} there, {elsewhere} elsewhere"
            found.append((record["kl_share"], _sentence(record, "kl_share", "KL", where)))
        if record["axis"] == "norm" and _stands_out(record, "mse", record["kept"]):
            here, elsewhere = (f"{record[name]:.3g}" for name in ("mse", "mse_elsewhere"))
            where = f"MSE {here} there, {elsewhere} elsewhere"
            found.append((record["squared_error_share"], _sentence(record, "squared_error_share", "squared error", where)))
    return [sentence for _, sentence in sorted(found, key=lambda each: -each[0])]


def _stands_out(record: Record, name: str, count: int) -> bool:
    here, elsewhere, error = (record[key] for key in (name, f"{name}_elsewhere", f"{name}_standard_error"))
    if count < LEAST_TOKENS or here is None or elsewhere is None or error is None:
        return False
    return bool(here >= TIMES * elsewhere and here - elsewhere >= STANDARD_ERRORS * error)


def _sentence(record: Record, share: str, what: str, where: str) -> str:
    cell = " / ".join(record[name] for name in NAMES if record[name])
    part = PARTS[record["axis"]](record["bucket"])
    verb = "have" if part.startswith(("positions", "outliers")) else "has"
    return (
        f"{cell}: {part} {verb} {record[share]:.0%} of the {what} in {_share(record['token_share'])} of the tokens ({where})."
    )


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def terminal(records: Sequence[Record], view: View, width: int | None, colour: bool) -> str:
    """A table for the terminal; what is the same everywhere stands above it. Where `width` is too little, columns go."""
    out = io.StringIO()
    console = Console(file=out, width=10_000, force_terminal=colour, highlight=False, soft_wrap=True)
    same = [c for c in view.shown if c in (*NAMES, "axis", "hook_point", "saes") and len({_said(r, c) for r in records}) == 1]
    columns, dropped = [column for column in view.shown if column not in same], list[str]()
    for column in view.first_to_go:
        if width is not None and column in columns and console.measure(_table(records, columns, view)).maximum > width:
            columns.remove(column)
            dropped.append(column)
    lifted = [f"{view.shown[column][0]}: {_said(records[0], column)}" for column in same if records[0][column] is not None]
    if lifted:
        console.print(escape("   ".join(lifted)))
    table = _table(records, columns, view)
    Console(file=out, width=console.measure(table).maximum, force_terminal=colour, highlight=False).print(table)
    if dropped:
        console.print(escape(f"Left out for width: {', '.join(dropped)}; --format csv has every column."), style="dim")
    return out.getvalue()


def _table(records: Sequence[Record], columns: Sequence[str], view: View) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1), collapse_padding=True)
    for column in columns:
        text = any(isinstance(record[column], str | list) for record in records)
        table.add_column(view.shown[column][0], justify="left" if text else "right", no_wrap=True, vertical="bottom")
    for record in records:
        table.add_row(*(escape(_said(record, column, view.shown[column][1])) for column in columns))
    return table


def _said(record: Record, column: str, how: str = "") -> str:
    value = record[column]
    if column == "text" and value is not None:
        return _quoted(value)
    return ", ".join(value) if isinstance(value, list) else number(value, how)


def worst(records: Sequence[Record], colour: bool) -> str:
    """Each of the worst tokens in its context, and what both models expected there."""
    out = io.StringIO()
    console = Console(file=out, width=10_000, force_terminal=colour, highlight=False, soft_wrap=True)
    cell, nth = "", 0
    for record in records:
        here = " / ".join(record[name] for name in NAMES)
        nth = nth + 1 if here == cell else 1
        if here != cell:
            console.print(escape(visible(here)), style="bold")
        cell = here
        losses = f"KL {record['kl']:.2f}   CE {record['ce_clean']:.2f} -> {record['ce_spliced']:.2f}"
        place = ", ".join(f"{name} {record[name]}" for name in ("document", "row", "position"))
        console.print(escape(f"{nth:3}. {losses}   {place}"))
        before, after = (visible(record[f"{name}_text"] or _ids(record[name])) for name in ("before", "after"))
        at, following = (_named(record[f"{name}_text"], record[name]) for name in ("token", "next"))
        console.print(f"     {escape(before)}[bold]{escape(at)}[/bold] -> [bold]{escape(following)}[/bold]{escape(after)}")
        for name in ("clean", "spliced"):
            texts = record[f"{name}_text"] or [None] * len(record[name])
            each = zip(texts, record[name], record[f"{name}_p"], strict=True)
            console.print(escape(f"     {name:7}  " + "   ".join(f"{_named(text, token)} {p:.1%}" for text, token, p in each)))
    return out.getvalue()


def _named(text: str | None, token: int) -> str:
    """A token by its text in quotes, or by its id."""
    return f"#{token}" if text is None else _quoted(text)


def _ids(tokens: Sequence[int]) -> str:
    return " ".join(f"#{token}" for token in tokens) + " " * bool(tokens)


def _quoted(text: str) -> str:
    return f"⟨{visible(text)}⟩"


def flat(value: Any) -> Any:
    """A value for one field of CSV or Markdown: a list's entries behind each other."""
    return "|".join("" if entry is None else str(entry) for entry in value) if isinstance(value, list) else value
