"""Drift records -> a plain sentence for each model: will an SAE of the reference probably transfer? By fixed thresholds.

No SAE is involved, so this is a guess; docs/drift.md says what the thresholds were set by, and where drift and the cost of
a splice part ways.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class Threshold(NamedTuple):
    """What one statistic must keep for a forecast of transfer, what it must lose for one of failure; between lies doubt.

    Both are lower limits of the statistic as `folded`: a ratio of norms is taken from either side.
    """

    statistic: str
    keeps: float
    loses: float
    what: str
    named: str


THRESHOLDS = (
    Threshold("cosine", 0.9, 0.7, "direction", "cosine"),
    Threshold("norm_ratio", 1 / 2, 1 / 4, "size", "norm ratio"),
    Threshold("cka", 0.8, 0.5, "shape", "CKA"),
)
"""At each place of each data set and token kind; a model is forecast by its worst place."""

VERBS = ("keeps", "half keeps", "does not keep")
FORECASTS = (
    "an SAE of {reference} probably transfers; evaluate it to be sure",
    "an SAE of {reference} may or may not transfer; evaluate it",
    "an SAE of {reference} probably does not transfer; evaluate it before you trust it",
)


def folded(statistic: str, value: float) -> float:
    """The value that a threshold takes: a ratio above 1 is turned over."""
    return min(value, 1 / value) if statistic == "norm_ratio" and value > 0 else value


def level(threshold: Threshold, record: Record) -> int:
    """0 kept, 1 doubtful, 2 lost; a statistic that is not there says nothing."""
    value = record[threshold.statistic]
    if value is None:
        return 0
    at = folded(threshold.statistic, value)
    return 0 if at >= threshold.keeps else 1 if at >= threshold.loses else 2


def worst(record: Record) -> int:
    """The forecast at one place: an index into FORECASTS."""
    return max(level(threshold, record) for threshold in THRESHOLDS)


def forecast(records: Sequence[Record], model: str) -> str:
    """What a model's drift lets one expect, told where it is worst, and of places alike where the cosine is least."""
    mine = [record for record in records if record["model"] == model]
    known = [record for record in mine if record["cosine"] is not None]
    if not known:
        return f"{model}: nothing can be said ({mine[0]['note']})."
    if all(record["relative_distance"] == 0 for record in known):
        return f"{model}: nothing moved: to an SAE of {known[0]['reference']} it is the same model."
    most = max(known, key=lambda record: (worst(record), -record["cosine"]))
    # what decides is told; where nothing is lost, direction and size are enough
    told = [entry for entry in THRESHOLDS if level(entry, most) == worst(most)] if worst(most) else THRESHOLDS[:2]
    parts = [f"{entry.what} ({entry.named} {_number(most[entry.statistic])})" for entry in told]
    where = f"{most['data']} {most['token_kind']}, {most['hook_point']}"
    says = FORECASTS[worst(most)].format(reference=most["reference"])
    return f"{model}: where it moved most ({where}) the stream {VERBS[worst(most)]} its {_listed(parts)}: {says}."


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
