"""docs/reference.md out of the code: `python -m tests.reference` writes it, tests/test_docs.py holds it."""

from pathlib import Path

import typer.main

from sae_transfer.cli.app import app
from sae_transfer.errors import CODES
from sae_transfer.metrics.answers import MEANINGS as ANSWERS
from sae_transfer.metrics.answers import TABLE_COLUMNS
from sae_transfer.metrics.cells import MEANINGS
from sae_transfer.metrics.definitions import METRICS
from sae_transfer.rows import COLUMNS, DRIFT_COLUMNS

EXIT_CODES = {
    0: "done",
    2: "a mistake that the line on stderr lets you mend",
    3: "`check` alone: a bound is broken",
    4: "`check` alone: there is not enough data to tell",
    130: "interrupted; the same command goes on",
    1: "anything else: one line, and the path of a log with the traceback",
}
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
    lines += [
        "",
        "## Columns of the rows",
        "",
        "`RUN/rows/*.parquet`: sums over the positions of one document in one token row.",
        "",
    ]
    lines += ["| column | adds up | unit | meaning |", "| --- | --- | --- | --- |"]
    for row in COLUMNS:
        meaning = row.meaning.replace("|", "\\|")
        lines.append(f"| `{row.name}` | {'no' if row.role == 'key' else 'yes'} | {row.unit} | {meaning} |")
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
