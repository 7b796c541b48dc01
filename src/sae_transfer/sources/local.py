"""A path on this machine: does it exist, is it whole, what is its hash. No tensor library is needed here."""

import hashlib
import json
import re
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open

from sae_transfer.errors import UserError

MOST_ARRAYS = 64
MOST_HEADER = 2**12
"""Of a .npy: a shape of two numbers has a fortieth of it."""
ARRAY = re.compile(
    rb"\{'descr': *'[<|=]([fiub][1248])', *'fortran_order': *(?:True|False), *"
    rb"'shape': *\(((?:\d{1,15}, *)*(?:\d{1,15})?)\),? *\} *\n?"
)
SPARSEST = 64
"""Times that deflated weights may be as long as what holds them; real ones are hardly longer. Small arrays may be all zeros."""


def existing(source: str, what: str) -> Path:
    """The absolute path that `source` names. Raises UserError E-PATH where there is nothing."""
    try:
        path = Path(source).expanduser().resolve(strict=True)
        str(path).encode()  # run.json will hold it
    except FileNotFoundError:
        raise UserError("E-PATH", f"{what} {source!r} does not exist", "check the path") from None
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no such home, a NUL, no UTF-8
        raise UserError("E-PATH", f"{what} {source[:200]!r} can't be a path ({error!r:.100})", "check the path") from None
    return path


MOST_JSON = 2**24
"""Bytes of a config: the largest in use, with every added token of a vocabulary, are a tenth of it."""


def read_json(path: Path, code: str, most: int = MOST_JSON) -> dict[str, Any]:
    """A JSON object from a file of at most `most` bytes.

    Raises: UserError with `code` where the file is missing, larger, or holds anything else.
    """
    if path.exists() and not path.is_file():  # a pipe would keep its reader waiting
        raise UserError(code, f"{path} is no file", f"give a folder that holds {path.name}")
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
        if len(raw) > most:
            raise UserError(code, f"{path} has more than {most} bytes, too many for a config", "download or save it again")
        value = json.loads(raw.decode("utf-8"))
    except FileNotFoundError:
        raise UserError(code, f"{path} does not exist", f"give a folder that holds {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(code, f"{path} is no JSON ({error!s:.300})", "download or save it again") from None
    if not isinstance(value, dict):
        raise UserError(code, f"{path} holds no JSON object", "download or save it again")
    return value


def tensor_shapes(path: Path, code: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a safetensors file, from its header, which must match the file's length.

    Raises: UserError with `code` where the file is missing, truncated or no safetensors.
    """
    if path.exists() and not path.is_file():  # a pipe would keep its reader waiting
        raise UserError(code, f"{path} is no file", "give a folder that holds it")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(code, f"{path} does not exist", "give a folder that holds it") from None
    except (OSError, SafetensorError) as error:
        raise UserError(code, f"{path} is truncated or no safetensors file ({error!s:.300})", "copy it again") from None


def array_shapes(path: Path, code: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array in a .npz file, from their headers: no array is read, and no pickle is opened.

    Raises: UserError with `code` where the file is missing, truncated, no .npz, holds anything but numbers, or claims more
    than it holds.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_ARRAYS or sum(member.compress_size for member in members) > path.stat().st_size:
                raise ValueError(f"it has more than {MOST_ARRAYS} arrays, or one within another")
            for member in members:
                with archive.open(member) as file:
                    shape, kind, start = _array_header(file)
                if kind == "O":
                    what = f"{path}: {member.filename} holds Python objects, which are a pickle"
                    raise UserError(code, what, "get it as plain arrays")
                size = prod(shape) * int(kind[1:])
                if start + size != member.file_size or size > SPARSEST * max(member.compress_size, 2**16):
                    raise ValueError(f"{member.filename} claims {size} bytes, {member.compress_size} hold it")
                found[member.filename.removesuffix(".npy")] = shape
    except FileNotFoundError:
        raise UserError(code, f"{path} does not exist", "give a folder that holds it") from None
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(code, f"{path} is truncated or no .npz file ({error!s:.300})", "copy it again") from None
    return found


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], str, int]:
    """Shape, kind of number and length of a .npy header; kind "O" for Python objects. Raises ValueError for any other.

    numpy reads the header as Python, which a few brackets can bring to its knees.
    """
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("no .npy header")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > MOST_HEADER:
        raise ValueError(f"a .npy header of {length} bytes")
    raw = file.read(length)
    if re.search(rb"'descr': *'\|O\d*'", raw):
        return (), "O", 0
    match = ARRAY.fullmatch(raw)
    if match is None:
        raise ValueError(f"a .npy header that is no array of numbers: {raw[:100]!r}")
    shape = tuple(int(size) for size in match[2].replace(b" ", b"").split(b",") if size)
    return shape, match[1].decode(), 8 + width + length


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex. Raises UserError E-PATH where it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError("E-PATH", f"{path} can't be read ({error.strerror})", "check its permissions") from None


def hashes(paths: list[Path], root: Path) -> dict[str, str]:
    """Hash of each file, by its path below `root`."""
    return {path.relative_to(root).as_posix(): sha256(path) for path in sorted(paths)}
