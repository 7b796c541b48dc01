"""Commands that read runs: options -> report -> print. Nothing here loads torch."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from sae_transfer.errors import UserError, printable

if TYPE_CHECKING:
    from sae_transfer.report.breakdown import View
    from sae_transfer.report.drift import Drifts
    from sae_transfer.report.run import Run

Records = Sequence[dict[str, Any]]
Names = list[str]
CRITERION = (
    "How much worse than its reference an SAE may be (repeatable): up to FINE it transfers, beyond BROKEN it does not. METRIC "
    "is delta_ce (0.05:0.3), kl (0.05:0.3), explained_variance (0.1), l0 (1.5, a ratio) or ce_recovered (0.05)."
)
FORMATS = ("table", "markdown", "csv", "json")

Model = Annotated[Names | None, Option(metavar="NAME", help="Only of this model (repeatable).")]
Sae = Annotated[Names | None, Option(metavar="NAME", help="Only of this SAE (repeatable).")]
Data = Annotated[Names | None, Option(metavar="NAME", help="Only of this data set (repeatable).")]
TokenKind = Annotated[Names | None, Option(metavar="KIND", help="Only of this token kind (repeatable).")]


def show(
    run: Annotated[Path, Argument(help="A run directory.")],
    format: Annotated[str, Option(help="table, markdown, csv or json.")] = "table",
    by: Annotated[str | None, Option(help="Divide each cell by position, token-class, norm, document or token-kind.")] = None,
    worst: Annotated[int | None, Option(help="The N (1 to 20) tokens of largest KL of each cell, in context.")] = None,
    outliers: Annotated[bool, Option("--outliers", help="Every outlier under test, with its token and place.")] = False,
    criterion: Annotated[Names | None, Option(metavar="METRIC=FINE[:BROKEN]", help=CRITERION)] = None,
    model: Model = None,
    sae: Sae = None,
    data: Data = None,
    token_kind: TokenKind = None,
) -> None:
    """Print a run's verdicts and its transfer matrix, or where its cells break: by part, by worst token, by outlier."""
    from sae_transfer.metrics.verdict import criteria
    from sae_transfer.report.run import Run
    from sae_transfer.report.selection import only

    known_format(format)
    given = [name for name, value in (("--by", by), ("--worst", worst), ("--outliers", outliers or None)) if value is not None]
    if len(given) > 1:
        raise UserError("E-OPTION", f"{' and '.join(given)} are different tables", "give one at a time")
    found = Run(run, criteria(criterion or []))
    keep = only(found.cells, {"model": model, "sae": sae, "data": data, "token_kind": token_kind})
    if by is not None:
        _show_by(found, [record for record in found.by(by) if keep(record)], format)
    elif worst is not None:
        _show_worst(found, [record for record in found.worst(worst) if keep(record)], format)
    elif outliers:
        _show_outliers(found, [record for record in found.outliers() if keep(record)], format)
    else:
        show_run(found, [record for record in found.records() if keep(record)], format)


def check(
    run: Annotated[Path, Argument(help="A run directory.")],
    max_delta_ce: Annotated[float | None, Option(help="Most nats that splicing may cost.")] = None,
    max_kl: Annotated[float | None, Option(help="Most nats of KL(clean || spliced).")] = None,
    min_explained_variance: Annotated[float | None, Option(help="Least explained variance.")] = None,
    model: Model = None,
    sae: Sae = None,
    data: Data = None,
    token_kind: TokenKind = None,
) -> int:
    """Hold a run against bounds: exit code 0 where the 95% intervals keep them, 3 where one is broken, 4 where there is not
    enough data."""
    from sae_transfer.workflows import check as workflow

    bounds = {"max_delta_ce": max_delta_ce, "max_kl": max_kl, "min_explained_variance": min_explained_variance}
    found = workflow.check(run, **bounds, model=model, sae=sae, data=data, token_kind=token_kind)
    for outcome in found:
        _write(printable(workflow.line(outcome)) + "\n")
    return workflow.exit_code(found)


def known_format(format: str) -> None:
    """Raises UserError E-OPTION for a format that is none."""
    if format not in FORMATS:
        raise UserError("E-OPTION", f"--format {format!r} is not known", f"choose from {', '.join(FORMATS)}")


def show_run(run: "Run", records: Records, format: str) -> None:
    """Records of a run on stdout, in the terminal below their verdicts; where it lies on stderr."""
    from sae_transfer.metrics.answers import TABLE_COLUMNS
    from sae_transfer.report import tables

    if format == "table":
        show_verdicts(records)
        _write("\n")
        show_matrix(run, records)
    else:
        bounds = ("_low", "_high", "_change") if format == "markdown" else ()
        columns = [name for name in TABLE_COLUMNS if not name.endswith(bounds)]
        _write(tables.FORMATS[format](records, run.footnotes(), columns))
    _say_where(run, format)


def show_verdicts(records: Records) -> None:
    """The verdicts of some records, for people."""
    from sae_transfer.report import verdicts

    _write(verdicts.terminal(records, *_screen()))


def show_matrix(run: "Run", records: Records) -> None:
    """The transfer matrix, for people."""
    from sae_transfer.report import tables

    _write(tables.terminal(records, run.footnotes(), *_screen()))


def show_drift(drifts: "Drifts", format: str) -> None:
    """A drift's records on stdout, with forecasts below the table; where they lie on stderr."""
    from sae_transfer.report import drift

    records = drifts.records()
    if format == "table":
        _write(drift.terminal(records, drifts.forecasts(), drifts.footnotes(), *_screen()))
    else:
        _write(drift.FORMATS[format](records))
    if format == "table" and drifts.path is not None:
        sys.stderr.write(f"folder: {drifts.path}\n")


def _show_by(run: "Run", records: Records, format: str) -> None:
    from sae_transfer.report import breakdown

    said = "".join(f"- {sentence}\n" for sentence in breakdown.broken(records))
    text = breakdown.terminal(records, breakdown.BUCKETS, *_screen()) + (f"\n{said}" if said else "")
    _show_view(run, records, breakdown.BUCKETS, format, text)


def _show_worst(run: "Run", records: Records, format: str) -> None:
    from sae_transfer.report import breakdown

    _show_view(run, records, breakdown.WORST, format, breakdown.worst(records, _screen()[1]))


def _show_outliers(run: "Run", records: Records, format: str) -> None:
    from sae_transfer.report import breakdown

    text = breakdown.terminal(records, breakdown.OUTLIERS, *_screen()) if records else "no outliers\n"
    _show_view(run, records, breakdown.OUTLIERS, format, text)


def _show_view(run: "Run", records: Records, view: "View", format: str, table: str) -> None:
    from sae_transfer.report import tables
    from sae_transfer.report.breakdown import flat

    if format in ("markdown", "csv"):
        records = [{name: flat(value) for name, value in record.items()} for record in records]
    _write(table if format == "table" else tables.FORMATS[format](records, (), view.columns))
    _say_where(run, format)


def _screen() -> tuple[int | None, bool]:
    """Width of the terminal, None where stdout is none; and whether it is one."""
    tty = sys.stdout.isatty()
    return shutil.get_terminal_size().columns if tty else None, tty


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say_where(run: "Run", format: str) -> None:
    if format == "table":
        sys.stderr.write(f"run directory: {run.path}\n")
