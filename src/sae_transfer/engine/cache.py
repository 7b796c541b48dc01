"""Residuals of the calibration pass, kept so that no layer runs twice, up to a bound."""

from collections.abc import Mapping
from io import BytesIO, FileIO

import torch
from torch import Tensor


class ActivationCache:
    """Residuals by key, spilled to a file that the caller opens (unbuffered) and removes. What would pass `limit` bytes is
    not kept, and nothing once the disk is full: the room is given back to the run."""

    def __init__(self, file: FileIO | BytesIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._end = 0
        self._index: dict[str, dict[int, tuple[int, torch.Size, torch.dtype]]] = {}

    def put(self, key: str, residuals: Mapping[int, Tensor]) -> None:
        """Keep the residuals of a batch, by boundary, if they still fit."""
        size = sum(resid.numel() * resid.element_size() for resid in residuals.values())
        if self._end + size > self._limit:
            return
        self._file.seek(self._end)
        places = {}
        try:
            for boundary, resid in residuals.items():
                places[boundary] = (self._end, resid.shape, resid.dtype)
                raw = resid.detach().contiguous().cpu().view(torch.uint8).numpy().data.cast("B")
                self._end += len(raw)
                while len(raw):
                    raw = raw[self._file.write(raw) :]
        except OSError:
            self._limit, self._index = 0, {}
            self._file.truncate(0)
            return
        self._index[key] = places

    def get(self, key: str) -> dict[int, Tensor] | None:
        """The residuals kept under a key, in main memory; None where they were not kept."""
        if key not in self._index:
            return None
        residuals = {}
        for boundary, (start, shape, dtype) in self._index[key].items():
            buffer = bytearray(shape.numel() * dtype.itemsize)
            self._file.seek(start)
            rest = memoryview(buffer)
            while len(rest):
                rest = rest[self._file.readinto(rest) :]
            residuals[boundary] = torch.frombuffer(buffer, dtype=dtype).view(shape)
        return residuals
