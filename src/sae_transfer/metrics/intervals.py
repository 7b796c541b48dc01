"""Sums by document -> 95% confidence intervals of ratios of sums and of their paired differences, by bootstrap-t. Pure.

Documents are resampled with replacement, all statistics of one data set and token kind at once: counts of documents times
sums is one product of matrices. Each resample also gives the statistic's own standard error (linearised), and the quantiles
of (statistic of the resample - statistic) / that error, times the error of the data, bound the interval (Efron 1979; DiCiccio
and Efron 1996, section 4). docs/verdicts.md says why not percentile or BCa, and how often the intervals hold the truth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sae_transfer.metrics.definitions import Floats

LEVEL = 0.95
RESAMPLES = 2_000
SEED = 0
FEWEST_UNITS = 10
"""With fewer a resample's own error is too often next to nothing, and bounds are absurd."""
MOST_UNITS = 1_000
"""Beyond so many documents neighbours are added up before they are resampled: the cost stays the same."""
CHUNK = 500
"""Resamples at a time, which bounds memory."""


@dataclass(frozen=True)
class Ratio:
    """One ratio of sums: numerators and denominators [documents]."""

    over: Floats
    under: Floats


@dataclass(frozen=True)
class Statistic:
    """A ratio by its index, or two compared: `difference` first - second, `log_ratio` log(first / second)."""

    first: int
    second: int | None = None
    how: Literal["difference", "log_ratio"] = "difference"


@dataclass(frozen=True)
class Interval:
    """An estimate and its bounds; bounds are nan where the documents give none."""

    value: float
    low: float
    high: float


def pooled(values: Floats, most: int = MOST_UNITS) -> Floats:
    """Sums [documents, ...] of at most `most` units: neighbouring documents are added up where there are more."""
    if len(values) <= most:
        return values
    return np.add.reduceat(values, np.arange(most) * len(values) // most, axis=0)


def counts(units: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each unit is drawn [resamples, units], some resamples at a time."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = random.integers(units, size=(rows, units), dtype=np.int32)
        flat = (drawn + units * np.arange(rows, dtype=np.int32)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * units).reshape(rows, units).astype(np.float64)


def intervals(
    ratios: Sequence[Ratio], statistics: Sequence[Statistic], resamples: int = RESAMPLES, seed: int = SEED
) -> list[Interval]:
    """An interval for each statistic; all ratios are over the same documents, in the same order."""
    if not statistics:
        return []
    over, under = (pooled(np.stack([getattr(ratio, part) for ratio in ratios], axis=1)) for part in ("over", "under"))
    units = len(over)
    with np.errstate(all="ignore"):  # what is not defined is nan, here and in every resample
        moments = _Moments.of(over, under, statistics)
        value, error = moments.value, moments.error(np.ones((1, units)))[1][0]
        if units < FEWEST_UNITS:
            return [Interval(float(one), np.nan, np.nan) for one in value]
        pivots = []
        for drawn in counts(units, resamples, seed):
            change, own = moments.error(drawn)
            pivots.append(change / own)
        low, high = _tails(np.concatenate(pivots))
        bounds = np.where(error == 0, value, np.stack([value - high * error, value - low * error]))
    return [Interval(*(float(number) for number in each)) for each in zip(value, *bounds, strict=True)]


@dataclass(frozen=True)
class _Moments:
    """Sums of documents whose weighted totals give every statistic and its standard error.

    With R the ratio, b the denominator and e = a - R b (whose total is 0), a resample's ratio is R + d, d = sum e / sum b, and
    its residuals are e - d b: small numbers, so that squares of sums do not cancel.
    """

    columns: Floats
    """[units, 5 ratios + 4 pairs]: e, b, ee, eb, bb; then e1 e2, e1 b2, b1 e2, b1 b2 of each statistic that has two."""
    ratio: Floats
    first: np.ndarray
    second: np.ndarray
    paired: np.ndarray
    logarithmic: np.ndarray

    @classmethod
    def of(cls, over: Floats, under: Floats, statistics: Sequence[Statistic]) -> "_Moments":
        """Of numerators and denominators [units, ratios]."""
        ratio = over.sum(0) / under.sum(0)
        e, b = over - ratio * under, under
        first = np.asarray([one.first for one in statistics])
        second = np.asarray([one.first if one.second is None else one.second for one in statistics])
        paired = np.asarray([one.second is not None for one in statistics])
        logarithmic = np.asarray([one.how == "log_ratio" for one in statistics]) & paired
        e1, b1, e2, b2 = e[:, first], b[:, first], e[:, second], b[:, second]
        columns = np.concatenate([e, b, e * e, e * b, b * b, e1 * e2, e1 * b2, b1 * e2, b1 * b2], axis=1)
        return cls(columns, ratio, first, second, paired, logarithmic)

    @property
    def value(self) -> Floats:
        """Each statistic of the data [statistics]."""
        return self._statistic(self.ratio)

    def error(self, drawn: Floats) -> tuple[Floats, Floats]:
        """Of each resample [resamples, units]: by how much each statistic changes, and its standard error."""
        units, ratios = len(self.columns), len(self.ratio)
        totals = drawn @ self.columns
        e, b, ee, eb, bb = (totals[:, i * ratios : (i + 1) * ratios] for i in range(5))
        e1e2, e1b2, b1e2, b1b2 = np.split(totals[:, 5 * ratios :], 4, axis=1)
        change = e / b
        squares = np.maximum(ee - 2 * change * eb + change**2 * bb, 0)
        d1, d2 = change[:, self.first], change[:, self.second]
        products = e1e2 - d2 * e1b2 - d1 * b1e2 + d1 * d2 * b1b2
        ratio = self.ratio + change
        slope1 = np.where(self.logarithmic, 1 / ratio[:, self.first], 1.0) / b[:, self.first]
        slope2 = np.where(self.logarithmic, 1 / ratio[:, self.second], 1.0) / b[:, self.second] * self.paired
        variance = slope1**2 * squares[:, self.first] - 2 * slope1 * slope2 * products + slope2**2 * squares[:, self.second]
        return self._statistic(ratio) - self.value, np.sqrt(np.maximum(variance, 0) * units / max(units - 1, 1))

    def _statistic(self, ratio: Floats) -> Floats:
        first, second = ratio[..., self.first], ratio[..., self.second]
        difference = np.where(self.logarithmic, np.log(first / second), first - second)
        return np.where(self.paired, difference, first)


def _tails(pivots: Floats) -> Floats:
    """Lower and upper quantile [2, statistics] of each column's numbers; nan where fewer than half of them are defined."""
    tail = (1 - LEVEL) / 2
    pivots = np.sort(np.where(np.isfinite(pivots), pivots, np.nan), axis=0)  # nan comes last
    defined = np.isfinite(pivots).sum(0)
    at = np.stack([tail * (defined - 1), (1 - tail) * (defined - 1)]).round().astype(int).clip(min=0)
    return np.where(defined * 2 >= len(pivots), np.take_along_axis(pivots, at, axis=0), np.nan)
