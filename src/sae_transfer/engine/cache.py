"""Residuals of the calibration pass, kept so that no layer runs twice, up to a bound."""

from collections.abc import Mapping
from io import BufferedRandom, BytesIO

import torch
from torch import Tensor


class ActivationCache:
    """Residuals by key, spilled to a file that the caller opens and removes. What would pass `limit` bytes is not kept."""

    def __init__(self, file: BufferedRandom | BytesIO, limit: int) -> None:
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
        self._index[key] = {}
        for boundary, resid in residuals.items():
            self._index[key][boundary] = (self._end, resid.shape, resid.dtype)
            raw = resid.detach().contiguous().cpu().view(torch.uint8).numpy()
            self._file.write(raw.data)
            self._end += raw.nbytes

    def get(self, key: str) -> dict[int, Tensor] | None:
        """The residuals kept under a key, in main memory; None where they were not kept."""
        if key not in self._index:
            return None
        residuals = {}
        for boundary, (start, shape, dtype) in self._index[key].items():
            buffer = bytearray(shape.numel() * dtype.itemsize)
            self._file.seek(start)
            self._file.readinto(buffer)
            residuals[boundary] = torch.frombuffer(buffer, dtype=dtype).view(shape)
        return residuals
