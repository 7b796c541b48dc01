"""Commands that read runs: options -> report -> print. Nothing here loads torch."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sae_transfer.errors import UserError

if TYPE_CHECKING:
    from sae_transfer.report.run import Run

FORMATS = ("table", "markdown", "csv", "json")


def show(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    format: Annotated[str, typer.Option(help="table, markdown, csv or json.")] = "table",
) -> None:
    """Print a run's transfer matrix."""
    from sae_transfer.report.run import Run

    if format not in FORMATS:
        raise UserError("E-OPTION", f"--format {format!r} is not known", f"choose from {', '.join(FORMATS)}")
    show_run(Run(run), format)


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
