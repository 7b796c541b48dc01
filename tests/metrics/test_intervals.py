"""Intervals: against scipy's bootstrap and a plain loop, and what must hold of every one of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.coverage import bca, coverage, percentile
from sae_transfer.metrics.definitions import Floats
from sae_transfer.metrics.intervals import MOST_UNITS, Interval, Ratio, Statistic, counts, intervals, pooled

RESAMPLES = 4_000


def ratio(documents: int = 60, seed: int = 0, sigma: float = 0.8) -> Ratio:
    """Losses of documents that differ in length and difficulty."""
    random = np.random.default_rng(seed)
    tokens = random.integers(20, 200, size=documents).astype(np.float64)
    return Ratio(tokens * random.lognormal(0, sigma, size=documents), tokens)


def value(over: Floats, under: Floats) -> float:
    """A ratio of sums."""
    return float(over.sum() / under.sum())


def plain(ratios: list[Ratio], statistic: Statistic) -> Interval:
    """Bootstrap-t as the books have it: a loop over resamples, the error of each by its own residuals."""

    def estimate(at: np.ndarray) -> tuple[float, float]:
        chosen = [ratios[i] for i in (statistic.first, statistic.second) if i is not None]
        values = [value(one.over[at], one.under[at]) for one in chosen]
        influence = [(r.over[at] - v * r.under[at]) / r.under[at].sum() for r, v in zip(chosen, values, strict=True)]
        if statistic.how == "log_ratio" and len(chosen) == 2:
            influence = [i / v for i, v in zip(influence, values, strict=True)]
            values = [math.log(v) for v in values]
        signed = influence[0] - (influence[1] if len(chosen) == 2 else 0)
        error = math.sqrt((signed**2).sum() * len(at) / (len(at) - 1))
        return values[0] - (values[1] if len(chosen) == 2 else 0), error

    units = len(ratios[0].over)
    whole, error = estimate(np.arange(units))
    pivots = []
    for drawn in np.concatenate(list(counts(units, RESAMPLES, 0))):
        resampled, own = estimate(np.repeat(np.arange(units), drawn.astype(int)))
        pivots.append((resampled - whole) / own)
    low, high = np.quantile(pivots, [0.025, 0.975])
    return Interval(whole, whole - high * error, whole - low * error)


@pytest.mark.parametrize("how", [None, "difference", "log_ratio"])
def test_intervals_are_those_of_a_plain_loop(how: str | None) -> None:
    """One product of matrices for all resamples, or each resample for itself: the same bounds."""
    ratios = [ratio(), ratio(seed=1)]
    statistic = Statistic(0) if how is None else Statistic(0, 1, how)  # type: ignore[arg-type]
    (found,), expected = intervals(ratios, [statistic], RESAMPLES), plain(ratios, statistic)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], rel=2e-3)


def test_the_methods_that_it_is_compared_with_are_scipys() -> None:
    """The coverage table's percentile and BCa intervals are scipy's, but for the resamples drawn."""
    one = ratio(200)
    sets = (one.over[:, None], one.under[:, None])
    for method, bounds in (("percentile", percentile), ("BCa", bca)):
        low, high = bounds(*sets, 0)
        theirs = stats.bootstrap(
            (one.over, one.under),
            lambda a, b: a.sum() / b.sum(),
            paired=True,
            vectorized=False,
            n_resamples=2_000,
            method=method,
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert [low[0], high[0]] == pytest.approx([theirs.low, theirs.high], rel=0.02)


def test_a_mean_of_many_alike_documents_has_students_interval() -> None:
    """Where documents are normal and equally long, bootstrap-t is the textbook's t interval."""
    random = np.random.default_rng(3)
    values = random.normal(5, 1, size=400)
    (found,) = intervals([Ratio(values, np.ones(400))], [Statistic(0)], 10_000)
    low, high = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    assert [found.low, found.high] == pytest.approx([low, high], rel=2e-3)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Within 3 points of 95% at 100 documents here; `python -m benchmarks.coverage` measures it to half a point."""
    assert 0.92 <= coverage(100, 0.5, 500)["bootstrap-t"].holds <= 0.98


def test_a_difference_is_paired() -> None:
    """Noise that two cells share on the same documents leaves their difference alone."""
    one = ratio()
    other = Ratio(one.over + 0.1 * one.under, one.under)
    alone, difference = intervals([one, other], [Statistic(0), Statistic(1, 0)])
    assert difference.high - difference.low < 1e-6 < alone.high - alone.low
    assert difference.value == pytest.approx(0.1)


def test_an_interval_does_not_depend_on_what_else_is_asked() -> None:
    """The same documents and seed give the same bounds, whatever other statistics are computed beside."""
    ratios = [ratio(), ratio(seed=1)]
    alone = intervals(ratios[:1], [Statistic(0)])
    beside = intervals(ratios, [Statistic(1, 0), Statistic(0)])
    assert (alone[0].low, alone[0].high) == pytest.approx((beside[1].low, beside[1].high), rel=1e-9)


def test_documents_too_few_have_no_interval() -> None:
    """Fewer than ten, none that counts, or nothing at all."""
    assert math.isnan(intervals([ratio(9)], [Statistic(0)])[0].low)
    assert not math.isnan(intervals([ratio(10)], [Statistic(0)])[0].low)
    nothing = Ratio(np.zeros(20), np.zeros(20))
    assert math.isnan(intervals([nothing], [Statistic(0)])[0].high)
    assert intervals([], []) == []


@pytest.mark.filterwarnings("error")
def test_one_document_that_counts_among_many_gives_no_bounds() -> None:
    """Most resamples lack it: nothing is said rather than something wrong."""
    under = np.asarray([3.0, *[0.0] * 30])
    (found,) = intervals([Ratio(2 * under, under)], [Statistic(0)])
    assert found.value == 2.0
    assert math.isnan(found.low) or found.low == found.high == 2.0


@given(st.integers(10, 40), st.floats(0.1, 10), st.integers(0, 5))
def test_an_interval_holds_its_estimate_and_scales_with_it(documents: int, factor: float, seed: int) -> None:
    """Other units of the numerator, other units of the bounds."""
    one = ratio(documents, seed)
    plainly, scaled = intervals([one, Ratio(factor * one.over, one.under)], [Statistic(0), Statistic(1)], 500)
    assert plainly.low <= plainly.value <= plainly.high
    bounds = [factor * number for number in (plainly.value, plainly.low, plainly.high)]
    assert [scaled.value, scaled.low, scaled.high] == pytest.approx(bounds, rel=1e-9)


def test_many_documents_are_added_up_with_their_neighbours() -> None:
    """No document is lost, and none is torn apart."""
    values = np.arange(3 * MOST_UNITS + 7, dtype=np.float64)
    units = pooled(values)
    assert len(units) == MOST_UNITS
    assert units.sum() == values.sum()
    assert np.array_equal(pooled(values[:5]), values[:5])
