"""Cross-entropy and KL against torch's own, and chunks that cover every position once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_transfer.engine.losses import LOGITS_BYTES, chunks, cross_entropy, kl_divergence


def log_probs(seed: int) -> torch.Tensor:
    """Five positions of a vocabulary of seven."""
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_cross_entropy_is_minus_the_log_probability_of_the_label() -> None:
    """As torch computes it from logits."""
    labels = torch.tensor([0, 6, 3, 3, 1])
    expected = torch.nn.functional.cross_entropy(log_probs(0), labels, reduction="none")
    torch.testing.assert_close(cross_entropy(log_probs(0), labels), expected)


def test_kl_is_that_of_the_two_distributions_in_this_order() -> None:
    """KL(clean || spliced), position by position, and 0 between equals."""
    clean, spliced = log_probs(0), log_probs(1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=clean), torch.distributions.Categorical(logits=spliced)
    )
    torch.testing.assert_close(kl_divergence(clean, spliced), expected)
    torch.testing.assert_close(kl_divergence(clean, clean), torch.zeros(5))
    assert kl_divergence(clean, spliced).shape == (5,)


@given(st.integers(0, 10_000), st.integers(1, 2**26))
def test_chunks_cover_every_position_once_within_the_bound(positions: int, vocab: int) -> None:
    """No chunk's logits pass LOGITS_BYTES, unless a single position's do."""
    parts = list(chunks(positions, vocab))
    assert [index for part in parts for index in range(positions)[part]] == list(range(positions))
    longest = max((part.stop - part.start for part in parts), default=1)
    assert longest == 1 or longest * vocab * 4 <= LOGITS_BYTES
    assert all(part.stop <= positions for part in parts)


@pytest.mark.parametrize(("vocab", "length"), [(LOGITS_BYTES // 40, 10), (LOGITS_BYTES // 4, 1), (LOGITS_BYTES, 1)])
def test_chunks_are_as_long_as_the_bound_allows(vocab: int, length: int) -> None:
    """Shorter ones would run the head more often than needed."""
    assert next(chunks(100, vocab)) == slice(0, length)


def test_the_bound_is_32_megabytes() -> None:
    """Small enough for a laptop, large enough that the head's product fills its cores."""
    assert LOGITS_BYTES == 2**25
