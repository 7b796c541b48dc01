"""Forecasts and tables of drift."""

import csv
import io
import json
from typing import Any

import pytest

from sae_transfer.report.drift import FORMATS, terminal
from sae_transfer.report.forecast import forecast
from sae_transfer.rows import DRIFT_COLUMNS

KNOWN: dict[str, Any] = {
    "reference": "base",
    "model": "chat",
    "data": "text",
    "token_kind": "all",
    "hook_point": "blocks.2.hook_resid_pre",
    "positions": 9_000,
    "outliers": 3,
    "cosine": 0.97,
    "norm_ratio": 1.02,
    "relative_distance": 0.2,
    "cka": 0.95,
    "scalar_share": 0.1,
    "shift_share": 0.1,
    "orthogonal_share": None,
    "difference_pcs": (0.5, 0.25),
    "note": "too few",
}


def record(**changes: Any) -> dict[str, Any]:
    """A place that moved little, with some values changed."""
    return KNOWN | changes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "keeps its direction (cosine 0.97) and size (norm ratio 1.02): an SAE of base probably transfers"),
        ({"norm_ratio": 1.46}, "probably transfers"),  # Mistral 7B
        ({"norm_ratio": 1 / 1.24}, "probably transfers"),  # Qwen 1.5 0.5B
        ({"norm_ratio": 1 / 8.24}, "does not keep its size (norm ratio 0.12): an SAE of base probably does not"),  # Gemma 2B
        ({"norm_ratio": 140.2}, "does not keep its size (norm ratio 140): an SAE of base probably does not transfer"),
        ({"norm_ratio": 3.0}, "half keeps its size (norm ratio 3.00): an SAE of base may or may not transfer"),
        ({"cosine": 0.8}, "half keeps its direction (cosine 0.80): an SAE of base may or may not transfer"),
        ({"cosine": 0.4, "cka": 0.3}, "does not keep its direction (cosine 0.40) and shape (CKA 0.30)"),
        ({"cka": 0.6}, "half keeps its shape (CKA 0.60)"),
        ({"cka": None}, "probably transfers"),
    ],
)
def test_a_forecast_goes_by_the_thresholds(changes: dict[str, Any], says: str) -> None:
    """The published pairs fall where their SAEs did."""
    assert says in forecast([record(**changes)], "chat")


def test_a_forecast_is_that_of_the_worst_place() -> None:
    """One layer that loses its direction decides, and is named; other models' places do not count."""
    records = [record(), record(hook_point="blocks.3.hook_resid_pre", cosine=0.5), record(model="other", cosine=0.1)]
    assert forecast(records, "chat") == (
        "chat: where it moved most (text all, blocks.3.hook_resid_pre) the stream does not keep its direction (cosine 0.50): "
        "an SAE of base probably does not transfer; evaluate it before you trust it."
    )


def test_a_forecast_without_a_number_says_why() -> None:
    """A model that can't read the data."""
    empty = record(cosine=None, relative_distance=None, note="token 9 is outside the vocabulary of chat")
    assert forecast([empty], "chat") == "chat: nothing can be said (token 9 is outside the vocabulary of chat)."


def test_json_and_csv_have_every_column() -> None:
    """Shares are a list in JSON, and stand between spaces in CSV; a missing value is null, or empty."""
    (as_json,) = json.loads(FORMATS["json"]([record()]))
    assert as_json == record(difference_pcs=[0.5, 0.25])
    (as_csv,) = csv.DictReader(io.StringIO(FORMATS["csv"]([record()])))
    assert list(as_csv) == list(DRIFT_COLUMNS)
    assert (as_csv["difference_pcs"], as_csv["orthogonal_share"]) == ("0.5 0.25", "")
    assert FORMATS["markdown"]([record()]).splitlines()[2].count(" | ") == len(DRIFT_COLUMNS) - 1


def test_a_narrow_terminal_does_without_some_columns() -> None:
    """They are named; what is the same everywhere stands above; notes stand below."""
    records = [record(), record(hook_point="blocks.3.hook_resid_post")]
    wide, narrow = (terminal(records, ["a sentence"], [], width, colour=False) for width in (None, 60))
    assert wide.splitlines()[0] == "compared with: base   model: chat   data: text   kind: all"
    assert "2 pre" in wide
    assert "chat / text / all / blocks.2.hook_resid_pre; and 1 more: too few" in wide
    assert "Left out for width: PC 1, outliers" in narrow
    assert max(map(len, narrow.splitlines()[1:5])) <= 60
    assert wide.splitlines()[-1] == "- a sentence"
