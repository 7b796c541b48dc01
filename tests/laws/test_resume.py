"""A run that was really killed goes on where it stopped, by the same command, and ends with the same rows."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from sae_transfer import Run, UserError, evaluate
from sae_transfer.metrics.breakdown import BY
from sae_transfer.runs.directory import claimed
from tests.conftest import TEMPLATE, VOCAB, Pair, write_jsonl
from tests.running import LOCKSTEP

STEPS = (
    LOCKSTEP
    + """pair, rows, out = sys.argv[1:]
models, saes = {"base": f"{pair}/base"}, {"base": f"{pair}/sae_base"}
sae_transfer.evaluate(models, saes, rows=rows, out=out, batch_size=16, progress=Lockstep())
"""
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90,000 tokens: 22 units of work, of two batches each."""
    tokens = torch.randint(0, VOCAB, (700, 128), generator=torch.Generator().manual_seed(1)).tolist()
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", [{"tokens": row} for row in tokens])


@pytest.fixture(scope="module")
def whole(pair: Pair, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return evaluate({"base": str(pair.base)}, {"base": str(pair.sae_base)}, rows=str(rows), out=out, batch_size=16)


def kill_after(pair: Pair, rows: Path, out: Path, stage: str, batches: int) -> None:
    """Start the same evaluation in a process of its own and SIGKILL it after some batches of a stage."""
    command = [sys.executable, "-c", STEPS, str(pair.root), str(rows), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            batches -= line.strip() == stage
            if batches == 0:
                process.kill()
                return
            process.stdin.write("\n")
            process.stdin.flush()
    raise AssertionError("it ended before it could be killed")


@pytest.mark.parametrize(("stage", "batches", "parts"), [("calibrating", 5, None), ("measuring", 3, 1), ("measuring", 9, 4)])
def test_a_killed_run_resumes_to_the_same_rows(
    pair: Pair, rows: Path, whole: Run, tmp_path: Path, stage: str, batches: int, parts: int | None
) -> None:
    """Killed while calibrating, early and late while measuring: the same call goes on and ends with equal rows."""
    assert len(whole.manifest.parts) >= 5
    out = tmp_path / "run"
    kill_after(pair, rows, out, stage, batches)
    assert (out / "run.json").exists() is (parts is not None)
    if parts is not None:
        assert len(Run(out).manifest.parts) == parts
        assert Run(out).manifest.status == "running"
    resumed = evaluate({"base": str(pair.base)}, {"base": str(pair.sae_base)}, rows=str(rows), out=out, batch_size=16)
    assert resumed.manifest.calibration == whole.manifest.calibration
    pd.testing.assert_frame_equal(pd.DataFrame(resumed.rows()), pd.DataFrame(whole.rows()), check_exact=True)
    assert [resumed.by(axis) for axis in BY] == [whole.by(axis) for axis in BY]
    assert resumed.worst() == whole.worst()
    assert not list(out.glob("*/.*"))


def test_a_finished_run_is_read_not_repeated(pair: Pair, rows: Path, whole: Run) -> None:
    """The same command on a finished run measures nothing and gives its table."""
    before = (whole.path / "run.json").read_bytes()
    again = evaluate({"base": str(pair.base)}, {"base": str(pair.sae_base)}, rows=str(rows), out=whole.path, batch_size=16)
    assert (whole.path / "run.json").read_bytes() == before
    pd.testing.assert_frame_equal(again.table(), whole.table())


def test_another_spec_in_the_same_directory_is_refused(pair: Pair, rows: Path, whole: Run) -> None:
    """Another batch size is another run: its legacy numbers would differ."""
    with pytest.raises(UserError, match="another command.*E-RUN"):
        evaluate({"base": str(pair.base)}, {"base": str(pair.sae_base)}, rows=str(rows), out=whole.path, batch_size=32)


def test_changed_data_in_the_same_directory_are_refused(pair: Pair, tmp_path: Path) -> None:
    """The same command over a file that has changed since is another run."""
    data = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": [1, 2, 3, 4]}])
    evaluate(str(pair.base), str(pair.sae_base), rows=str(data), out=tmp_path / "run")
    write_jsonl(data, [{"tokens": [1, 2, 3, 5]}])
    with pytest.raises(UserError, match="data:rows has changed.*E-RUN"):
        evaluate(str(pair.base), str(pair.sae_base), rows=str(data), out=tmp_path / "run")


def test_other_tokens_in_the_same_directory_are_refused(pair: Pair, tmp_path: Path) -> None:
    """A template that prints the date is told when the run began; what reads otherwise than it did adds no row to it."""
    shutil.copytree(pair.base, tmp_path / "dated")
    (tmp_path / "dated" / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + TEMPLATE)
    options = {"chats": str(pair.chats), "out": tmp_path / "run"}
    before = evaluate(str(tmp_path / "dated"), str(pair.sae_base), **options)  # type: ignore[arg-type]
    run_json = json.loads((before.path / "run.json").read_text())
    cut_off = run_json | {"status": "running", "parts": []}
    (before.path / "run.json").write_text(json.dumps(cut_off))
    again = evaluate(str(tmp_path / "dated"), str(pair.sae_base), **options)  # type: ignore[arg-type]
    assert again.manifest.data == before.manifest.data
    cut_off["sessions"][0]["started"] = "1999-12-31T12:00:00Z"
    (before.path / "run.json").write_text(json.dumps(cut_off))
    with pytest.raises(UserError, match="chats gives other tokens than when the run in .* began.*E-RUN"):
        evaluate(str(tmp_path / "dated"), str(pair.sae_base), **options)  # type: ignore[arg-type]


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    """The second to come is refused at once."""
    with claimed(tmp_path / "run"), pytest.raises(UserError, match="another process.*E-RUN"), claimed(tmp_path / "run"):
        pass


@pytest.mark.parametrize("table", ["rows", "breakdown", "worst"])
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_part_that_was_lost_is_measured_again(pair: Pair, tmp_path: Path, damage: str, table: str) -> None:
    """The same command mends a run, finished or not, and touches no other part."""

    def again() -> Run:
        data = {"first": str(pair.rows), "second": str(pair.rows)}
        return evaluate({"base": str(pair.base)}, {"base": str(pair.sae_base)}, rows=data, out=tmp_path / "run")

    run = again()
    before = (run.records(), run.by("position"), run.worst())
    kept = (tmp_path / "run" / "rows" / "part-00001.parquet").stat().st_mtime_ns
    lost = tmp_path / "run" / table / "part-00000.parquet"
    lost.unlink() if damage == "missing" else lost.write_bytes(b"junk")
    run = again()
    assert (run.records(), run.by("position"), run.worst()) == before
    assert len(list((tmp_path / "run" / table).iterdir())) == 2
    assert (tmp_path / "run" / "rows" / "part-00001.parquet").stat().st_mtime_ns == kept


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_outliers_that_are_not_those_that_were_written_end_the_run(pair: Pair, tmp_path: Path, damage: str) -> None:
    """Every part rests on them, so none is kept with others."""
    evaluate(str(pair.base), str(pair.sae_base), rows=str(pair.rows), out=tmp_path / "run")
    lost = tmp_path / "run" / "outliers.parquet"
    lost.unlink() if damage == "missing" else lost.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"outliers.parquet is not what was written: .*E-RUN"):
        evaluate(str(pair.base), str(pair.sae_base), rows=str(pair.rows), out=tmp_path / "run")


def test_a_changed_chat_template_is_another_run(pair: Pair, tmp_path: Path) -> None:
    """Its text is hashed like any other file."""
    template = tmp_path / "template.txt"
    template.write_text("User: {instruction} Answer: ")
    options = {"chats": str(pair.chats), "chat_template": str(template), "out": tmp_path / "run"}
    evaluate(str(pair.base), str(pair.sae_base), **options)  # type: ignore[arg-type]
    template.write_text("Q: {instruction} A: ")
    with pytest.raises(UserError, match="chat_template has changed.*E-RUN"):
        evaluate(str(pair.base), str(pair.sae_base), **options)  # type: ignore[arg-type]


def test_a_kill_in_the_first_write_leaves_a_folder_to_start_in(tmp_path: Path) -> None:
    """What it left beside run.json is no reason to refuse."""
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.x1y2").touch()
    (tmp_path / ".outliers.parquet.x1y2").touch()
    (tmp_path / "outliers.parquet").touch()
    with claimed(tmp_path) as folder:
        assert folder == tmp_path
