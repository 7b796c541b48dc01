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

LEAST_DAMAGE = 1e-4
"""Nats by which zero ablation must change the CE for CE recovered to mean anything."""


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """numerator / denominator, nan where the denominator is 0."""
    safe = np.where(denominator == 0, np.nan, denominator)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(numerator / safe, dtype=np.float64)


def l0(sums: Sums) -> Floats:
    """Mean number of active features of a kept position."""
    return ratio(sums["active_features"], sums["kept"])


def mse(sums: Sums) -> Floats:
    """Mean of sum_d (y - x)^2 over kept positions, scaled units."""
    return ratio(sums["squared_error"], sums["kept"])


def explained_variance(sums: Sums) -> Floats:
    """1 - sum of squared errors / sum of squared deviations from the mean of the kept positions; one has no variance."""
    return 1.0 - ratio(sums["squared_error"], _of_several(sums, sums["squared_deviation"]))


def explained_variance_legacy(sums: Sums) -> Floats:
    """Mean over kept positions of 1 - error / deviation, as in the published tables; one has no variance."""
    return 1.0 - ratio(sums["error_ratio"], _of_several(sums, sums["kept"]))


def _of_several(sums: Sums, denominator: Floats) -> Floats:
    """The denominator where at least two positions are kept, else 0: a single one's deviation is rounding."""
    return np.where(sums["kept"] >= 2, denominator, 0.0)


def ce_clean(sums: Sums) -> Floats:
    """Mean CE of the unchanged model, nats."""
    return ratio(sums["ce_clean"], sums["scored"])


def ce_spliced(sums: Sums) -> Floats:
    """Mean CE with the reconstruction spliced in, nats."""
    return ratio(sums["ce_spliced"], sums["scored"])


def ce_zero(sums: Sums) -> Floats:
    """Mean CE with the positions under test zeroed, nats."""
    return ratio(sums["ce_zero"], sums["scored"])


def delta_ce(sums: Sums) -> Floats:
    """ce_spliced - ce_clean, nats."""
    return ratio(sums["ce_spliced"] - sums["ce_clean"], sums["scored"])


def kl(sums: Sums) -> Floats:
    """Mean KL(clean || spliced), nats."""
    return ratio(sums["kl"], sums["scored"])


def ce_recovered(sums: Sums) -> Floats:
    """(ce_zero - ce_spliced) / (ce_zero - ce_clean); nan where zero ablation changes the CE by less than LEAST_DAMAGE."""
    damage = sums["ce_zero"] - sums["ce_clean"]
    enough = np.abs(ratio(damage, sums["scored"])) >= LEAST_DAMAGE
    return ratio(sums["ce_zero"] - sums["ce_spliced"], np.where(enough, damage, 0.0))


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
    """A column of the table: its unit, its formula, the sums that must be finite, and why it is missing otherwise."""

    name: str
    unit: str
    formula: Callable[[Sums], Floats]
    needs: tuple[str, ...]
    missing: str

    def why_missing(self, sums: Sums) -> str:
        """Why the formula gives no number of these sums."""
        return self.missing if all(np.isfinite(sums[name]) for name in self.needs) else NOT_FINITE


METRICS: tuple[Metric, ...] = (
    Metric("l0", "features", l0, ("active_features",), NOTHING_KEPT),
    Metric("mse", "scaled units squared", mse, ("squared_error",), NOTHING_KEPT),
    Metric("explained_variance", "1", explained_variance, ("squared_error", "squared_deviation"), NO_VARIANCE),
    Metric("explained_variance_legacy", "1", explained_variance_legacy, ("squared_error", "squared_deviation"), NO_VARIANCE),
    Metric("ce_clean", "nats", ce_clean, ("ce_clean",), NOTHING_SCORED),
    Metric("ce_spliced", "nats", ce_spliced, ("ce_spliced",), NOTHING_SCORED),
    Metric("ce_zero", "nats", ce_zero, ("ce_zero",), NOTHING_SCORED),
    Metric("delta_ce", "nats", delta_ce, ("ce_spliced", "ce_clean"), NOTHING_SCORED),
    Metric("ce_recovered", "1", ce_recovered, ("ce_zero", "ce_spliced", "ce_clean"), NO_DAMAGE),
    Metric("kl", "nats", kl, ("kl",), NOTHING_SCORED),
)


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
