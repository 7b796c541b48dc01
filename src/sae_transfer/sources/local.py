"""A path on this machine: does it exist, is it whole, what is its hash. No tensor library is needed here."""

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open

from sae_transfer.errors import UserError


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

    Raises: UserError with `code` where the file is missing, truncated, no .npz, or holds Python objects.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    first = npy.read_magic(file) == (1, 0)
                    shape, _, dtype = npy.read_array_header_1_0(file) if first else npy.read_array_header_2_0(file)
                if dtype.hasobject:
                    raise UserError(code, f"{path}: {name} holds Python objects, which are a pickle", "get it as plain arrays")
                found[name.removesuffix(".npy")] = tuple(shape)
    except FileNotFoundError:
        raise UserError(code, f"{path} does not exist", "give a folder that holds it") from None
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(code, f"{path} is truncated or no .npz file ({error})", "copy it again") from None
    return found


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
