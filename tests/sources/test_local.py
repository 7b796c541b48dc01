"""Files as they come from strangers: what they claim is bounded by what they hold, and read no further."""

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_transfer.errors import UserError
from sae_transfer.sources import local


def saved(path: Path, header: bytes, claims: int | None = None, data: bytes = bytes(16)) -> Path:
    """A safetensors file of this header, and the length that it claims."""
    path.write_bytes(struct.pack("<Q", len(header) if claims is None else claims) + header + data)
    return path


def described(**tensors: tuple[str, list[int], list[int]]) -> bytes:
    """A header that describes these tensors by type, shape and place."""
    return json.dumps({k: {"dtype": d, "shape": s, "data_offsets": o} for k, (d, s, o) in tensors.items()}).encode()


WHOLE = described(a=("F32", [2], [0, 8]), b=("F32", [2], [8, 16]))
HOSTILE = {
    "length": (WHOLE, 2**63),
    "all ones": (WHOLE, 2**64 - 1),
    "beyond the file": (WHOLE, len(WHOLE) + 99),
    "places beyond the file": (described(a=("F32", [2**40], [0, 2**42])), None),
    "places backwards": (described(a=("F32", [2], [8, 0])), None),
    "places overlap": (described(a=("F32", [2], [0, 8]), b=("F32", [3], [4, 16])), None),
    "a hole": (described(a=("F32", [2], [8, 16])), None),
    "shape and place disagree": (described(a=("F32", [2**62, 4], [0, 16])), None),
    "deep": (b"[" * 10**6, None),
    "a negative shape": (described(a=("F32", [-2, -2], [0, 16])), None),
    "a long name": (b'{"' + b"a" * 10**6 + b'": 1}', None),
}


def test_shapes_are_those_of_the_header(tmp_path: Path) -> None:
    """A whole file is read."""
    assert local.tensor_shapes(saved(tmp_path / "a.safetensors", WHOLE), "E-SAE") == {"a": (2,), "b": (2,)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    """In one line of some length, under the code of who asked."""
    header, claims = HOSTILE[name]
    with pytest.raises(UserError, match=r"truncated or no safetensors file.*E-SAE") as caught:
        local.tensor_shapes(saved(tmp_path / "a.safetensors", header, claims), "E-SAE")
    assert len(str(caught.value)) < 1000


def archived(path: Path, header: str, data: bytes = b"") -> Path:
    """A .npz of one array, deflated."""
    text = f"{header}\n".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data)
    return path


NPY = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
ARRAYS = {
    "brackets": ("(" * 50, b""),
    "signs": (NPY % ("<f4", f"({'-' * 6000}1,)"), b""),
    "cut off": ("{'descr': '<f4', 'shape': (1L,2L", b""),
    "nested types": ("{'descr': [" + "('a', " * 99 + "'<f4'" + ")" * 99 + "], 'fortran_order': False, 'shape': (1,)}", b""),
    "a number without end": (NPY % ("<f4", f"({'9' * 1000},)"), b""),
    "complex": (NPY % ("<c8", "(1,)"), bytes(8)),
    "text": (NPY % ("<U8", "(1,)"), bytes(32)),
    "more than it holds": (NPY % ("<f4", "(1048576, 1073741824)"), bytes(4)),
    "a bomb": (NPY % ("<f4", "(4194304,)"), bytes(2**24)),
}


def test_shapes_of_arrays_are_those_of_their_headers(tmp_path: Path) -> None:
    """As numpy writes them, deflated or not."""
    arrays: dict[str, Any] = {"a": np.ones((3, 4), dtype=np.float32), "b": np.zeros(5, dtype=np.float16), "c": np.array(1)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        assert local.array_shapes(tmp_path / "a.npz", "E-SAE") == {"a": (3, 4), "b": (5,), "c": ()}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_header_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    """Whether it keeps its reader busy, or claims more than the file holds."""
    with pytest.raises(UserError, match=r"truncated or no .npz file.*E-SAE") as caught:
        local.array_shapes(archived(tmp_path / "a.npz", *ARRAYS[name]), "E-SAE")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [b"[" * 10**6, b'{"a":' * 10**6, b'{"a": ' + b"9" * 10**6 + b"}", b"\xff\xfe{}", b"", b"{}{}", b"[1]", b"\0" * 99],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    """Nested without end, a number without end, no UTF-8, two objects, none."""
    (tmp_path / "cfg.json").write_bytes(content)
    with pytest.raises(UserError, match=r"cfg.json (is no JSON|holds no JSON object).*E-SAE") as caught:
        local.read_json(tmp_path / "cfg.json", "E-SAE")
    assert len(str(caught.value)) < 1000


def test_a_config_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """More than any config has is refused, before it is parsed."""
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**33)  # no disk is used
    with pytest.raises(UserError, match=f"more than {local.MOST_JSON} bytes.*E-MODEL"):
        local.read_json(tmp_path / "config.json", "E-MODEL")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Its reader would wait for a writer."""
    os.mkfifo(tmp_path / "a")
    for read in (local.read_json, local.tensor_shapes):
        with pytest.raises(UserError, match="is no file"):
            read(tmp_path / "a", "E-SAE")
