"""Commands that read runs: options -> report -> print. Nothing here loads torch."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_transfer.errors import UserError

if TYPE_CHECKING:
    from sae_transfer.report.drift import Drifts
    from sae_transfer.report.run import Run

FORMATS = ("table", "markdown", "csv", "json")


def show(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    format: Annotated[str, typer.Option(help="table, markdown, csv or json.")] = "table",
) -> None:
    """Print a run's transfer matrix."""
    from sae_transfer.report.run import Run

    known_format(format)
    show_run(Run(run), format)


def known_format(format: str) -> None:
    """Raises UserError E-OPTION for a format that is none."""
    if format not in FORMATS:
        raise UserError("E-OPTION", f"--format {format!r} is not known", f"choose from {', '.join(FORMATS)}")


def show_run(run: "Run", format: str) -> None:
    """A run's records on stdout; where it lies on stderr."""
    from sae_transfer.report import tables

    records, footnotes = run.records(), run.footnotes()
    if format == "table":
        tty = sys.stdout.isatty()
        text = tables.terminal(records, footnotes, shutil.get_terminal_size().columns if tty else None, tty)
    else:
        text = tables.FORMATS[format](records, footnotes)
    sys.stdout.write(text)
    sys.stdout.flush()
    if format == "table":
        sys.stderr.write(f"run directory: {run.path}\n")


def show_drift(drifts: "Drifts", format: str) -> None:
    """A drift's records on stdout, with forecasts below the table; where they lie on stderr."""
    from sae_transfer.report import drift

    records = drifts.records()
    if format == "table":
        tty = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if tty else None
        text = drift.terminal(records, drifts.forecasts(), drifts.footnotes(), width, tty)
    else:
        text = drift.FORMATS[format](records)
    sys.stdout.write(text)
    sys.stdout.flush()
    if format == "table" and drifts.path is not None:
        sys.stderr.write(f"folder: {drifts.path}\n")
