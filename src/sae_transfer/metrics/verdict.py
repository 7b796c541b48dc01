"""Changes with intervals + criteria -> one of four verdicts, and a sentence of why and what to do next. Pure.

A verdict is on what splicing the SAE costs more here than with its reference: an SAE made for this model, else the same SAE on
its own model. A wide interval on both sides of a limit settles nothing, so noise alone never turns "transfers" into "does not
transfer": it says that there is not enough data, and how much more would do. docs/verdicts.md gives the rule.
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
"""With fewer, intervals hold the truth in less than 90% of cases where documents vary much (docs/verdicts.md)."""


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
        match = re.fullmatch(r"(\w+)=([^:]+)(?::(.+))?", text)
        if match is None or match[1] not in made:
            known = ", ".join(made)
            raise UserError("E-OPTION", f"--criterion {text!r} is not known", f"give METRIC=FINE[:BROKEN], METRIC of {known}")
        old, fine = made[match[1]], _limit(text, match[2])
        broken = old.broken if match[3] is None else _limit(text, match[3])
        if match[3] and old.broken is None:
            raise UserError("E-OPTION", f"--criterion {text!r} has a BROKEN", "give it for delta_ce and kl alone")
        if broken is not None and broken < fine:
            raise UserError(
                "E-OPTION", f"--criterion {text!r}: BROKEN, {broken}, is below FINE", f"give {match[1]}={fine}:BROKEN"
            )
        if old.worse == "ratio" and fine < 1:
            raise UserError("E-OPTION", f"--criterion {text!r} is below 1", "give a ratio of at least 1")
        made[old.metric] = replace(old, fine=fine, broken=broken)
    return tuple(made.values())


def _limit(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError("E-OPTION", f"--criterion {text!r}: {number!r} is no number", "give one from 0 on")
    return value


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
    deciding = [(criterion, change) for criterion, change in judged if criterion.broken is not None]
    said = ", ".join(words(criterion, change, reference is not None) for criterion, change in deciding)
    against = f"against {reference}" if reference else _alone(criteria)
    if at.documents is None or not judged:
        return Verdict(None, f"{said or 'nothing was measured'} ({against}); without documents there is no verdict")
    if at.documents < LEAST_DOCUMENTS:
        more = LEAST_DOCUMENTS - at.documents
        return Verdict(NOT_ENOUGH, f"{said} ({against}); {at.documents} documents are too few: measure {more} more at least")
    if any(not math.isfinite(change.low) for _, change in deciding):
        return Verdict(None, f"{said} ({against}); the documents give no interval, so there is no verdict")
    least, most = span(judged)
    text = "; ".join([f"{said} ({against})", *_passed(judged), *_disagreements(changes, at)])
    if least < most:
        between = f"between '{VERDICTS[least]}' and '{VERDICTS[most]}'"
        return Verdict(NOT_ENOUGH, f"{text}; {between}: {_more(judged, at.documents)}")
    return Verdict(VERDICTS[least], f"{text}: {_next(VERDICTS[least], at)}")


def _alone(criteria: Sequence[Criterion]) -> str:
    limits = " and ".join(f"{limit:g}" for limit in (criteria[0].fine, criteria[0].broken))
    return f"no reference to compare with, so against fixed limits, {limits}; --sae NAME@MODEL names an SAE's own model"


class Span(NamedTuple):
    """The best and the worst verdict that intervals allow, by their place in VERDICTS."""

    least: int
    most: int


def span(judged: Sequence[tuple[Criterion, Interval]]) -> Span:
    """Of several metrics together: the worst counts."""
    spans = [_span(criterion, change) for criterion, change in judged]
    return Span(max(one.least for one in spans), max(one.most for one in spans))


def _span(criterion: Criterion, change: Interval) -> Span:
    """Where an interval lies between the limits. A narrow one, no wider than `fine`, is as good as it needs to be: over the
    first limit the worse side is taken, over the second the estimate's."""
    low, high = _worst(criterion, change)
    fine, broken = _limits(criterion)
    if broken is None:
        return Span(int(low > fine), int(low > fine))
    if high - low > fine:
        return Span((low > fine) + (low > broken), (high > fine) + (high > broken))
    side = 2 if _worse(criterion, change.value) > broken else int(high > fine)
    return Span(side, side)


def _limits(criterion: Criterion) -> tuple[float, float | None]:
    """Limits in the units of changes, whose ratios are logarithms."""
    return (math.log(criterion.fine) if criterion.worse == "ratio" else criterion.fine), criterion.broken


def _passed(judged: Sequence[tuple[Criterion, Interval]]) -> list[str]:
    """Which limits are passed, and which may be."""
    found: dict[str, list[str]] = {}
    for criterion, change in judged:
        low, high = _worst(criterion, change)
        fine, broken = _limits(criterion)
        beyond = [limit for limit in (fine, broken) if limit is not None and high > limit]
        if beyond:
            limit = criterion.fine if beyond[-1] == fine else beyond[-1]
            name = criterion.words if criterion.broken is not None else words(criterion, change, True)
            found.setdefault(f"{'is' if low > beyond[-1] else 'may be'} beyond {limit:g}", []).append(name)
    return [
        f"{' and '.join(names)} {what.replace('is', 'are', 1) if len(names) > 1 else what}" for what, names in found.items()
    ]


def _more(judged: Sequence[tuple[Criterion, Interval]], documents: int) -> str:
    """How many more documents would settle it, if estimates stayed and widths shrank with the root of their number."""
    for step in range(1, 65):
        more = math.ceil(documents * (2 ** (step / 8) - 1))
        shrink = math.sqrt(documents / (documents + more))
        least, most = span([(criterion, shrunk(change, shrink)) for criterion, change in judged])
        if least == most:
            return f"measure about {more:,} more documents"
    return "it is too close to a limit for more documents to settle"


def shrunk(change: Interval, by: float) -> Interval:
    """The interval about the same estimate, narrower by a factor."""
    value = change.value
    return Interval(value, value - by * (value - change.low), value + by * (change.high - value))


def words(criterion: Criterion, change: Interval, signed: bool) -> str:
    """`ΔCE +0.025 nats [+0.016, +0.036]`; a ratio as a factor."""
    if criterion.worse == "ratio":
        value, low, high = (f"{math.exp(number):.2f}" for number in (change.value, change.low, change.high))
        return f"{criterion.words} {value} times [{low}, {high}]"
    value, low, high = (f"{number:{'+' if signed else ''}.3f}" for number in (change.value, change.low, change.high))
    bounds = "" if math.isnan(change.low) else f" [{low}, {high}]"
    return f"{criterion.words} {value}{criterion.unit}{bounds}"


def _worst(criterion: Criterion, change: Interval) -> tuple[float, float]:
    """The interval as one of a number that is larger the worse it is."""
    if criterion.worse == "more" or (criterion.worse == "ratio" and change.value >= 0):
        return change.low, change.high
    return -change.high, -change.low


def _worse(criterion: Criterion, value: float) -> float:
    """An estimate in the same direction."""
    return abs(value) if criterion.worse == "ratio" else value if criterion.worse == "more" else -value


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
