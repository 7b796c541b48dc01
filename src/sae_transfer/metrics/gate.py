"""Records + bounds -> whether each bound holds, is broken, or is not settled by the data. Pure; `check` prints it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sae_transfer.metrics.cells import Record
from sae_transfer.metrics.intervals import Interval
from sae_transfer.metrics.verdict import LEAST_DOCUMENTS, shrunk

State = Literal["holds", "broken", "not enough data"]


@dataclass(frozen=True)
class Bound:
    """The most that a metric may be, or the least."""

    metric: str
    words: str
    side: Literal["most", "least"]
    limit: float


@dataclass(frozen=True)
class Outcome:
    """One bound on one record."""

    record: Record
    state: State
    said: str


def outcome(record: Record, bound: Bound) -> Outcome:
    """By the 95% interval: on the right side of the bound, on the wrong one, or on both."""
    value, low, high = (record[f"{bound.metric}{end}"] for end in ("", "_low", "_high"))
    sign = "<=" if bound.side == "most" else ">="
    if value is None:
        return Outcome(record, "not enough data", f"{bound.words} is not known ({record['note']})")
    found = Interval(value, *((value, value) if low is None else (low, high)))
    few = LEAST_DOCUMENTS - record["documents"]
    if low is None or few > 0:
        what = f"{bound.words} {value:.4g}, wanted {sign} {bound.limit:g}, of {record['documents']} documents"
        return Outcome(record, "not enough data", f"{what}: measure {max(few, 1)} more at least")
    said = f"{bound.words} {value:.4g} [{found.low:.4g}, {found.high:.4g}], wanted {sign} {bound.limit:g}"
    side = _side(found, bound)
    if side is not None:
        return Outcome(record, side, said)
    return Outcome(record, "not enough data", f"{said}: {_more(found, bound, record['documents'])}")


def _side(found: Interval, bound: Bound) -> State | None:
    """On which side of the bound an interval lies; None on both."""
    inside, outside = found.high <= bound.limit, found.low > bound.limit
    if bound.side == "least":
        inside, outside = found.low >= bound.limit, found.high < bound.limit
    return "holds" if inside else "broken" if outside else None


def _more(found: Interval, bound: Bound, documents: int) -> str:
    """How many more documents would settle it, if the estimate stayed and the width shrank with the root of their number."""
    for step in range(1, 65):
        more = math.ceil(documents * (2 ** (step / 8) - 1))
        if _side(shrunk(found, math.sqrt(documents / (documents + more))), bound) is not None:
            return f"measure about {more:,} more documents"
    return "it is too close to the bound for more documents to settle"


def outcomes(records: Sequence[Record], bounds: Sequence[Bound]) -> list[Outcome]:
    """Every bound on every record."""
    return [outcome(record, bound) for record in records for bound in bounds]
