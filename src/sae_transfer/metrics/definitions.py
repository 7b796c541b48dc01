"""Rows of sums -> metrics. Every ratio of the project is formed here, from sums that were added first (docs/definitions.md).

A formula takes sums by column name, numbers or arrays of one shape, and returns the metric in that shape; it is not defined
where its denominator is zero, and gives nan there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sums = Mapping[str, Floats]
Weights = Mapping[str, float]
"""By column of the rows."""

LEAST_DAMAGE = 1e-4
"""Nats by which zero ablation must change the CE for CE recovered to mean anything."""


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, nan where the denominator is 0."""
    safe = np.where(denominator == 0, np.nan, denominator)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(numerator / safe, dtype=np.float64)


def total(sums: Sums, weights: Weights) -> Floats:
    """The sums, each by its weight, added up."""
    return np.asarray(sum(weight * sums[name] for name, weight in weights.items()), dtype=np.float64)


def always(sums: Sums) -> NDArray[np.bool_]:
    """Defined wherever its denominator is not 0."""
    return np.ones(np.shape(sums["kept"]), dtype=np.bool_)


def of_several(sums: Sums) -> NDArray[np.bool_]:
    """Where at least two positions are kept: a single one's deviation is rounding."""
    return np.asarray(sums["kept"] >= 2)


def damaged(sums: Sums) -> NDArray[np.bool_]:
    """Where zero ablation changes the CE by LEAST_DAMAGE or more."""
    return np.asarray(np.abs(ratio(sums["ce_zero"] - sums["ce_clean"], sums["scored"])) >= LEAST_DAMAGE)


def ce_recovered_published(sums: Sums) -> Floats:
    """The same, but divided by 1 where zero ablation changes the CE by less than LEAST_DAMAGE, as in the published tables."""
    zero, spliced, clean = (ratio(sums[name], sums["scored"]) for name in ("ce_zero", "ce_spliced", "ce_clean"))
    damage = zero - clean
    return ratio(zero - spliced, np.where(np.abs(damage) < LEAST_DAMAGE, 1.0, damage))


NOTHING_KEPT = "no position under test is kept"
NOTHING_SCORED = "no position is scored"
NO_VARIANCE = "fewer than two positions are kept, or they are all alike"
NO_DAMAGE = f"zero ablation changes the CE by less than {LEAST_DAMAGE} nats"
NOT_FINITE = "a sum is not finite, for the model overflows: give --dtype float32"


@dataclass(frozen=True)
class Metric:
    """A column of the table: a ratio of weighted sums, where it is defined, and why it is missing elsewhere."""

    name: str
    unit: str
    meaning: str
    over: Weights
    under: Weights
    missing: str
    defined: Callable[[Sums], NDArray[np.bool_]] = always
    needs: tuple[str, ...] = ()
    """Sums that are finite unless the model overflows, where they are others than the weighted ones."""

    def formula(self, sums: Sums) -> Floats:
        """The metric of some sums, nan where it is not defined."""
        return ratio(total(sums, self.over), np.where(self.defined(sums), total(sums, self.under), 0.0))

    def why_missing(self, sums: Sums) -> str:
        """Why the formula gives no number of these sums."""
        return self.missing if all(np.isfinite(sums[name]) for name in self.needs or (*self.over, *self.under)) else NOT_FINITE


KEPT: Weights = {"kept": 1}
SCORED: Weights = {"scored": 1}
EV = "1 - sum of squared errors / sum of squared deviations from the mean of the kept positions; one has no variance"
EV_LEGACY = "Mean over kept positions of 1 - error / deviation, as in the published tables; one has no variance"
RECOVERED = "(ce_zero - ce_spliced) / (ce_zero - ce_clean); null where zero ablation changes the CE by less than 1e-4 nats"

METRICS: tuple[Metric, ...] = (
    Metric("l0", "features", "Mean number of active features of a kept position", {"active_features": 1}, KEPT, NOTHING_KEPT),
    Metric(
        "mse",
        "scaled units squared",
        "Mean of sum_d (y - x)^2 over kept positions, scaled units",
        {"squared_error": 1},
        KEPT,
        NOTHING_KEPT,
    ),
    Metric(
        "explained_variance",
        "1",
        EV,
        {"squared_deviation": 1, "squared_error": -1},
        {"squared_deviation": 1},
        NO_VARIANCE,
        of_several,
    ),
    Metric(
        "explained_variance_legacy",
        "1",
        EV_LEGACY,
        {"kept": 1, "error_ratio": -1},
        KEPT,
        NO_VARIANCE,
        of_several,
        ("squared_error", "squared_deviation"),
    ),
    Metric("ce_clean", "nats", "Mean CE of the unchanged model, nats", {"ce_clean": 1}, SCORED, NOTHING_SCORED),
    Metric("ce_spliced", "nats", "Mean CE with the reconstruction spliced in, nats", {"ce_spliced": 1}, SCORED, NOTHING_SCORED),
    Metric("ce_zero", "nats", "Mean CE with the positions under test zeroed, nats", {"ce_zero": 1}, SCORED, NOTHING_SCORED),
    Metric("delta_ce", "nats", "ce_spliced - ce_clean, nats", {"ce_spliced": 1, "ce_clean": -1}, SCORED, NOTHING_SCORED),
    Metric(
        "ce_recovered",
        "1",
        RECOVERED,
        {"ce_zero": 1, "ce_spliced": -1},
        {"ce_zero": 1, "ce_clean": -1},
        NO_DAMAGE,
        damaged,
    ),
    Metric("kl", "nats", "Mean KL(clean || spliced), nats", {"kl": 1}, SCORED, NOTHING_SCORED),
)

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


def ce_recovered(sums: Sums) -> Floats:
    """The metric of that name."""
    return BY_NAME["ce_recovered"].formula(sums)


def ce_recovered_legacy(
    rows: NDArray[np.number], sums: Sums, batch_size: int, score: Callable[[Sums], Floats] = ce_recovered
) -> float:
    """Mean over batches of the batch's CE recovered by `score`, batch k being token rows kB to kB+B-1, each of equal weight.

    `rows` is the token row of each record in `sums`. nan where a batch has no defined score.
    """
    _, which = np.unique(rows // batch_size, return_inverse=True)
    by_batch = {
        name: np.asarray(np.bincount(which, weights=sums[name]), dtype=np.float64)
        for name in ("ce_clean", "ce_spliced", "ce_zero", "scored")
    }
    scores = score(by_batch)[by_batch["scored"] > 0]
    return float(scores.mean()) if len(scores) else float("nan")
