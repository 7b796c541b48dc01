"""Bounds on records: what the interval says, and that a gate which knows nothing stays shut."""

from typing import Any

import pytest

from sae_transfer.metrics.gate import Bound, outcome

MOST, LEAST = Bound("kl", "KL", "most", 0.1), Bound("kl", "KL", "least", 0.1)


def record(value: float | None, low: float | None, high: float | None, documents: int = 200) -> dict[str, Any]:
    """A record with one metric."""
    return {"kl": value, "kl_low": low, "kl_high": high, "documents": documents, "note": "a reason"}


@pytest.mark.parametrize(
    ("low", "high", "most", "least"),
    [
        (0.01, 0.09, "holds", "broken"),
        (0.01, 0.1, "holds", "not enough data"),
        (0.11, 0.2, "broken", "holds"),
        (0.1, 0.2, "not enough data", "holds"),
        (0.05, 0.15, "not enough data", "not enough data"),
    ],
)
def test_the_interval_says_whether_a_bound_holds(low: float, high: float, most: str, least: str) -> None:
    """Wholly on one side of it or on the other; on both it is not settled."""
    measured = record((low + high) / 2, low, high)
    assert (outcome(measured, MOST).state, outcome(measured, LEAST).state) == (most, least)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (record(None, None, None), "KL is not known (a reason)"),
        (record(0.01, None, None, documents=1), "measure 19 more at least"),
        (record(0.01, 0.005, 0.02, documents=5), "measure 15 more at least"),
        (record(0.09, 0.05, 0.13), "measure about 3,000 more documents"),
    ],
)
def test_what_is_not_settled_says_what_is_missing(measured: dict[str, Any], said: str) -> None:
    """A gate that knows too little stays shut."""
    found = outcome(measured, MOST)
    assert found.state == "not enough data"
    assert said in found.said
