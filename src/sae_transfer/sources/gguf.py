"""A GGUF file's header, walked within bounds: every count, length and offset is held against the file's size first.

Other readers believe what a header says: a file of 49 bytes that claims 2^62 entries keeps them busy for ever. So this walk
comes before them. It takes no more steps than the header has entries, and keeps single values and shapes, no arrays.
Format: the ggml project's docs/gguf.md, versions 2 and 3.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from sae_transfer.errors import UserError

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
UINT32, STRING, ARRAY = 4, 8, 9
MOST_KEYS, MOST_TENSORS = 2**16, 2**17
MOST_ENTRIES = 2**22
"""Array entries in all: several vocabularies of 250,000 tokens with their merges. Other readers take microseconds for each."""
LONGEST_NAME = 2**16 - 1
DEEPEST = 4
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class Header:
    """What the header of a checked file states: single values, lengths of arrays, shapes of tensors (fastest axis first)."""

    values: Mapping[str, int | float | str]
    lengths: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]


def header(path: Path) -> Header:
    """Walk the whole header. Raises UserError E-MODEL where it promises what the file does not hold."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(data).header()
    except (OSError, ValueError) as error:  # mmap refuses an empty file with a ValueError
        raise UserError("E-MODEL", f"{path} is truncated or no GGUF file ({error})", "download it again") from None


class _Walk:
    """A place in the file that only moves on after what lies there has been found to fit. Raises ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.end = len(data)
        self.at = 0
        self.entries = 0

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.number("<I", "its version")
        if version & 0xFFFF == 0:
            raise ValueError("it is big-endian, which is not supported")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, neither 2 nor 3")
        n_tensors, n_keys = self.number("<Q", "its tensor count"), self.number("<Q", "its key count")
        self.fits(n_keys, 13, MOST_KEYS, "keys")
        self.fits(n_tensors, 24, MOST_TENSORS, "tensors")
        values: dict[str, int | float | str] = {}
        lengths: dict[str, int] = {}
        alignment = DEFAULT_ALIGNMENT
        for _ in range(n_keys):
            key = self.name("a key")
            if key in values or key in lengths:
                raise ValueError(f"key {key!r:.100} stands twice")
            kind = self.number("<I", f"the type of {key!r:.100}")
            if kind == ARRAY:
                lengths[key] = self.array(key, 1)
            elif kind == STRING:
                values[key] = self.text(self.end, f"the value of {key!r:.100}").decode("utf-8", "replace")
            else:
                values[key] = self.number(self.format(kind, key), f"the value of {key!r:.100}")
            if key == "general.alignment":
                alignment = self.alignment(kind, values.get(key))
        return Header(values, lengths, self.tensors(n_tensors, alignment))

    def tensors(self, count: int, alignment: int) -> dict[str, tuple[int, ...]]:
        """Shape by name. Where the data begins is known after the last, so sizes are compared with the file then."""
        shapes: dict[str, tuple[int, ...]] = {}
        stretches: list[tuple[int, int, str]] = []
        for _ in range(count):
            name = self.name("a tensor's name")
            if name in shapes:
                raise ValueError(f"tensor {name!r:.100} stands twice")
            where = f"tensor {name!r:.100}"
            n_dims = self.number("<I", f"the dimensions of {where}")
            if n_dims > 4:
                raise ValueError(f"{where} has {n_dims} dimensions")
            shapes[name] = shape = tuple(self.number("<Q", f"a dimension of {where}") for _ in range(n_dims))
            kind = self.number("<I", f"the type of {where}")
            offset = self.number("<Q", f"the offset of {where}")
            if offset % alignment:
                raise ValueError(f"{where} lies at {offset}, no multiple of {alignment}")
            stretches.append((offset, _size(shape, kind, where), where))
        start = -(-self.at // alignment) * alignment
        last = 0
        for offset, size, where in sorted(stretches):
            if offset < last:
                raise ValueError(f"{where} lies at {offset}, within another")
            last = offset + size
            if start + last > self.end:
                raise ValueError(f"{where} has {size} bytes at {start + offset}, the file {self.end}")
        return shapes

    def number(self, form: str, what: str) -> int:
        """One number of a struct format; floats and booleans too, which callers tell apart by its type."""
        size = struct.calcsize(form)
        if self.end - self.at < size:
            raise ValueError(f"it ends before {what}")
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return value  # type: ignore[no-any-return]

    def text(self, most: int, what: str) -> bytes:
        length = self.number("<Q", f"the length of {what}")
        if length > min(most, self.end - self.at):
            raise ValueError(f"{what} has {length} bytes, {self.end - self.at} are left")
        self.at += length
        return self.data[self.at - length : self.at]

    def name(self, what: str) -> str:
        try:
            return self.text(LONGEST_NAME, what).decode()
        except UnicodeDecodeError:
            raise ValueError(f"{what} is not UTF-8") from None

    def array(self, key: str, depth: int) -> int:
        """Pass over an array, and give its length."""
        if depth > DEEPEST:
            raise ValueError(f"{key!r:.100} is an array more than {DEEPEST} deep")
        kind = self.number("<I", f"the type of {key!r:.100}")
        form = None if kind in (STRING, ARRAY) else self.format(kind, key)
        length = self.number("<Q", f"the length of {key!r:.100}")
        least = struct.calcsize(form) if form else {STRING: 8, ARRAY: 12}[kind]
        self.fits(length, least, MOST_ENTRIES - self.entries, f"entries of {key!r:.100}")
        self.entries += length
        if form:
            self.at += least * length
        elif kind == ARRAY:
            for _ in range(length):
                self.array(key, depth + 1)
        else:
            self.strings(length, key)
        return length

    def strings(self, count: int, key: str) -> None:
        """Pass over `count` strings: the one long loop, so it is written out."""
        data, at, end = self.data, self.at, self.end
        length_at = struct.Struct("<Q").unpack_from
        for index in range(count):
            if end - at < 8:
                raise ValueError(f"it ends before entry {index} of {key!r:.100}")
            (length,) = length_at(data, at)
            at += 8
            if length > end - at:
                raise ValueError(f"entry {index} of {key!r:.100} has {length} bytes, {end - at} are left")
            at += length
        self.at = at

    def fits(self, count: int, least: int, most: int, what: str) -> None:
        """`count` things of at least `least` bytes must have room in what is left, and be no more than `most`."""
        if count * least > self.end - self.at:
            raise ValueError(f"it claims {count} {what}, and {self.end - self.at} bytes are left")
        if count > most:
            raise ValueError(f"it has {count} {what}, more than {most}")

    def format(self, kind: int, key: str) -> str:
        if kind not in SCALARS:
            raise ValueError(f"{key!r:.100} is of type {kind}, which does not exist")
        return SCALARS[kind]

    def alignment(self, kind: int, value: object) -> int:
        if kind != UINT32 or not isinstance(value, int) or value.bit_count() != 1:
            raise ValueError(f"general.alignment is {value!r:.100} of type {kind}, no power of two as uint32")
        return value


def _size(shape: tuple[int, ...], kind: int, where: str) -> int:
    """Bytes of a tensor. Rows are stored in whole blocks of its type."""
    try:
        block, block_bytes = map(int, GGML_QUANT_SIZES[GGMLQuantizationType(kind)])
    except (ValueError, KeyError):
        raise ValueError(f"{where} is of type {kind}, which is not known") from None
    if 0 in shape or (shape[0] if shape else 1) % block:
        raise ValueError(f"{where} has shape {shape}, and its type has blocks of {block}")
    return prod(shape) // block * block_bytes
