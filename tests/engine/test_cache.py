"""What is kept comes back as it was; what would pass the limit is not kept."""

from errno import ENOSPC
from io import BytesIO
from typing import Any

import pytest
import torch

from sae_transfer.engine.cache import ActivationCache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_residuals_come_back_bit_by_bit(dtype: torch.dtype) -> None:
    """Of every dtype and boundary, in any order of asking."""
    cache = ActivationCache(BytesIO(), 10_000)
    first = {1: torch.randn(2, 3, 4).to(dtype), 5: torch.randn(2, 3, 4).to(dtype)}
    second = {1: torch.randn(1, 2, 4).to(dtype)}
    cache.put("first", first)
    cache.put("second", second)
    for key, expected in (("second", second), ("first", first)):
        found = cache.get(key)
        assert found is not None
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[boundary], resid) for boundary, resid in expected.items())


def test_the_limit_holds_and_smaller_batches_still_fit() -> None:
    """A batch is kept whole or not at all."""
    cache = ActivationCache(BytesIO(), 100)
    cache.put("large", {0: torch.zeros(1, 1, 20), 1: torch.zeros(1, 1, 20)})
    cache.put("small", {0: torch.zeros(1, 1, 25)})
    cache.put("none", {0: torch.zeros(1, 1, 1)})
    assert cache.get("large") is None
    assert cache.get("none") is None
    assert cache.get("small") is not None


class Small(BytesIO):
    """A file on a disk of 100 bytes, which takes what fits and then no more."""

    def write(self, data: Any, /) -> int:
        """As an unbuffered file does."""
        room = 100 - self.tell()
        if room <= 0:
            raise OSError(ENOSPC, "no space left")
        return super().write(bytes(data)[:room])


def test_a_full_disk_ends_the_keeping_and_not_the_run() -> None:
    """Nothing half written comes back, and the room is given back."""
    file = Small()
    cache = ActivationCache(file, 10_000)
    cache.put("fits", {0: torch.ones(1, 1, 20)})
    cache.put("does not", {0: torch.ones(1, 1, 20)})
    cache.put("is not tried", {0: torch.ones(1, 1, 1)})
    assert [cache.get(key) for key in ("fits", "does not", "is not tried")] == [None] * 3
    assert not file.getvalue()
