"""How often 95% intervals hold the truth: `python -m benchmarks.coverage` prints the table of docs/verdicts.md.

A document has 20 to 200 tokens and a mean loss that is lognormal around the true one; the statistic is the ratio of the sums.
Percentile and BCa intervals are of the same resamples as bootstrap-t.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from sae_transfer.metrics.definitions import Floats
from sae_transfer.metrics.intervals import LEVEL, SEED, Ratio, Statistic, counts, intervals

TRUTH = 0.3
SIGMAS = (0.5, 1.0)
DOCUMENTS = (10, 20, 30, 100, 1_000)
TOGETHER = 100
"""Data sets that share their resamples."""
RESAMPLES = 2_000
Bounds = tuple[Floats, Floats]
TAILS = np.asarray([(1 - LEVEL) / 2, (1 + LEVEL) / 2])


def drawn(documents: int, sigma: float, sets: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Numerators and denominators [documents, sets]."""
    tokens = random.integers(20, 201, size=(documents, sets)).astype(np.float64)
    return tokens * TRUTH * random.lognormal(-(sigma**2) / 2, sigma, size=(documents, sets)), tokens


def bootstrap_t(over: Floats, under: Floats, seed: int) -> Bounds:
    """The project's own."""
    ratios = [Ratio(a, b) for a, b in zip(over.T, under.T, strict=True)]
    found = intervals(ratios, [Statistic(index) for index in range(len(ratios))], RESAMPLES, seed)
    return np.asarray([one.low for one in found]), np.asarray([one.high for one in found])


def resampled(over: Floats, under: Floats, seed: int) -> Floats:
    """The ratio of each resample [resamples, sets]."""
    return np.concatenate([(w @ over) / (w @ under) for w in counts(len(over), RESAMPLES, seed)])


def percentile(over: Floats, under: Floats, seed: int) -> Bounds:
    """Quantiles of the resamples."""
    low, high = np.quantile(resampled(over, under, seed), TAILS, axis=0)
    return low, high


def bca(over: Floats, under: Floats, seed: int) -> Bounds:
    """Bias-corrected and accelerated (Efron 1987): quantiles of the resamples, moved by bias and skewness."""
    ratios, value = resampled(over, under, seed), over.sum(0) / under.sum(0)
    bias = norm.ppf((ratios < value).mean(0).clip(1 / RESAMPLES, 1 - 1 / RESAMPLES))
    without = (over.sum(0) - over) / (under.sum(0) - under)
    pull = without.mean(0) - without
    skew = (pull**3).sum(0) / (6 * (pull**2).sum(0) ** 1.5)
    z = bias + norm.ppf(TAILS)[:, None]
    at = norm.cdf(bias + z / (1 - skew * z))
    low, high = (np.asarray([np.quantile(r, q) for r, q in zip(ratios.T, level, strict=True)]) for level in at)
    return low, high


METHODS: dict[str, Callable[[Floats, Floats, int], Bounds]] = {
    "bootstrap-t": bootstrap_t,
    "percentile": percentile,
    "BCa": bca,
}


@dataclass(frozen=True)
class Coverage:
    """How often an interval holds the truth, how often the truth lies above it, and its median width in units of the truth."""

    holds: float
    above: float
    width: float


def coverage(documents: int, sigma: float, sets: int) -> dict[str, Coverage]:
    """By method."""
    random = np.random.default_rng(SEED)
    bounds: dict[str, list[Bounds]] = {method: [] for method in METHODS}
    for seed in range(sets // TOGETHER):
        over, under = drawn(documents, sigma, TOGETHER, random)
        for method, interval in METHODS.items():
            bounds[method].append(interval(over, under, seed))
    found = {}
    for method, each in bounds.items():
        low, high = (np.concatenate(side) for side in zip(*each, strict=True))
        holds, above = (low <= TRUTH) & (high >= TRUTH), high < TRUTH
        found[method] = Coverage(float(holds.mean()), float(above.mean()), float(np.median(high - low)) / TRUTH)
    return found


def lines(sets: int) -> Iterator[str]:
    """The table, a line as soon as it is known."""
    yield "| sigma | documents | " + " | ".join(f"{method} | above | width" for method in METHODS) + " |"
    yield "| --- |" + " --- |" * (1 + 3 * len(METHODS))
    for sigma in SIGMAS:
        for documents in DOCUMENTS:
            found = coverage(documents, sigma, sets).values()
            each = (f"{one.holds:.3f} | {one.above:.3f} | {one.width:.2f}" for one in found)
            yield f"| {sigma} | {documents:,} | " + " | ".join(each) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=4_000, help="simulated data sets for each line")
    for line in lines(parser.parse_args().sets):
        print(line, flush=True)
