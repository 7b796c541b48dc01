"""Records of a .parquet file, one at a time: only the columns that are read here, and no more than the file can mean.

A few hundred bytes of Parquet can spell a terabyte: one long text in a dictionary and its number in every row. So texts stay in
their dictionary until their record is asked for, and what all records hold is bounded by what the file says that it holds.
"""

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sae_transfer.errors import UserError

TEXTS, IDS = ("text", "instruction", "input"), ("tokens", "mask")
ROWS = 256
MOST_REPEATS = 64
"""Times that values may be as many, or as long, as the bytes that hold them; small files may repeat more."""
MOST_PACKED = 100
"""Times that pages may be as long as they are compressed: text is ten times as long."""
SMALL = 2**26


def records(path: Path) -> Generator[dict[str, Any], None, None]:
    """Texts and ids; other columns are left alone. Raises UserError E-DATA where they can't be read or are too large."""
    try:
        names = _wanted(pq.read_schema(path))
        with pq.ParquetFile(path, read_dictionary=[name for name in names if name in TEXTS]) as file:
            held = _held(file, names)
            left = max(SMALL, MOST_REPEATS * held)
            for batch in file.iter_batches(batch_size=ROWS, columns=names):
                columns = {name: batch.column(name) for name in names}
                for row in range(batch.num_rows):
                    record = {name: column[row].as_py() for name, column in columns.items()}
                    left -= sum(len(value) for value in record.values() if isinstance(value, str | list))
                    if left < 0:
                        raise ValueError(f"its {held} bytes spell more than {MOST_REPEATS} times as much")
                    yield record
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError("E-DATA", f"{path} is no Parquet file that can be read ({line:.300})", "save it again") from None


def _wanted(schema: Any) -> list[str]:
    """The columns to read. Raises ValueError where one is of another type or twice there."""
    counts = Counter(schema.names)
    names = [name for name in (*TEXTS, *IDS) if counts[name]]
    for name in names:
        if counts[name] > 1:
            raise ValueError(f"column {name!r} stands twice")
        if not _plain(schema.field(name).type):
            raise ValueError(f"column {name!r} is of type {schema.field(name).type!s:.100}")
    return names


def _held(file: Any, names: list[str]) -> int:
    """Bytes of the columns' pages. Raises ValueError where they claim too much."""
    held, packed, values = 0, 0, 0
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            if chunk.path_in_schema.split(".")[0] in names:
                held += chunk.total_uncompressed_size
                packed += chunk.total_compressed_size
                values += chunk.num_values
    if held > max(SMALL, MOST_PACKED * packed) or values > max(SMALL, MOST_REPEATS * held):
        raise ValueError(f"it claims {values} values in {held} bytes, of {packed} compressed")
    return held


def _plain(kind: Any) -> bool:
    """Texts, whole numbers, lists of them, or nothing."""
    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(test(kind) for test in tests)
