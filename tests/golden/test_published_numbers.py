"""Every golden number, through the command line: agreement with the published code to a relative 1e-4."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.golden import published
from tests.golden.published import Compared

AGREEMENT = 1e-4


def assert_agrees(found: Iterator[Compared], numbers: int) -> None:
    """All of so many published numbers are there, and each agrees."""
    compared = list(found)
    assert len(compared) == numbers
    assert [entry for entry in compared if not entry.difference <= AGREEMENT] == []


@pytest.mark.parametrize("ignore_outliers", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_random_models_match_the_published_functions(golden: Callable[[str], Path], name: str, ignore_outliers: bool) -> None:
    """Text and masked rows of the random models, with outliers left out and with outliers spliced."""
    assert_agrees(published.random_model(golden(name), ignore_outliers), 2 * 8 + 2 * 9)


@pytest.mark.parametrize(("ignore_outliers", "numbers"), [(True, 2 * 8 + 1 + 6 * 9), (False, 2 * 8 + 1)])
def test_smollm2_matches_the_published_functions(
    golden: Callable[[str], Path], smollm2: Path, ignore_outliers: bool, numbers: int
) -> None:
    """4,096 tokens of WikiText-2 and 24 chats in one command; with outliers spliced CE recovered falls from 0.93 to 0.58."""
    assert_agrees(published.smollm2(golden("smollm2"), smollm2, ignore_outliers), numbers)
