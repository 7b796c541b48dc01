"""Replace or zero chosen positions of a residual; distances of vectors. Pure."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

Residual = Float[Tensor, "batch pos d_model"]
Positions = Bool[Tensor, "batch pos"]


def splice(resid: Residual, at: Positions, replacement: Float[Tensor, "at d_model"]) -> Residual:
    """`resid` with the positions `at` replaced, in order, and the others as they were."""
    spliced = resid.clone()
    spliced[at] = replacement.to(resid.dtype)
    return spliced


def reconstructed(resid: Residual, reconstruct: Callable[[Tensor], Tensor], factor: float, threshold: float | None) -> Residual:
    """`resid` with every position that is no outlier replaced by its reconstruction, which is made of scaled activations.

    `threshold` is unscaled, as in `outliers`.
    """
    under = resid.float()
    kept = ~outliers(under.norm(dim=-1), threshold)
    return splice(resid, kept, reconstruct(under[kept] * factor) / factor)


def zero(resid: Residual, at: Positions) -> Residual:
    """`resid` with the positions `at` set to zero."""
    return resid.masked_fill(at.unsqueeze(-1), 0.0)


def outliers(norms: Float[Tensor, "*shape"], threshold: float | None) -> Bool[Tensor, "*shape"]:
    """Where a norm is strictly above the threshold; nowhere without one. Both unscaled."""
    return norms > (float("inf") if threshold is None else threshold)


def squared_distance(a: Float[Tensor, "pos d_model"], b: Float[Tensor, "pos d_model"]) -> Float[Tensor, " pos"]:
    """sum_d (a - b)^2 of each position, in the units of a and b squared."""
    return (a - b).pow(2).sum(-1)
