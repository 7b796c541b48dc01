"""What `show` prints: the same records in every format, and nothing in JSON and CSV but them."""

import csv
import io
import json

import pytest

from sae_transfer import Run, evaluate
from sae_transfer.metrics.answers import TABLE_COLUMNS
from sae_transfer.report import tables
from tests.conftest import Pair
from tests.running import run as program


@pytest.fixture(scope="module")
def run(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two models, one SAE, rows and chats."""
    out = tmp_path_factory.mktemp("report") / "run"
    models = {"base": str(pair.base), "chat": str(pair.chat)}
    return evaluate(models, {"base": str(pair.sae_base)}, rows=str(pair.rows), chats=str(pair.chats), context_size=40, out=out)


def test_json_csv_and_the_data_frame_hold_the_same_records(run: Run) -> None:
    """At full precision, under the documented columns, in the same order."""
    _, text, _ = program("show", str(run.path), "--format", "json")
    records = json.loads(text)
    assert records == run.records()
    _, text, _ = program("show", str(run.path), "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(records) == 8
    for row, record in zip(rows, records, strict=True):
        assert tuple(row) == tuple(record) == TABLE_COLUMNS
        assert {key: "" if value is None else str(value) for key, value in record.items()} == row
    frame = run.table()
    assert list(frame.columns) == list(TABLE_COLUMNS)
    assert frame["kl"].tolist() == [record["kl"] for record in records]


def test_the_terminal_table_has_a_line_for_each_cell(run: Run) -> None:
    """What is the same everywhere stands above it, what a reader must know below."""
    status, text, err = program("show", str(run.path))
    lines = text.splitlines()
    assert status == 0
    assert "sae: base   outlier above: –" in lines
    assert sum(line.startswith(("base ", "chat ")) and " / " not in line for line in lines) == 8
    assert any("Norm scaling is asked for by base: each model's own" in line for line in lines)
    assert any("longer than 40 tokens" in line for line in lines)
    assert err == f"run directory: {run.path}\n"


def test_a_note_of_many_cells_names_a_few_and_counts_the_rest(run: Run) -> None:
    """Each cell's own note stands in the other formats."""
    records = [record | {"note": "a reason", "sae": f"sae{index}"} for index, record in enumerate(run.records()[:5])]
    lines = [line for line in tables.terminal(records, [], 300, False).splitlines() if line.endswith(": a reason")]
    assert len(lines) == 1
    assert [f"sae{index}" in lines[0] for index in range(5)] == [True, True, True, False, False]
    assert "; and 2 more cells: a reason" in lines[0]


def test_markdown_is_a_table_of_every_column(run: Run) -> None:
    """Header, rule, a line a cell, footnotes as a list."""
    lines = tables.markdown(run.records(), ["a note"]).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == len(TABLE_COLUMNS) + 1
    assert len([line for line in lines if line.startswith("|")]) == 2 + 8
    assert lines[-1] == "- a note"


@pytest.mark.parametrize(
    ("value", "how", "shown"),
    [
        (None, ".3f", "–"),
        (0.123456, "", "0.1235"),
        (0.5, ".3f", "0.500"),
        (4080, ",", "4,080"),
        ("a", "", "a"),
        (2e9, ".1f", "2.000e+09"),
    ],
)
def test_numbers_for_people_are_as_their_column_says(value: object, how: str, shown: str) -> None:
    """Scripts read JSON; people read this."""
    assert tables.number(value, how) == shown


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_narrow_terminal_gets_fewer_columns_not_broken_lines(run: Run, width: int) -> None:
    """What was left out is named; ΔCE and KL stay."""
    records = run.records()
    text = tables.terminal(records, [], width, False)
    lines = text.splitlines()
    names = [line for line in lines if line.startswith(("base ", "chat ")) and " / " not in line]
    assert len(names) == len(records)
    assert max(len(line) for line in names) <= width
    assert "ΔCE" in text
    assert "KL" in text
    assert any(line.startswith("Left out for width: ") for line in lines) is (
        len(tables.terminal(records, [], None, False).splitlines()[2]) > width
    )


def test_names_from_outside_are_text_in_the_table(run: Run) -> None:
    """Markup and bars in a name change neither table."""
    record = run.records()[0] | {"sae": "[red]x[/red]", "note": "a|b"}
    assert "[red]x[/red]" in tables.terminal([record], [], 300, False)
    assert "a\\|b" in tables.markdown([record], [])


@pytest.mark.parametrize("format", ["table", "markdown"])
def test_a_note_steers_no_terminal(run: Run, format: str) -> None:
    """run.json may come from anybody."""
    record = run.records()[0] | {"note": "\x1b]0;mine\x07\nnext"}
    text = tables.terminal([record], [], None, False) if format == "table" else tables.markdown([record], [])
    assert r"\x1b]0;mine\x07 next" in text
