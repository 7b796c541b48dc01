"""Records + bounds -> whether each bound holds, is broken, or is not settled by the data. Pure; `check` prints it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sae_transfer.metrics.cells import Record
from sae_transfer.metrics.intervals import Interval
from sae_transfer.metrics.verdict import LEAST_DOCUMENTS, documents_needed

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
    said = f"{bound.words} {value:.4g} [{found.low:.4g}, {found.high:.4g}] {sign} {bound.limit:g}"
    few = LEAST_DOCUMENTS - record["documents"]
    if low is None or few > 0:
        what = f"{bound.words} {value:.4g} {sign} {bound.limit:g}, of {record['documents']} documents"
        return Outcome(record, "not enough data", f"{what}: measure {max(few, 1)} more at least")
    inside, outside = found.high <= bound.limit, found.low > bound.limit
    if bound.side == "least":
        inside, outside = found.low >= bound.limit, found.high < bound.limit
    if inside or outside:
        return Outcome(record, "holds" if inside else "broken", said)
    more = documents_needed(found, [bound.limit], None, record["documents"]) - record["documents"]
    return Outcome(record, "not enough data", f"{said}: measure about {more:,} more documents")


def outcomes(records: Sequence[Record], bounds: Sequence[Bound]) -> list[Outcome]:
    """Every bound on every record."""
    return [outcome(record, bound) for record in records for bound in bounds]
