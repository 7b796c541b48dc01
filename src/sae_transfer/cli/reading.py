"""Commands that read runs: options -> report -> print. Nothing here loads torch."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_transfer.errors import UserError

if TYPE_CHECKING:
    from sae_transfer.report.breakdown import View
    from sae_transfer.report.run import Run

FORMATS = ("table", "markdown", "csv", "json")
Names = list[str]


def show(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    format: Annotated[str, typer.Option(help="table, markdown, csv or json.")] = "table",
    by: Annotated[
        str | None, typer.Option(help="Divide each cell by position, token-class, norm, document or token-kind.")
    ] = None,
    worst: Annotated[int | None, typer.Option(help="The N (1 to 20) tokens of largest KL of each cell, in context.")] = None,
    outliers: Annotated[bool, typer.Option("--outliers", help="Every outlier under test, with its token and place.")] = False,
    model: Annotated[Names | None, typer.Option(metavar="NAME", help="Only of this model (repeatable).")] = None,
    sae: Annotated[Names | None, typer.Option(metavar="NAME", help="Only of this SAE (repeatable).")] = None,
    data: Annotated[Names | None, typer.Option(metavar="NAME", help="Only of this data set (repeatable).")] = None,
    token_kind: Annotated[Names | None, typer.Option(metavar="KIND", help="Only of this token kind (repeatable).")] = None,
) -> None:
    """Print a run's transfer matrix, or where its cells break: by part, by worst token, by outlier."""
    from sae_transfer.report.run import Run

    if format not in FORMATS:
        raise UserError("E-OPTION", f"--format {format!r} is not known", f"choose from {', '.join(FORMATS)}")
    given = [name for name, value in (("--by", by), ("--worst", worst), ("--outliers", outliers or None)) if value is not None]
    if len(given) > 1:
        raise UserError("E-OPTION", f"{' and '.join(given)} are different tables", "give one at a time")
    found = Run(run)
    keep = _only(found, {"model": model, "sae": sae, "data": data, "token_kind": token_kind})
    if by is not None:
        _show_by(found, [record for record in found.by(by) if keep(record)], format)
    elif worst is not None:
        _show_worst(found, [record for record in found.worst(worst) if keep(record)], format)
    elif outliers:
        _show_outliers(found, [record for record in found.outliers() if keep(record)], format)
    else:
        show_run(found, format, keep)


def show_run(run: "Run", format: str, keep: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
    """A run's records on stdout; where it lies on stderr."""
    from sae_transfer.metrics.cells import TABLE_COLUMNS
    from sae_transfer.report import tables

    records, footnotes = [record for record in run.records() if keep(record)], run.footnotes()
    if format == "table":
        text = tables.terminal(records, footnotes, *_screen())
    else:
        text = tables.FORMATS[format](records, footnotes, TABLE_COLUMNS)
    _print(run, text, format)


def _show_by(run: "Run", records: Sequence[dict[str, Any]], format: str) -> None:
    from sae_transfer.report import breakdown

    said = "".join(f"- {sentence}\n" for sentence in breakdown.broken(records))
    text = breakdown.terminal(records, breakdown.BUCKETS, *_screen()) + (f"\n{said}" if said else "")
    _print_view(run, records, breakdown.BUCKETS, format, text)


def _show_worst(run: "Run", records: Sequence[dict[str, Any]], format: str) -> None:
    from sae_transfer.report import breakdown

    _print_view(run, records, breakdown.WORST, format, breakdown.worst(records, _screen()[1]))


def _show_outliers(run: "Run", records: Sequence[dict[str, Any]], format: str) -> None:
    from sae_transfer.report import breakdown

    text = breakdown.terminal(records, breakdown.OUTLIERS, *_screen()) if records else "no outliers\n"
    _print_view(run, records, breakdown.OUTLIERS, format, text)


def _only(run: "Run", wanted: Mapping[str, Names | None]) -> Callable[[dict[str, Any]], bool]:
    """Which records are asked for. Raises UserError E-OPTION for a name that no cell has."""
    for key, names in wanted.items():
        known = list(dict.fromkeys(getattr(cell, key) for cell in run.cells))
        for name in names or ():
            if name not in known:
                option = f"--{key.replace('_', '-')}"
                raise UserError("E-OPTION", f"{option} {name!r} is not in this run", f"choose from {', '.join(known)}")

    def keep(record: dict[str, Any]) -> bool:
        return all(not names or _among(record, key, names) for key, names in wanted.items())

    return keep


def _among(record: dict[str, Any], key: str, names: Names) -> bool:
    """Whether a record is of one of the names; an outlier is of every SAE that leaves it out, a part by kind of its bucket."""
    if key == "sae" and "saes" in record:
        return bool(set(record["saes"]) & set(names))
    return (record["bucket"] if key == "token_kind" and record[key] is None else record[key]) in names


def _screen() -> tuple[int | None, bool]:
    """Width of the terminal, None where stdout is none; and whether it is one."""
    tty = sys.stdout.isatty()
    return shutil.get_terminal_size().columns if tty else None, tty


def _print_view(run: "Run", records: Sequence[dict[str, Any]], view: "View", format: str, table: str) -> None:
    from sae_transfer.report import tables
    from sae_transfer.report.breakdown import flat

    if format in ("markdown", "csv"):
        records = [{name: flat(value) for name, value in record.items()} for record in records]
    _print(run, table if format == "table" else tables.FORMATS[format](records, (), view.columns), format)


def _print(run: "Run", text: str, format: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
    if format == "table":
        sys.stderr.write(f"run directory: {run.path}\n")
