"""Commands that read runs: options -> report -> print. Nothing here loads torch."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from sae_transfer.errors import UserError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_transfer.metrics.cells import Record
    from sae_transfer.report.drift import Drifts
    from sae_transfer.report.run import Run

Many = list[str]
CRITERION = (
    "How much worse than its reference an SAE may be: up to FINE it transfers, beyond BROKEN it does not. METRIC is delta_ce "
    "(0.05:0.3), kl (0.05:0.3), explained_variance (0.1), l0 (1.5, a ratio) or ce_recovered (0.05)."
)
FORMATS = ("table", "markdown", "csv", "json")


def show(
    run: Annotated[Path, Argument(help="A run directory.")],
    format: Annotated[str, Option(help="table, markdown, csv or json.")] = "table",
    criterion: Annotated[Many | None, Option(metavar="METRIC=FINE[:BROKEN]", help=CRITERION)] = None,
) -> None:
    """Print a run's verdicts and its transfer matrix.

    --criterion may be given several times.
    """
    from sae_transfer.metrics.verdict import criteria
    from sae_transfer.report.run import Run

    known_format(format)
    show_run(Run(run, criteria(criterion or [])), format)


def known_format(format: str) -> None:
    """Raises UserError E-OPTION for a format that is none."""
    if format not in FORMATS:
        raise UserError("E-OPTION", f"--format {format!r} is not known", f"choose from {', '.join(FORMATS)}")


def check(
    run: Annotated[Path, Argument(help="A run directory.")],
    max_delta_ce: Annotated[float | None, Option(help="Most nats that splicing may cost.")] = None,
    max_kl: Annotated[float | None, Option(help="Most nats of KL(clean || spliced).")] = None,
    min_explained_variance: Annotated[float | None, Option(help="Least explained variance.")] = None,
    model: Annotated[Many | None, Option(help="Only cells of this model.")] = None,
    sae: Annotated[Many | None, Option(help="Only cells of this SAE.")] = None,
    data: Annotated[Many | None, Option(help="Only cells of this data set.")] = None,
    token_kind: Annotated[Many | None, Option(help="Only cells of this token kind.")] = None,
) -> int:
    """Hold a run against bounds: exit code 0 where the 95% intervals keep them, 3 where one is broken, 4 where there is not
    enough data.

    --model, --sae, --data and --token-kind may be given several times.
    """
    from sae_transfer.workflows import check as workflow

    bounds = {"max_delta_ce": max_delta_ce, "max_kl": max_kl, "min_explained_variance": min_explained_variance}
    found = workflow.check(run, **bounds, model=model, sae=sae, data=data, token_kind=token_kind)
    for outcome in found:
        _write(printable(workflow.line(outcome)) + "\n")
    return workflow.exit_code(found)


def show_run(run: "Run", format: str) -> None:
    """A run's records on stdout, in the terminal below its verdicts; where it lies on stderr."""
    from sae_transfer.report import tables

    if format == "table":
        show_verdicts(run.records())
        _write("\n")
        show_matrix(run)
        sys.stderr.write(f"run directory: {run.path}\n")
    else:
        sys.stdout.write(tables.FORMATS[format](run.records(), run.footnotes()))


def show_verdicts(records: "Sequence[Record]") -> None:
    """The verdicts of some records, for people."""
    from sae_transfer.report import verdicts

    _write(verdicts.terminal(records, *_terminal()))


def show_matrix(run: "Run") -> None:
    """A run's transfer matrix, for people."""
    from sae_transfer.report import tables

    _write(tables.terminal(run.records(), run.footnotes(), *_terminal()))


def _terminal() -> tuple[int | None, bool]:
    """Its width, None where stdout is none, and whether it is one."""
    tty = sys.stdout.isatty()
    return shutil.get_terminal_size().columns if tty else None, tty


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def show_drift(drifts: "Drifts", format: str) -> None:
    """A drift's records on stdout, with forecasts below the table; where they lie on stderr."""
    from sae_transfer.report import drift

    records = drifts.records()
    if format == "table":
        _write(drift.terminal(records, drifts.forecasts(), drifts.footnotes(), *_terminal()))
    else:
        _write(drift.FORMATS[format](records))
    if format == "table" and drifts.path is not None:
        sys.stderr.write(f"folder: {drifts.path}\n")
