"""`show --by`, `--worst` and `--outliers`: the same records in every format, text from outside as text."""

import csv
import io
import json
from pathlib import Path

import pytest

from sae_transfer import Run, UserError, evaluate
from sae_transfer.metrics.breakdown import BY, BY_COLUMNS, MEANINGS, OUTLIER_COLUMNS, WORST_COLUMNS
from sae_transfer.metrics.definitions import METRICS
from sae_transfer.report import breakdown, tables
from tests.conftest import Pair
from tests.running import run as program


@pytest.fixture(scope="module")
def run(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two models, one SAE, rows and chats, with outliers."""
    out = tmp_path_factory.mktemp("report") / "run"
    models = {"base": str(pair.base), "chat": str(pair.chat)}
    data = {"rows": str(pair.rows), "chats": str(pair.chats)}
    return evaluate(models, {"base": str(pair.sae_base)}, **data, outlier_threshold=4.5, out=out)  # type: ignore[arg-type]


VIEWS = [*((("--by", axis), BY_COLUMNS) for axis in BY), (("--worst", "20"), WORST_COLUMNS), (("--outliers",), OUTLIER_COLUMNS)]


@pytest.mark.parametrize(("view", "columns"), VIEWS)
def test_json_csv_and_python_give_the_same_records(run: Run, view: tuple[str, ...], columns: tuple[str, ...]) -> None:
    """A bare list under the documented columns; nothing else on stdout."""
    status, text, _ = program("show", str(run.path), *view, "--format", "json")
    assert status == 0
    records = json.loads(text)
    assert records == (run.by(view[1]) if view[0] == "--by" else run.worst() if view[0] == "--worst" else run.outliers())
    assert records
    assert {tuple(record) for record in records} == {columns}
    rows = list(csv.DictReader(io.StringIO(program("show", str(run.path), *view, "--format", "csv")[1])))
    assert len(rows) == len(records)
    assert tuple(rows[0]) == columns
    lines = program("show", str(run.path), *view, "--format", "markdown")[1].splitlines()
    assert len(lines) == 2 + len(records)


def test_filters_leave_the_cells_that_are_asked_for(run: Run) -> None:
    """Of every table; each option may be given several times."""
    for view in ([], ["--by", "norm"], ["--worst", "3"]):
        only = ["--model", "chat", "--token-kind", "rollout", "--token-kind", "all", "--format", "json"]
        records = json.loads(program("show", str(run.path), *view, *only)[1])
        assert {(record["model"], record["token_kind"]) for record in records} == {("chat", "rollout"), ("chat", "all")}
    records = json.loads(program("show", str(run.path), "--outliers", "--sae", "base", "--data", "rows", "--format", "json")[1])
    assert {record["data"] for record in records} == {"rows"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--worst", "21"], "--worst 21 can't be had: give a number from 1 to 20"),
        (["--worst", "0"], "--worst 0 can't be had"),
        (["--by", "colour"], "--by 'colour' is not known: choose from position, token-class, norm, document, token-kind"),
        (["--by", "norm", "--outliers"], "--by and --outliers are different tables: give one at a time"),
        (["--model", "x"], "--model 'x' is not in this run: choose from base, chat"),
    ],
)
def test_what_can_not_be_shown_is_refused_in_one_line(run: Run, args: list[str], says: str) -> None:
    """With what can."""
    status, out, err = program("show", str(run.path), *args)
    assert (status, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("width", [60, 90, 140])
def test_a_narrow_terminal_gets_fewer_columns_of_buckets(run: Run, width: int) -> None:
    """What was left out is named; KL stays."""
    records = [record for record in run.by("position") if record["token_kind"] == "all" and record["model"] == "base"]
    text = breakdown.terminal(records, breakdown.BUCKETS, width, False)
    lines = text.splitlines()
    assert lines[0] == "model: base   sae: base   data: rows   kind: all   by: position"
    assert max(len(line) for line in lines[1:] if not line.startswith("Left out")) <= width
    assert ("Left out for width: " in text) is (width < 70)
    assert "KL" in text


HOSTILE = "[red]\x1b]0;mine\x07|\n x"


@pytest.mark.parametrize("kind", ["worst", "outliers", "markdown"])
def test_a_tokens_text_steers_no_terminal(run: Run, kind: str) -> None:
    """Markup, escapes and line breaks are shown as what they are."""
    if kind == "worst":
        texts = dict.fromkeys(("before_text", "token_text", "next_text", "after_text"), HOSTILE)
        many = {name: [HOSTILE] * 3 for name in ("clean_text", "spliced_text")}
        text = breakdown.worst([run.worst(1)[0] | texts | many], True)
        assert len(text.splitlines()) == 5
    elif kind == "outliers":
        text = breakdown.terminal([run.outliers()[0] | {"text": HOSTILE}], breakdown.OUTLIERS, None, False)
    else:
        text = tables.markdown([run.outliers()[0] | {"text": HOSTILE}], (), ("text",))
        assert "\\|" in text
    assert "\x07" not in text
    assert "\x1b]" not in text
    assert "[red]" in text


def test_tokens_without_a_tokenizer_are_shown_by_their_ids(run: Run) -> None:
    """Text is null then."""
    record = run.worst(1)[0]
    nameless = record | {name: None for name in record if name.endswith("_text")}
    text = breakdown.worst([nameless], False)
    assert f"#{record['token']} -> #{record['next']}" in text
    assert f"#{record['clean'][0]} {record['clean_p'][0]:.1%}" in text


def test_a_run_without_outliers_says_so(pair: Pair, tmp_path: Path) -> None:
    """One line, or an empty list."""
    evaluate(str(pair.base), str(pair.sae_base), rows=str(pair.rows), outlier_threshold="off", out=tmp_path / "run")
    assert program("show", str(tmp_path / "run"), "--outliers")[1] == "no outliers\n"
    assert program("show", str(tmp_path / "run"), "--outliers", "--format", "json")[1] == "[]\n"


def test_every_column_is_documented() -> None:
    """By its metric or in words."""
    assert set(BY_COLUMNS) <= {*MEANINGS, "model", "sae", "data", "token_kind", *(metric.name for metric in METRICS)}
    with pytest.raises(UserError, match="E-OPTION"):
        Run.worst(Run.__new__(Run), 21)
