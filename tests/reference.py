"""docs/reference.md out of the code: `python -m tests.reference` writes it, tests/test_docs.py holds it."""

from pathlib import Path

import typer.main

from sae_transfer.cli.app import app
from sae_transfer.errors import CODES
from sae_transfer.metrics.answers import MEANINGS as ANSWERS
from sae_transfer.metrics.answers import TABLE_COLUMNS
from sae_transfer.metrics.breakdown import BY_COLUMNS
from sae_transfer.metrics.breakdown import MEANINGS as PARTS
from sae_transfer.metrics.cells import MEANINGS
from sae_transfer.metrics.definitions import METRICS
from sae_transfer.rows import APART, AXES, BREAKDOWN, COLUMNS, DRIFT_COLUMNS, OUTLIERS, WORST

EXIT_CODES = {
    0: "done",
    2: "a mistake that the line on stderr lets you mend",
    3: "`check` alone: a bound is broken",
    4: "`check` alone: there is not enough data to tell",
    130: "interrupted; the same command goes on",
    1: "anything else: one line, and the path of a log with the traceback",
}
TABLES = (
    ("Columns of the rows", "`RUN/rows/*.parquet`: sums over the positions of one document in one token row.", COLUMNS),
    (
        "Columns of the breakdown",
        "`RUN/breakdown/*.parquet`: sums over the positions of one bucket, a unit of work.",
        BREAKDOWN,
    ),
    (
        "Columns of the worst tokens",
        "`RUN/worst/*.parquet`: the 20 scored positions of largest KL of a unit of work, SAE and token kind; `show --worst` "
        "and `Run.worst()` give the 20 of a cell.",
        WORST,
    ),
    (
        "Columns of the outliers",
        "`RUN/outliers.parquet`, found while calibrating. `show --outliers` and `Run.outliers()` give each once, with "
        "`norm_in_medians` (its norm in medians of the model's) and `saes` (those that leave it out) instead of the threshold.",
        OUTLIERS,
    ),
    (
        "Columns of what is measured apart",
        "`RUN/apart/*.parquet`, where there is any: positions that a cell keeps and another cell of the same data and token "
        "kind leaves out, so that the two can be compared over what both keep.",
        APART,
    ),
)
PATH = Path(__file__).parents[1] / "docs" / "reference.md"


def reference() -> str:
    """The whole page."""
    lines = ["# Reference", "", "Written by `python -m tests.reference` from the code.", ""]
    for name, command in sorted(typer.main.get_command(app).commands.items()):  # type: ignore[attr-defined]
        lines += [f"## sae-transfer {name}", "", command.help, "", "| option | meaning |", "| --- | --- |"]
        for option in command.params:
            named = option.param_type_name == "argument"
            title = option.name.upper() if named else ", ".join([*option.opts, *option.secondary_opts])
            lines.append(f"| `{title}` | {option.help} |")
        lines.append("")
    lines += ["## Columns of the table", "", "`show` and `Run.table()`; definitions.md has the formulas.", ""]
    lines += ["| column | unit | meaning |", "| --- | --- | --- |"]
    metrics = {metric.name: metric for metric in METRICS}
    for column in TABLE_COLUMNS:
        metric = metrics.get(column)
        doc = (MEANINGS | ANSWERS)[column] if metric is None else metric.meaning.replace("|", "\\|")
        lines.append(f"| `{column}` | {metric.unit if metric else ''} | {doc} |")
    lines += ["", "## Columns by part", "", "`show --by` and `Run.by()`: these beside the metrics above.", ""]
    lines += ["| column | meaning |", "| --- | --- |"]
    lines += [f"| `{column}` | {PARTS[column]} |" for column in BY_COLUMNS if column in PARTS]
    lines += ["", "| axis | buckets | meaning |", "| --- | --- | --- |"]
    for axis in AXES:
        few = ", ".join(axis.buckets if len(axis.buckets) < 20 else (*axis.buckets[:11], "..."))
        lines.append(f"| `{axis.name}` | {few} | {axis.meaning} |")
    for title, where, columns in TABLES:
        lines += ["", f"## {title}", "", where, "", "| column | adds up | unit | meaning |", "| --- | --- | --- | --- |"]
        for row in columns:
            meaning = row.meaning.replace("|", "\\|")
            lines.append(f"| `{row.name}` | {'yes' if row.role in ('count', 'sum') else 'no'} | {row.unit} | {meaning} |")
    lines += ["", "## Columns of drift", "", "`drift` and its `.table()`; drift.md has the formulas.", ""]
    lines += ["| column | unit | meaning |", "| --- | --- | --- |"]
    for name, (unit, meaning) in DRIFT_COLUMNS.items():
        said = meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {unit} | {said} |")
    lines += ["", "## Exit codes", "", "| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    lines += ["", "## Error codes", "", "| code | meaning |", "| --- | --- |"]
    lines += [f"| `{code}` | {text} |" for code, text in CODES.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(reference(), encoding="utf-8")
