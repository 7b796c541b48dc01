"""How often 95% intervals hold the truth: `python -m benchmarks.coverage` prints the table of docs/intervals.md.

A document has 20 to 200 tokens and a mean loss that is lognormal around the true one; the statistic is the ratio of the sums.
Percentile and BCa intervals are of the same resamples as bootstrap-t.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import norm

from sae_transfer.metrics.definitions import Floats
from sae_transfer.metrics.intervals import LEVEL, SEED, Ratio, Statistic, counts, intervals

TRUTH = 0.3
SIGMAS = (0.5, 1.0)
DOCUMENTS = (5, 10, 20, 30, 100, 1_000)
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


def coverage(documents: int, sigma: float, sets: int) -> dict[str, tuple[float, float]]:
    """By method: how often the interval holds the truth, and its median width in units of the truth."""
    random = np.random.default_rng(SEED)
    holds: dict[str, list[Floats]] = {method: [] for method in METHODS}
    widths: dict[str, list[Floats]] = {method: [] for method in METHODS}
    for seed in range(sets // TOGETHER):
        over, under = drawn(documents, sigma, TOGETHER, random)
        for method, bounds in METHODS.items():
            low, high = bounds(over, under, seed)
            holds[method].append(((low <= TRUTH) & (high >= TRUTH)).astype(np.float64))
            widths[method].append((high - low) / TRUTH)
    return {m: (float(np.mean(holds[m])), float(np.median(np.concatenate(widths[m])))) for m in METHODS}


def lines(sets: int) -> Iterator[str]:
    """The table, a line as soon as it is known."""
    yield "| sigma | documents | " + " | ".join(f"{method} | width" for method in METHODS) + " |"
    yield "| --- |" + " --- |" * (1 + 2 * len(METHODS))
    for sigma in SIGMAS:
        for documents in DOCUMENTS:
            found = coverage(documents, sigma, sets)
            yield f"| {sigma} | {documents:,} | " + " | ".join(f"{h:.3f} | {w:.2f}" for h, w in found.values()) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=4_000, help="simulated data sets for each line")
    for line in lines(parser.parse_args().sets):
        print(line, flush=True)
