"""Changes with intervals + criteria -> one of four verdicts, and a sentence of why and what to do next. Pure.

A verdict is on what splicing the SAE costs more here than with its reference: an SAE made for this model, else the same SAE on
its own model. An interval that is on both sides of a limit settles nothing, so noise alone never moves a verdict from one side
to the other: it says that there is not enough data, and how much more would do. docs/definitions.md gives the rule.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from sae_transfer.errors import UserError
from sae_transfer.metrics.intervals import Interval

TRANSFERS = "transfers"
WITH_CARE = "transfers with care"
FAILS = "does not transfer"
NOT_ENOUGH = "not enough data"
VERDICTS = (TRANSFERS, WITH_CARE, FAILS, NOT_ENOUGH)
"""From the best to the worst; the last is none of the three."""

LEAST_DOCUMENTS = 20
"""With fewer, intervals hold the truth in less than 90% of cases where documents vary much (docs/definitions.md)."""


@dataclass(frozen=True)
class Criterion:
    """How much worse a metric may be. `worse`: in which direction it gets worse, or `ratio`, where either does.

    Up to `fine` the SAE transfers, from `broken` on it does not; without `broken` it can only call for care.
    """

    metric: str
    worse: Literal["more", "less", "ratio"]
    fine: float
    broken: float | None
    words: str
    unit: str = ""


CRITERIA: tuple[Criterion, ...] = (
    Criterion("delta_ce", "more", 0.05, 0.3, "ΔCE", " nats"),
    Criterion("kl", "more", 0.05, 0.3, "KL", " nats"),
    Criterion("explained_variance", "less", 0.1, None, "explained variance"),
    Criterion("l0", "ratio", 1.5, None, "L0"),
    Criterion("ce_recovered", "less", 0.05, None, "CE recovered"),
)
"""On the change from the reference."""

ALONE: tuple[Criterion, ...] = (
    Criterion("delta_ce", "more", 0.1, 0.5, "ΔCE", " nats"),
    Criterion("kl", "more", 0.1, 0.5, "KL", " nats"),
)
"""On the metric itself, where there is no reference."""


def criteria(changes: Iterable[str]) -> tuple[Criterion, ...]:
    """CRITERIA with other limits: `METRIC=FINE[:BROKEN]`. Raises UserError E-OPTION."""
    made = {criterion.metric: criterion for criterion in CRITERIA}
    for text in changes:
        match = re.fullmatch(r"(\w+)=(\d*\.?\d+)(?::(\d*\.?\d+))?", text)
        if match is None or match[1] not in made:
            known = ", ".join(made)
            raise UserError("E-OPTION", f"--criterion {text!r} is none", f"give METRIC=FINE[:BROKEN], METRIC of {known}")
        old, fine = made[match[1]], float(match[2])
        broken = old.broken if match[3] is None else float(match[3])
        if (match[3] and not old.broken) or (broken is not None and broken < fine) or (old.worse == "ratio" and fine < 1):
            what = f"--criterion {text!r} makes no sense"
            next_step = "give BROKEN for delta_ce and kl alone, no less than FINE, and for l0 a FINE of at least 1"
            raise UserError("E-OPTION", what, next_step)
        made[old.metric] = replace(old, fine=fine, broken=broken)
    return tuple(made.values())


@dataclass(frozen=True)
class Circumstances:
    """What, besides the metrics, decides what to do next."""

    documents: int | None
    """None for numbers that came without them."""
    norm_ratio: float | None = None
    """By how much the activations that the SAE gets are larger than on its own model; None where that is not known."""
    outliers_spliced: int = 0
    """Positions that `auto` would leave out, and that were spliced."""
    ce_recovered: float | None = None
    explained_variance: float | None = None
    reference_delta_ce: Interval | None = None


@dataclass(frozen=True)
class Verdict:
    """One of VERDICTS, or None where nothing is judged, and why."""

    verdict: str | None
    why: str


def judge(changes: Mapping[str, Interval], reference: str | None, at: Circumstances, criteria: Sequence[Criterion]) -> Verdict:
    """The verdict on the changes by metric; those of a `ratio` are its logarithm. `reference` in words, None without one.

    Numbers that came without documents have no interval, and get no verdict.
    """
    judged = [(criterion, changes[criterion.metric]) for criterion in criteria if criterion.metric in changes]
    said = ", ".join(words(criterion, change, reference is not None) for criterion, change in judged if criterion.broken)
    against = f"against {reference}" if reference else "no reference to compare with: fixed limits"
    if at.documents is None or not judged:
        return Verdict(None, f"{said or 'nothing was measured'} ({against}); without documents there is no verdict")
    if at.documents < LEAST_DOCUMENTS:
        more = LEAST_DOCUMENTS - at.documents
        return Verdict(NOT_ENOUGH, f"{said} ({against}); {at.documents} documents are too few: measure {more} more at least")
    if any(not math.isfinite(change.low) for criterion, change in judged if criterion.broken):
        return Verdict(None, f"{said} ({against}); the documents give no interval, so there is no verdict")
    found = [(criterion, change, span(criterion, change)) for criterion, change in judged]
    least, most = max(one.least for _, _, one in found), max(one.most for _, _, one in found)
    notes = [words(c, change, True) for c, change, one in found if one.least and not c.broken]
    text = "; ".join([f"{said} ({against})", *notes, *_disagreements(changes, at)])
    if least < most:
        needed = max(_needed(c, change, at.documents) for c, change, one in found if one.most > least)
        between = f"between '{VERDICTS[least]}' and '{VERDICTS[most]}'"
        return Verdict(NOT_ENOUGH, f"{text}; {between}: measure about {needed - at.documents:,} more documents")
    return Verdict(VERDICTS[least], f"{text}: {_next(VERDICTS[least], at)}")


class Span(NamedTuple):
    """The best and the worst verdict that an interval allows, by their place in VERDICTS."""

    least: int
    most: int


def span(criterion: Criterion, change: Interval) -> Span:
    """Where an interval lies between the limits. A narrow one, no wider than `fine`, may straddle a limit: there the worse
    side is taken."""
    low, high = _worst(criterion, change)
    fine = math.log(criterion.fine) if criterion.worse == "ratio" else criterion.fine
    limits = (fine, math.inf) if criterion.broken is None else (fine, criterion.broken)
    least, most = (sum(bound > limit for limit in limits) for bound in (low, high))
    if criterion.broken is None:
        return Span(least, least)
    return Span(most, most) if high - low <= fine else Span(least, most)


def documents_needed(found: Interval, limits: Sequence[float], narrow: float | None, documents: int) -> int:
    """So many that the interval would be on one side of each limit, or as narrow as is enough, if the estimate stayed and
    the width shrank with the root of their number."""
    width, straddled = found.high - found.low, [limit for limit in limits if found.low <= limit <= found.high]
    halves = ((found.high - found.value if limit > found.value else found.value - found.low, limit) for limit in straddled)
    factor = max(((half / max(abs(found.value - limit), 1e-4 * width)) ** 2 for half, limit in halves), default=1.0)
    if narrow is not None:
        factor = min(factor, (width / narrow) ** 2)
    return max(documents + 1, math.ceil(documents * factor - 1e-6))


def words(criterion: Criterion, change: Interval, signed: bool) -> str:
    """`ΔCE +0.025 nats [+0.016, +0.036]`; a ratio as a factor."""
    if criterion.worse == "ratio":
        value, low, high = (f"{math.exp(number):.2f}" for number in (change.value, change.low, change.high))
        return f"{criterion.words} {value} times [{low}, {high}]"
    value, low, high = (f"{number:{'+' if signed else ''}.3f}" for number in (change.value, change.low, change.high))
    bounds = "" if math.isnan(change.low) else f" [{low}, {high}]"
    return f"{criterion.words} {value}{criterion.unit}{bounds}"


def _needed(criterion: Criterion, change: Interval, documents: int) -> int:
    limits = [limit for limit in (criterion.fine, criterion.broken) if limit is not None]
    return documents_needed(change, limits, criterion.fine, documents)


def _worst(criterion: Criterion, change: Interval) -> tuple[float, float]:
    """The interval as one of a number that is larger the worse it is."""
    if criterion.worse == "more" or (criterion.worse == "ratio" and change.value >= 0):
        return change.low, change.high
    return -change.high, -change.low


NOTABLE = 0.01
"""Of explained variance and of nats: smaller differences are no disagreement worth a word."""


def _disagreements(changes: Mapping[str, Interval], at: Circumstances) -> list[str]:
    """What a reader of a single metric would get wrong."""
    found = []
    variance, loss = changes.get("explained_variance"), changes.get("delta_ce")
    if variance is not None and loss is not None:
        notable = min(abs(variance.value), abs(loss.value)) >= NOTABLE
        if variance.low > 0 and loss.low > 0 and notable:
            found.append("metrics disagree, explained variance is better and ΔCE worse: ΔCE is what the model feels")
        if variance.high < 0 and loss.high < 0 and notable:
            found.append("metrics disagree, explained variance is worse and ΔCE better: ΔCE is what the model feels")
    if at.ce_recovered is not None and at.ce_recovered > 1:
        found.append("CE recovered is above 1, the splice lowers the CE")
    if at.reference_delta_ce is not None and at.reference_delta_ce.low > CRITERIA[0].broken:  # type: ignore[operator]
        found.append(f"the reference itself costs {at.reference_delta_ce.value:.2f} nats")
    return found


RESCALED = 1.25
"""By how much the norms that the SAE gets must differ from those it knows for rescaling to be the first thing to try."""


def _next(verdict: str, at: Circumstances) -> str:
    """What to do."""
    if verdict == TRANSFERS:
        return "use it"
    if at.outliers_spliced:
        return f"leave its {at.outliers_spliced:,} outliers out (--outlier-threshold auto) and measure again"
    if at.norm_ratio is not None and not 1 / RESCALED <= at.norm_ratio <= RESCALED:
        return f"rescale first, its activations are {at.norm_ratio:.3g} times what it knows; then fine-tune it"
    if verdict == WITH_CARE:
        return "use it where that cost does not matter, else fine-tune it on this model"
    recovered, variance = at.ce_recovered, at.explained_variance
    hopeless = (recovered is not None and recovered < 0.5) or (variance is not None and variance <= 0)
    return "train a new one" if hopeless else "fine-tune it on this model"
