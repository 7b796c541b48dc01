"""docs/drift.md holds what the demo pair gives."""

import pytest

from recipes.demo_pair.drift import PAGE, shown, tables
from sae_transfer import Run
from tests.test_docs import words_and_numbers


def test_the_page_of_drift_has_the_demos_figures(demo_run: Run) -> None:
    """Every table: the same words, and numbers that differ by the rounding of machines."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables(demo_run).items():
        for found, expected in zip(shown(page, name).splitlines(), table.splitlines(), strict=True):
            words, numbers = words_and_numbers(expected)
            assert words_and_numbers(found)[0] == words
            assert words_and_numbers(found)[1] == pytest.approx(numbers, rel=0.02, abs=0.006), found
