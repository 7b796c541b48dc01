"""Batches and units cover every row once, whatever the sizes."""

from hypothesis import given
from hypothesis import strategies as st

from sae_transfer.engine.plan import UNIT_TOKENS, batches, plan

LENGTHS = st.lists(st.integers(2, 3000), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 20))
def test_every_row_runs_once_among_rows_of_like_length(lengths: list[int], size: int) -> None:
    """No batch is larger than asked for, and none is shorter than a later one's."""
    found = batches("text", lengths, size)
    assert sorted(row for batch in found for row in batch.rows) == list(range(len(lengths)))
    assert all(len(batch.rows) <= size for batch in found)
    assert [lengths[row] for batch in found for row in batch.rows] == sorted(lengths)
    assert sum(batch.tokens for batch in found) == sum(lengths)
    assert len({batch.key for batch in found}) == len(found)


@given(LENGTHS, st.integers(1, 20))
def test_units_are_batches_of_bounded_size(lengths: list[int], size: int) -> None:
    """A unit passes UNIT_TOKENS only when a single batch does; what is done is not planned again."""
    units = plan([("base", "text"), ("chat", "text")], {"text": lengths}, size)
    for unit in units:
        padded = sum(len(batch.rows) * max(lengths[row] for row in batch.rows) for batch in unit.batches)
        assert padded <= UNIT_TOKENS or len(unit.batches) == 1
    assert sum(unit.tokens for unit in units) == 2 * sum(lengths)
    done = {unit.key for unit in units[::2]}
    assert [unit.key for unit in plan([("base", "text"), ("chat", "text")], {"text": lengths}, size, done)] == [
        unit.key for unit in units[1::2]
    ]
