"""A run directory: run.json and Parquet parts of rows and of what stands beside them. Append, resume, read, lock.

Everything that lasts is written beside its place, flushed to disk and renamed (`write_atomically`): a reader sees the old
file or the new one, whole. The rename is not itself flushed, so after a power cut the last part may be missing; it is then
measured again. A part exists for a run only once run.json names it.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from sae_transfer.errors import ELSEWHERE, UserError
from sae_transfer.rows import OUTLIERS, SCHEMA_VERSION, UNIT_TABLES, Block, Column
from sae_transfer.runs.manifest import Manifest, Part, parse

RUN_FILE = "run.json"
ROWS = "rows"
LOCK = ".lock"
OUTLIERS_FILE = "outliers.parquet"
ARROW_TYPES = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
ARROW_TYPES |= {f"list[{name}]": pa.list_(kind) for name, kind in ARROW_TYPES.items()}


def schema(columns: Sequence[Column]) -> pa.Schema:
    """Columns as Parquet stores them."""
    return pa.schema([pa.field(c.name, ARROW_TYPES[c.dtype], nullable=c.role == "text") for c in columns])


SCHEMAS = {name: schema(columns) for name, columns in UNIT_TABLES.items()}
"""The tables that every unit adds a part to, each in a folder of its own."""
OUTLIERS_SCHEMA = schema(OUTLIERS)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, flush it to disk, rename it to `path`. Nothing is left behind by a failure."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(beside))
        with Path(beside).open("rb+") as file:
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    finally:
        Path(beside).unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Make the folder if need be and hold its lock; a folder that got no run.json is removed again if it was made here.

    Raises: UserError E-RUN where it holds something else than a run, or another process writes to it; E-PATH where it
    can't be made.
    """
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError("E-RUN", f"{folder} is a file", ELSEWHERE) from None
    except OSError as error:
        raise UserError("E-PATH", f"{folder} can't be made ({error.strerror})", ELSEWHERE) from None
    ours = (LOCK, f".{RUN_FILE}.", OUTLIERS_FILE, f".{OUTLIERS_FILE}.")  # what a kill before or in the first write left
    if not (folder / RUN_FILE).exists() and not all(entry.name.startswith(ours) for entry in folder.iterdir()):
        raise UserError("E-RUN", f"{folder} is not empty and holds no run", ELSEWHERE)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError("E-RUN", f"{folder} is being written by another process", f"wait for it or {ELSEWHERE}") from None
    except OSError as error:
        raise UserError("E-PATH", f"{folder} can't be written ({error.strerror})", ELSEWHERE) from None
    try:
        yield folder
    finally:
        lock.release()
        if not (folder / RUN_FILE).exists():
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                for path in made:
                    path.rmdir()


def read_manifest(folder: Path) -> Manifest:
    """run.json of a run directory. Raises UserError E-RUN."""
    try:
        text = (folder / RUN_FILE).read_text(encoding="utf-8")
    except OSError as error:
        what = f"{folder} is no run directory ({error.strerror})"
        raise UserError("E-RUN", what, f"give a folder that holds {RUN_FILE}") from None
    except UnicodeDecodeError:
        raise UserError("E-RUN", f"{folder / RUN_FILE} is damaged", "start a new run") from None
    return parse(text, str(folder / RUN_FILE))


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write run.json."""
    text = manifest.model_dump_json(indent=1)
    write_atomically(folder / RUN_FILE, lambda beside: _write_text(beside, text))
    return manifest


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def append(
    folder: Path, manifest: Manifest, unit: str, blocks: Sequence[Block], beside: Mapping[str, Sequence[Block]] | None = None
) -> Manifest:
    """Write the blocks of one unit as a part of the rows, and those of other tables beside it; then name them in run.json."""
    taken = {part.file for part in manifest.parts}
    file = next(name for number in count() if (name := f"part-{number:05d}.parquet") not in taken)
    tables = {ROWS: blocks, **{name: found for name, found in (beside or {}).items() if any(map(_length, found))}}
    digests = {}
    for name, found in tables.items():
        columns = {column: [value for block in found for value in block[column]] for column in SCHEMAS[name].names}
        digests[name] = _write(folder / name / file, columns, SCHEMAS[name], manifest.calibration_hash)
    rows = sum(map(_length, blocks))
    part = Part(unit=unit, file=file, sha256=digests.pop(ROWS), rows=rows, beside=digests)
    return write_manifest(folder, manifest.model_copy(update={"parts": (*manifest.parts, part)}))


def write_outliers(folder: Path, columns: Mapping[str, Any], calibration: str) -> str:
    """Write the file that names the outliers, before run.json names it; its sha256."""
    return _write(folder / OUTLIERS_FILE, columns, OUTLIERS_SCHEMA, calibration)


def _write(path: Path, columns: Mapping[str, Any], fields: pa.Schema, calibration: str) -> str:
    metadata = {"sae_transfer.schema": str(SCHEMA_VERSION), "sae_transfer.calibration": calibration}
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in fields]
    table = pa.Table.from_arrays(arrays, schema=fields.with_metadata(metadata))
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda beside: pq.write_table(table, beside, write_page_checksum=True))
    return sha256(path.read_bytes()).hexdigest()


def _length(block: Block) -> int:
    return len(next(iter(block.values())))


def intact(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest without the parts that are missing or not what was written: to be measured again.

    Raises: UserError E-RUN where the outliers are not those that were written: every part rests on them.
    """
    if not _is_written(folder / OUTLIERS_FILE, manifest.outliers):
        raise UserError("E-RUN", f"{folder / OUTLIERS_FILE} is not what was written", "restore it, or give another -o")
    parts = tuple(part for part in manifest.parts if _is_whole(folder, part))
    return manifest if parts == manifest.parts else manifest.model_copy(update={"parts": parts, "status": "running"})


def _is_whole(folder: Path, part: Part) -> bool:
    files = {ROWS: part.sha256, **part.beside}
    return all(_is_written(_inside(folder / _table(name), part.file), digest) for name, digest in files.items())


def _is_written(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path.read_bytes()).hexdigest() == digest


def read_rows(folder: Path, manifest: Manifest, table: str = ROWS) -> pa.Table:
    """The rows of every part that run.json names, or those of a table beside them, checked against hash, page checksums and
    calibration.

    Raises: UserError E-RUN where a part is missing, damaged or of another calibration.
    """
    tables = [pa.Table.from_batches([], SCHEMAS[table])]
    for part in manifest.parts:
        digest = part.sha256 if table == ROWS else part.beside.get(table)
        if digest is not None:
            tables.append(_read(_inside(folder / table, part.file), digest, SCHEMAS[table], manifest))
    return pa.concat_tables(tables)


def read_outliers(folder: Path, manifest: Manifest) -> pa.Table:
    """The outliers that were found while calibrating. Raises UserError E-RUN as `read_rows` does."""
    return _read(folder / OUTLIERS_FILE, manifest.outliers, OUTLIERS_SCHEMA, manifest)


def _read(path: Path, digest: str, fields: pa.Schema, manifest: Manifest) -> pa.Table:
    try:
        raw = path.read_bytes()
        if sha256(raw).hexdigest() != digest:
            raise UserError("E-RUN", f"{path} is not the part that was written", "restore it, or run it again")
        table = pq.ParquetFile(pa.BufferReader(raw), page_checksum_verification=True).read()
        found = table.select(fields.names).cast(fields)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(
            "E-RUN", f"{path} can't be read ({str(error).splitlines()[0]})", "restore it, or run it again"
        ) from None
    if (table.schema.metadata or {}).get(b"sae_transfer.calibration") != manifest.calibration_hash.encode():
        raise UserError("E-RUN", f"{path} was measured with another calibration", "don't mix runs")
    return found


def _table(name: str) -> str:
    """The folder of a table, whatever run.json says."""
    if name not in SCHEMAS:
        raise UserError("E-RUN", f"run.json names a table {name!r} that does not exist", "start a new run")
    return name


def _inside(folder: Path, name: str) -> Path:
    """A file directly inside a folder, whatever run.json says."""
    if Path(name).name != name or name in ("", "..") or "\0" in name:
        raise UserError("E-RUN", f"run.json names a part {name!r} outside its folder", "start a new run")
    return folder / name
