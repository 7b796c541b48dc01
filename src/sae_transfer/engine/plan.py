"""Lengths of token rows -> batches -> ordered units of work. No tensors: a dry run, resume and a shard read the same plan."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

UNIT_TOKENS = 4_096
"""A unit is the least work that a killed run repeats: batches of about this many tokens, padding included."""


@dataclass(frozen=True)
class Batch:
    """Token rows of one data set that run together; `rows` are their indices in input order."""

    key: str
    rows: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Unit:
    """One model on some consecutive batches of one data set, with all of the model's SAEs: one part of the run."""

    key: str
    model: str
    data: str
    batches: tuple[Batch, ...]

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(batch.tokens for batch in self.batches)


def batches(data: str, lengths: Sequence[int], batch_size: int) -> tuple[Batch, ...]:
    """Rows of like length together, so that little is padding; rows of equal length stay in input order."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return tuple(
        Batch(
            f"{data}/{start // batch_size}",
            rows := tuple(order[start : start + batch_size]),
            sum(lengths[r] for r in rows),
        )
        for start in range(0, len(order), batch_size)
    )


def plan(
    pairs: Sequence[tuple[str, str]], lengths: Mapping[str, Sequence[int]], batch_size: int, done: Collection[str] = ()
) -> tuple[Unit, ...]:
    """Units of the (model, data) pairs, in order, less those whose keys are `done`."""
    units = []
    for model, data in pairs:
        groups: list[list[Batch]] = [[]]
        size = 0
        for batch in batches(data, lengths[data], batch_size):
            padded = len(batch.rows) * max(lengths[data][row] for row in batch.rows)
            if groups[-1] and size + padded > UNIT_TOKENS:
                groups.append([])
                size = 0
            groups[-1].append(batch)
            size += padded
        units += [Unit(f"{model}/{data}/{index}", model, data, tuple(group)) for index, group in enumerate(groups) if group]
    return tuple(unit for unit in units if unit.key not in done)
