"""Cross-entropy and KL divergence of single positions, in nats. Pure; float32 in, float32 out."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOGITS_BYTES = 2**25
"""Logits held at once, per condition: a chunk's, never a whole batch's."""


def chunks(positions: int, vocab: int) -> Iterator[slice]:
    """Slices that cut `positions` so that no chunk's logits (float32) exceed LOGITS_BYTES."""
    length = max(1, LOGITS_BYTES // (4 * vocab))
    for start in range(0, positions, length):
        yield slice(start, min(start + length, positions))


def cross_entropy(log_probs: Float[Tensor, "pos vocab"], labels: Int[Tensor, " pos"]) -> Float[Tensor, " pos"]:
    """-log p(label) of each position."""
    return -log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def kl_divergence(clean: Float[Tensor, "pos vocab"], spliced: Float[Tensor, "pos vocab"]) -> Float[Tensor, " pos"]:
    """KL(clean || spliced) = sum_v p_clean(v) (log p_clean(v) - log p_spliced(v)); both are log-probabilities."""
    return torch.nn.functional.kl_div(spliced, clean, reduction="none", log_target=True).sum(-1)
