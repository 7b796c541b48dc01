"""Parquet files as they come from strangers: only what is asked for is read, and no more than the file can mean."""

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_transfer.data.parquet import records
from sae_transfer.errors import UserError

LONG = "a b c d " * 2**17
NO_UTF8 = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
HOSTILE: dict[str, Any] = {
    "one long text in every row": {"text": pa.DictionaryArray.from_arrays(pa.array([0] * 2**16, pa.int32()), pa.array([LONG]))},
    "a list of one number": {"tokens": pa.array([pa.repeat(7, 2**26 + 1)], pa.list_(pa.int64()))},
    "a text of one letter": {"text": ["a" * 2**27]},
    "no UTF-8": {"text": NO_UTF8},
    "a date": {"text": pa.array([2**31 - 1], pa.int32()).cast(pa.date32())},
    "a structure": {"text": [{"a": 1}]},
}


def test_only_texts_and_ids_are_read(tmp_path: Path) -> None:
    """A date that Python has no number for does no harm beside them; texts come from a dictionary or not."""
    dates = pa.array([2**31 - 1] * 3, pa.int32()).cast(pa.date32())
    texts: list[str | None] = ["a", "ü\n", None]
    for column in (pa.array(texts), pa.array(texts, pa.large_string()), pa.array(texts).dictionary_encode()):
        pq.write_table(pa.table({"when": dates, "text": column, "mask": [[1, 0]] * 3}), tmp_path / "a.parquet")
        assert list(records(tmp_path / "a.parquet")) == [{"text": text, "mask": [1, 0]} for text in texts]
    pq.write_table(pa.table({"when": [date(2026, 1, 1)]}), tmp_path / "a.parquet")
    assert list(records(tmp_path / "a.parquet")) == [{}]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_spells_more_than_it_holds_is_refused(tmp_path: Path, name: str) -> None:
    """Or something that is no text; in one line."""
    pq.write_table(pa.table(HOSTILE[name]), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(UserError, match="no Parquet file that can be read.*E-DATA"):
        assert sum(1 for _ in records(tmp_path / "a.parquet")) < 2**16


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """Nobody can tell which is meant."""
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'text' stands twice.*E-DATA"):
        list(records(tmp_path / "a.parquet"))
