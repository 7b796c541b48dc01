"""The run directory: atomic writes, readable parts, provenance."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from sae_transfer import Run, UserError, evaluate
from sae_transfer.rows import COLUMNS, KEYS
from sae_transfer.runs.directory import claimed, read_manifest, read_rows, write_atomically
from tests.conftest import Pair


@pytest.fixture(scope="module")
def run(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small finished run."""
    out = tmp_path_factory.mktemp("runs") / "first"
    return evaluate(
        {"base": str(pair.base), "chat": str(pair.chat)},
        {"base": str(pair.sae_base), "tuned@chat": str(pair.sae_chat)},
        text=str(pair.text),
        chats=str(pair.chats),
        out=out,
    )


def test_rows_are_read_in_one_line(run: Run) -> None:
    """pandas reads the folder of parts as one table with the documented columns."""
    table = pd.read_parquet(run.path / "rows")
    assert list(table.columns) == [column.name for column in COLUMNS]
    assert not table.duplicated(list(KEYS)).any()
    assert not table.isna().any().any()


def test_parts_have_page_checksums_and_hashes(run: Run) -> None:
    """A flipped byte is found by our readers, by hash, and by others, by page checksum."""
    manifest = read_manifest(run.path)
    assert sum(part.rows for part in manifest.parts) == read_rows(run.path, manifest).num_rows > 0
    path = run.path / "rows" / manifest.parts[0].file
    pq.read_table(path, page_checksum_verification=True)
    raw = bytearray(path.read_bytes())
    first = pq.ParquetFile(path).metadata.row_group(0).column(0)
    raw[first.dictionary_page_offset + first.total_compressed_size - 1] ^= 1
    broken = run.path.parent / "broken.parquet"
    broken.write_bytes(bytes(raw))
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(broken, page_checksum_verification=True)


def test_run_json_says_how_the_numbers_came_about(run: Run, pair: Pair) -> None:
    """Command, versions, hashes, hardware, timings, seeds, calibration and status."""
    raw = json.loads((run.path / "run.json").read_text())
    assert raw["status"] == "done"
    (session,) = raw["sessions"]
    assert {"python", "torch", "transformers", "sae-lens", "sae-transfer"} <= session["versions"].keys()
    assert session["seconds"].keys() == {"prepare", "calibrate", "drift", "measure"}
    assert session["command"]
    assert session["finished"] > session["started"]
    assert session["hardware"]["device"]
    assert raw["seeds"] == {"self_check": 0}
    assert raw["sources"].keys() == {"model:base", "model:chat", "sae:base", "sae:tuned", "data:text", "data:chats"}
    assert set(raw["sources"]["sae:base"]["files"]) == {"cfg.json", "sae_weights.safetensors"}
    assert "model.safetensors" in raw["sources"]["model:base"]["files"]
    assert raw["calibration"]["norms"][0]["quantiles"]["0.5"] > 0
    assert raw["data"]["chats"]["documents"] == 20
    assert raw["spec"]["saes"][1] == {"name": "tuned", "source": str(pair.sae_chat), "own_model": "chat"}


def test_nothing_else_stands_in_the_directory(run: Run) -> None:
    """No cache, no half-written file."""
    tables = {"rows", "breakdown", "worst"}
    assert {path.name for path in run.path.iterdir()} == {"run.json", "outliers.parquet", ".lock", *tables}
    for table in tables:
        named = {part.file for part in run.manifest.parts if table == "rows" or table in part.beside}
        assert {path.name for path in (run.path / table).iterdir()} == named


@pytest.mark.parametrize("part", ["saes", "models", "sessions"])
def test_a_run_json_that_contradicts_itself_is_refused(run: Run, tmp_path: Path, part: str) -> None:
    """Names that its calibration does not know, or no session."""
    raw = json.loads((run.path / "run.json").read_text())
    if part == "sessions":
        raw["sessions"] = []
    else:
        raw["spec"][part][0]["name"] = "other"
    (tmp_path / "run.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="is damaged at .*E-RUN"):
        read_manifest(tmp_path)


def test_rows_of_another_calibration_are_refused(run: Run) -> None:
    """They don't add up, even if somebody names them in run.json."""
    manifest = read_manifest(run.path).model_copy(update={"calibration_hash": "0" * 64})
    with pytest.raises(UserError, match="another calibration"):
        read_rows(run.path, manifest)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    """Readers see the old file or the new one."""
    path = tmp_path / "file"
    path.write_text("old")

    def fail(beside: Path) -> None:
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("file", "old")]


@pytest.mark.parametrize("made", [True, False])
def test_a_claim_without_a_run_leaves_no_trace(tmp_path: Path, made: bool) -> None:
    """A folder that was made for the run goes again; one that was there stays, empty."""
    folder = tmp_path / "run"
    if not made:
        folder.mkdir()
    with pytest.raises(ValueError, match="mistake"), claimed(folder):
        raise ValueError("mistake")
    assert folder.exists() is not made
    assert made or not list(folder.iterdir())
