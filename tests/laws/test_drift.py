"""Drift is what a plain loop over transformers' own hidden states gives, however the work is laid out."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from sae_transfer import drift
from sae_transfer.data.packing import Side, TokenData
from sae_transfer.data.text import token_rows
from sae_transfer.engine import drift as engine
from sae_transfer.engine.cache import ActivationCache
from sae_transfer.engine.calibrate import outlier_threshold, passes
from sae_transfer.engine.drift import Setting, by_boundary, first_rows, measured
from sae_transfer.models.split import SplitModel
from sae_transfer.rows import Drift
from sae_transfer.specs import HookPoint
from tests.conftest import D_MODEL, N_LAYERS, Pair
from tests.engine.test_moments import plain

HOOK_POINTS = [*(HookPoint(layer, "resid_pre") for layer in range(N_LAYERS)), HookPoint(N_LAYERS - 1, "resid_post")]
NUMBERS = ("cosine", "norm_ratio", "relative_distance", "cka", "scalar_share", "shift_share", "orthogonal_share")
ROUNDING = 2e-5
"""Relative; shares of a difference round more than the activations that it is made of."""


class Both:
    """Both models at hand; counts how often the one in use changes."""

    def __init__(self, pair: Pair) -> None:
        self.boundaries: list[int] = []
        made = {name: AutoModelForCausalLM.from_pretrained(getattr(pair, name)) for name in ("base", "chat")}
        self.models = {name: SplitModel(model, name) for name, model in made.items()}
        self.changes: list[str] = []

    def get(self, name: str) -> SplitModel:
        """The model."""
        if self.changes[-1:] != [name]:
            self.changes.append(name)
        return self.models[name]


@pytest.fixture(scope="module")
def both(pair: Pair) -> Both:
    """Loaded once."""
    return Both(pair)


@pytest.fixture(scope="module")
def data(pair: Pair) -> TokenData:
    """Rows of different lengths, each a document."""
    return token_rows(pair.rows, "rows", None)


def drifts(both: Both, data: TokenData, cache: int = 10**9, threshold: float | None = None, **changes: Any) -> list[Drift]:
    """Chat against base, at every place."""
    kept = ActivationCache(io.BytesIO(), cache)
    setting = replace(Setting(D_MODEL, 8, torch.device("cpu")).at(HOOK_POINTS, ("all",)), **changes)
    thresholds = dict.fromkeys(HOOK_POINTS, threshold)
    sides = [engine.Side(name, by_boundary(name, both, kept), thresholds) for name in ("base", "chat")]
    return measured(sides[0], sides[1], data, setting, lambda _: None)


def assert_same(found: list[Drift], expected: list[Drift]) -> None:
    """Counts are equal, numbers differ by rounding alone."""
    for one, other in zip(found, expected, strict=True):
        assert (one.hook_point, one.positions, one.outliers) == (other.hook_point, other.positions, other.outliers)
        assert [getattr(one, name) for name in NUMBERS] == pytest.approx(
            [getattr(other, name) for name in NUMBERS], rel=ROUNDING, abs=ROUNDING
        )
        assert one.difference_pcs == pytest.approx(other.difference_pcs, rel=ROUNDING)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 30),
    side=st.sampled_from(["left", "right"]),
    cache=st.sampled_from([0, 20_000, 10**9]),
    moments=st.sampled_from([1, 30_000, 10**9]),
    held=st.sampled_from([1, 5_000, 10**9]),
)
def test_layout_changes_no_number(
    both: Both, data: TokenData, batch_size: int, side: Side, cache: int, moments: int, held: int
) -> None:
    """Batches, padding, cache, grouping of places and length of a stretch are how, not what."""
    found = drifts(both, replace(data, padding=side), cache, batch_size=batch_size, moments=moments, held=held)
    assert_same(found, drifts(both, data))


def test_without_a_cache_the_model_changes_twice_a_stretch(both: Both, data: TokenData) -> None:
    """Not twice a batch: a shelf with room for one model would load each anew."""
    both.changes = []
    drifts(both, data, cache=0, batch_size=2)
    assert both.changes == ["base", "chat"]


def test_with_a_cache_no_layer_runs_twice(both: Both, data: TokenData) -> None:
    """Once every place was read, groups of places read the cache alone."""
    kept = ActivationCache(io.BytesIO(), 10**9)
    reads = {name: by_boundary(name, both, kept) for name in ("base", "chat")}
    for read in reads.values():
        for _, batch, tokens in passes([data], 8):
            read(batch, tokens, [hook_point.boundary for hook_point in HOOK_POINTS])
    both.changes = []
    base, chat = (engine.Side(name, read, dict.fromkeys(HOOK_POINTS)) for name, read in reads.items())
    setting = replace(Setting(D_MODEL, 8, torch.device("cpu")).at(HOOK_POINTS, ("all",)), moments=1)
    assert len(measured(base, chat, data, setting, lambda _: None)) == len(setting.groups()) == 4
    assert both.changes == []


def test_drift_is_that_of_transformers_own_hidden_states(pair: Pair) -> None:
    """Every row by itself, the rule's outliers left out, the definitions in a loop."""
    rows = [json.loads(line)["tokens"] for line in pair.rows.read_text().splitlines()]
    hidden = {}
    for name in ("base", "chat"):
        model = AutoModelForCausalLM.from_pretrained(getattr(pair, name)).eval()
        with torch.no_grad():
            hidden[name] = [model(torch.tensor([row]), output_hidden_states=True).hidden_states[1][0] for row in rows]
    kept = np.ones(sum(map(len, rows)), dtype=bool)
    for states in hidden.values():
        norms = torch.cat(states).norm(dim=-1)
        threshold = outlier_threshold(norms.sort().values)
        kept &= (norms <= (threshold or np.inf)).numpy()
    halves = np.concatenate([np.full(len(row), index % 2) for index, row in enumerate(rows)])[kept]
    assert (halves == 0).sum() > D_MODEL < (halves == 1).sum()
    x, y = (torch.cat(states).double().numpy()[kept] for states in hidden.values())
    (record,) = drift({"base": str(pair.base), "chat": str(pair.chat)}, rows=str(pair.rows), layers=1).records()
    assert record["positions"] == kept.sum()
    expected = plain_by_halves(x, y, halves)
    for name in NUMBERS:
        assert record[name] == pytest.approx(expected[name], rel=1e-5), name
    assert record["difference_pcs"] == pytest.approx(expected["difference_pcs"], rel=1e-5)


def plain_by_halves(x: Any, y: Any, halves: Any) -> dict[str, Any]:
    """`plain` takes halves in turn; an orthogonal map is fitted on documents here."""
    expected: dict[str, Any] = plain(x, y)
    even, odd = halves == 0, halves == 1
    left = 0.0
    for fit, test in ((even, odd), (odd, even)):
        u, _, vt = np.linalg.svd((x[fit] - x[fit].mean(0)).T @ (y[fit] - y[fit].mean(0)))
        left += (((y[test] - y[fit].mean(0)) - (x[test] - x[fit].mean(0)) @ (u @ vt)) ** 2).sum()
    return expected | {"orthogonal_share": 1 - left / ((y - x) ** 2).sum()}


def test_outliers_of_either_model_are_left_out_and_counted(both: Both, data: TokenData) -> None:
    """Kept and left out make up every position under test."""
    found = drifts(both, data, threshold=10.0)
    assert all((entry.positions or 0) + (entry.outliers or 0) == sum(data.lengths) for entry in found)
    assert len({entry.outliers for entry in found}) > 1


def test_first_rows_hold_so_many_positions() -> None:
    """Whole rows in input order, never more than asked for but for one."""
    assert [first_rows([4, 4, 4], bound) for bound in (None, 3, 4, 8, 11, 99)] == [3, 1, 1, 2, 2, 3]


def test_only_the_first_rows_count_whatever_the_batches(both: Both, data: TokenData) -> None:
    """The first rows alone give the same as the first rows of many, though batches sort them by length."""
    first = replace(data, rows=data.rows[: first_rows(data.lengths, 100)])
    assert len(first.rows) < len(data.rows)
    for batch_size in (1, 7):
        assert_same(drifts(both, data, positions=100, batch_size=batch_size), drifts(both, first))


def test_a_model_has_not_moved_from_itself(pair: Pair, tmp_path: Path) -> None:
    """At no place: distance 0, cosine and CKA 1, and the forecast says so."""
    found = drift({"base": str(pair.base), "again": str(pair.base)}, chats=str(pair.chats), out=tmp_path / "drift")
    for record in found.records():
        assert record["relative_distance"] == 0
        assert (record["cosine"], record["cka"]) == (pytest.approx(1, abs=1e-12), pytest.approx(1, abs=1e-12))
    assert found.forecasts() == ["again: nothing moved: to an SAE of base it is the same model."]
