"""Documents and token rows from files."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sae_transfer.data.packing import NOT_UNDER_TEST
from sae_transfer.data.text import documents, token_rows
from sae_transfer.errors import UserError
from tests.conftest import write_jsonl


def test_the_same_documents_from_every_kind_of_file(tmp_path: Path) -> None:
    """Blocks of a .txt, `text` of a .jsonl or .parquet; empty ones are passed over; the first N."""
    texts = ["One\nand two.", "Three."]
    (tmp_path / "a.txt").write_text("\n\nOne\nand two.\n\n \nThree.\n")
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in [texts[0], " ", texts[1]]])
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    for suffix in ("txt", "jsonl", "parquet"):
        assert list(documents(tmp_path / f"a.{suffix}", None)) == texts
        assert list(documents(tmp_path / f"a.{suffix}", 1)) == texts[:1]


def test_rows_without_a_mask_are_under_test_everywhere(tmp_path: Path) -> None:
    """All but the last position is scored; Parquet and JSON lines give the same."""
    write_jsonl(tmp_path / "a.jsonl", [{"tokens": [1, 2, 3]}, {"tokens": [4, 5], "mask": [1, 0]}])
    pq.write_table(pa.table({"tokens": [[1, 2, 3], [4, 5]], "mask": [None, [1, 0]]}), tmp_path / "a.parquet")
    for suffix in ("jsonl", "parquet"):
        whole, masked = token_rows(tmp_path / f"a.{suffix}", "rows", None).rows
        assert (whole.kinds.tolist(), whole.scored.tolist()) == ([0, 0, 0], [True, True, False])
        assert (masked.kinds.tolist(), masked.scored.tolist()) == ([0, NOT_UNDER_TEST], [True, False])
        assert (whole.documents.tolist(), masked.documents.tolist()) == ([0, 0, 0], [1, 1])
        assert len(token_rows(tmp_path / f"a.{suffix}", "rows", 1).rows) == 1


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"tokens": "1 2"}, "no list of whole numbers"),
        ({"tokens": [1, 2.0]}, "no list of whole numbers"),
        ({"tokens": [1, True]}, "no list of whole numbers"),
        ({"tokens": [1, 2**40]}, "no list of whole numbers"),
        ({"tokens": [1, -2]}, "the least -2"),
        ({"tokens": [1, 2], "mask": [1]}, "zeros and ones"),
        ({"tokens": [1, 2], "mask": [2, 0]}, "zeros and ones"),
        ({"tokens": [1, 2], "mask": [0, 0]}, "no position under test"),
    ],
)
def test_a_row_that_is_none_is_refused(tmp_path: Path, record: dict[str, object], says: str) -> None:
    """The error says which row and why."""
    with pytest.raises(UserError, match=says):
        token_rows(write_jsonl(tmp_path / "a.jsonl", [record]), "rows", None)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_a_file_of_other_bytes_is_refused(tmp_path: Path, suffix: str) -> None:
    """Latin-1, or a Parquet file that is none."""
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"caf\xe9 \xff" * 10)
    with pytest.raises(UserError, match="E-DATA"):
        list(documents(path, None))


def test_a_record_without_text_is_refused(tmp_path: Path) -> None:
    """A missing field is named, a list is no object."""
    with pytest.raises(UserError, match="record 0 has no 'text'"):
        list(documents(write_jsonl(tmp_path / "a.jsonl", [{"content": "x"}]), None))
    (tmp_path / "b.jsonl").write_text(json.dumps(["x"]))
    with pytest.raises(UserError, match="line 1 is no object"):
        list(documents(tmp_path / "b.jsonl", None))
