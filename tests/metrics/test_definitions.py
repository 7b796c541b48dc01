"""Every formula against numbers worked out by hand, and what must hold of all of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_transfer.metrics import definitions
from sae_transfer.metrics.definitions import METRICS, Floats, ce_recovered, ce_recovered_legacy, ce_recovered_published, ratio
from sae_transfer.rows import SUMS

BY_HAND = {
    "scored": 4.0,
    "kept": 5.0,
    "outliers": 1.0,
    "ce_clean": 8.0,
    "ce_spliced": 10.0,
    "ce_zero": 40.0,
    "kl": 1.0,
    "squared_error": 3.0,
    "squared_deviation": 12.0,
    "error_ratio": 2.0,
    "active_features": 35.0,
    "norm": 60.0,
}
EXPECTED = {
    "l0": 7.0,
    "mse": 0.6,
    "explained_variance": 0.75,
    "explained_variance_legacy": 0.6,
    "ce_clean": 2.0,
    "ce_spliced": 2.5,
    "ce_zero": 10.0,
    "delta_ce": 0.5,
    "ce_recovered": 0.9375,
    "kl": 0.25,
}


def arrays(**sums: float | list[float]) -> dict[str, Floats]:
    """Sums as arrays, the ones by hand where nothing else is given."""
    return {name: np.asarray(value, dtype=np.float64) for name, value in (BY_HAND | sums).items()}


def test_every_metric_is_what_it_is_by_hand() -> None:
    """Sums go in, and the ratios that docs/definitions.md gives come out."""
    assert BY_HAND.keys() == set(SUMS)
    assert {metric.name: float(metric.formula(arrays())) for metric in METRICS} == pytest.approx(EXPECTED)


def test_a_metric_of_many_sums_is_the_metric_of_each() -> None:
    """Arrays of sums give arrays of metrics, so that resampling needs no other formula."""
    doubled = {name: np.asarray([value, 2 * value]) for name, value in BY_HAND.items()}
    for metric in METRICS:
        assert metric.formula(doubled) == pytest.approx([EXPECTED[metric.name]] * 2)


@pytest.mark.parametrize(
    ("name", "sums"),
    [(name, {"kept": 0.0}) for name in ("l0", "mse", "explained_variance_legacy")]
    + [(name, {"scored": 0.0}) for name in ("ce_clean", "ce_spliced", "ce_zero", "delta_ce", "kl", "ce_recovered")]
    + [("explained_variance", {"squared_deviation": 0.0}), ("ce_recovered", {"ce_zero": 8.0})]
    + [("explained_variance", {"kept": 1.0}), ("explained_variance_legacy", {"kept": 1.0})],
)
def test_a_metric_without_a_denominator_is_nan_and_has_a_reason(name: str, sums: dict[str, float]) -> None:
    """Nothing is divided by zero, and no number stands in for one that does not exist."""
    metric = next(metric for metric in METRICS if metric.name == name)
    assert math.isnan(float(metric.formula(arrays(**sums))))
    assert metric.missing


@pytest.mark.parametrize(("damage", "defined"), [(1e-4, True), (-1e-4, True), (0.99e-4, False), (-0.99e-4, False)])
def test_ce_recovered_needs_damage_of_a_ten_thousandth_of_a_nat(damage: float, defined: bool) -> None:
    """The limit is on the mean over scored positions, in either direction, and counts as enough itself."""
    value = float(ce_recovered(arrays(scored=1024.0, ce_clean=0.0, ce_zero=1024 * damage, ce_spliced=0.0)))
    assert value == pytest.approx(1.0) if defined else math.isnan(value)


def test_two_kept_positions_have_a_variance() -> None:
    """They are the fewest that have one."""
    for name in ("explained_variance", "explained_variance_legacy"):
        metric = next(metric for metric in METRICS if metric.name == name)
        assert math.isfinite(float(metric.formula(arrays(kept=2.0))))


def test_ratio_keeps_infinite_numerators_out_of_nan() -> None:
    """inf over a number stays inf: it is reported missing, not mistaken for zero."""
    assert ratio(np.asarray([np.inf, 1.0]), np.asarray([2.0, 4.0])).tolist() == [math.inf, 0.25]


def test_ratios_of_sums_that_overflowed_come_without_a_warning() -> None:
    """They are reported as missing; numpy's own words would only frighten."""
    assert math.isnan(float(ratio(np.asarray(np.inf), np.asarray(np.inf))))
    assert float(ratio(np.asarray(1e308), np.asarray(1e-10))) == math.inf


def test_reasons_tell_which_sum_was_empty() -> None:
    """A reader of `note` sees whether nothing was kept, nothing scored, or zero ablation did nothing."""
    reasons = {metric.name: metric.missing for metric in METRICS}
    assert reasons["l0"] == reasons["mse"] == "no position under test is kept"
    assert reasons["explained_variance"] == reasons["explained_variance_legacy"]
    assert reasons["explained_variance"] == "fewer than two positions are kept, or they are all alike"
    assert reasons["ce_clean"] == reasons["kl"] == "no position is scored"
    assert reasons["ce_recovered"] == "zero ablation changes the CE by less than 0.0001 nats"
    assert {metric.name: metric.unit for metric in METRICS if metric.unit == "nats"}.keys() == {
        *("ce_clean", "ce_spliced", "ce_zero", "delta_ce", "kl")
    }


def test_legacy_ce_recovered_weighs_batches_equally() -> None:
    """Rows 0 and 1 are one batch, row 2 another: the mean of their scores, not the score of their sums."""
    sums = {
        "ce_clean": np.asarray([1.0, 1.0, 0.0, 1.0]),
        "ce_spliced": np.asarray([2.0, 1.0, 2.0, 3.0]),
        "ce_zero": np.asarray([5.0, 5.0, 4.0, 5.0]),
        "scored": np.asarray([1.0, 1.0, 2.0, 2.0]),
    }
    first, second = (10 - 3) / (10 - 2), (9 - 5) / (9 - 1)
    assert ce_recovered_legacy(np.asarray([0.0, 1.0, 2.0, 2.0]), sums, 2) == pytest.approx((first + second) / 2)
    assert ce_recovered_legacy(np.asarray([0.0, 1.0, 2.0, 2.0]), sums, 3) == pytest.approx((19 - 8) / (19 - 3))


def test_legacy_ce_recovered_is_undefined_where_a_batch_is() -> None:
    """A batch without damage has no score, and then the mean of scores has no value either."""
    sums = {name: np.asarray([1.0, 1.0]) for name in ("ce_clean", "ce_spliced", "scored")} | {"ce_zero": np.asarray([1.0, 9.0])}
    assert math.isnan(ce_recovered_legacy(np.asarray([0.0, 1.0]), sums, 1))
    assert not math.isnan(ce_recovered_legacy(np.asarray([0.0, 1.0]), sums, 2))


def test_legacy_ce_recovered_passes_over_batches_without_scored_positions() -> None:
    """A batch in which nothing is scored has no weight; with no other batch there is no value."""
    sums = arrays(ce_clean=[1.0, 0.0], ce_spliced=[2.0, 0.0], ce_zero=[3.0, 0.0], scored=[1.0, 0.0])
    assert ce_recovered_legacy(np.asarray([0.0, 1.0]), sums, 1) == pytest.approx(0.5)
    nothing = arrays(ce_clean=[0.0], ce_spliced=[0.0], ce_zero=[0.0], scored=[0.0])
    assert math.isnan(ce_recovered_legacy(np.asarray([0.0]), nothing, 1))


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), st.floats(0.5, 10))
def test_metrics_do_not_depend_on_how_much_was_measured(values: list[float], factor: float) -> None:
    """Every sum multiplied by one factor gives the same metrics: they are ratios of sums."""
    sums = arrays(ce_clean=values[0], ce_spliced=values[0] + values[1], ce_zero=values[0] + values[2] + 1, kl=values[1])
    scaled = {name: value * factor for name, value in sums.items()}
    for metric in METRICS:
        assert float(metric.formula(scaled)) == pytest.approx(float(metric.formula(sums)), rel=1e-9)


def test_the_least_damage_is_the_documented_one() -> None:
    """design: 1e-4 nats."""
    assert definitions.LEAST_DAMAGE == 1e-4


def test_published_ce_recovered_divides_by_one_where_zero_ablation_does_nothing() -> None:
    """Over 2 scored positions: 0.00005 nats of damage are no value to us, and (zero - spliced) / 1 as published."""
    little = {"ce_zero": 4.0001, "ce_clean": 4.0, "ce_spliced": 3.0, "scored": 2.0}
    enough = little | {"ce_zero": 6.0}
    sums = [{name: np.asarray(value) for name, value in each.items()} for each in (little, enough)]
    assert [float(ce_recovered_published(each)) for each in sums] == pytest.approx([0.50005, 1.5])
    assert np.isnan(ce_recovered(sums[0]))
    assert float(ce_recovered(sums[1])) == 1.5
