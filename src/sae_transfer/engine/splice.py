"""See a residual as an SAE does, replace or zero chosen positions of it; distances of vectors. Pure."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

Residual = Float[Tensor, "batch pos d_model"]
Positions = Bool[Tensor, "batch pos"]
Activations = Float[Tensor, "*shape d_model"]


def seen(resid: Float[Tensor, "*shape d_model"], centred: bool) -> tuple[Activations, Float[Tensor, "*shape 1"]]:
    """What an SAE sees of a residual, in float32, and what must be added to its reconstruction: the mean over d_model where
    it sees centred activations, else 0."""
    x = resid.float()
    if not centred:
        return x, x.new_zeros(*x.shape[:-1], 1)
    mean = x.mean(-1, keepdim=True)
    return x - mean, mean


def splice(resid: Residual, at: Positions, replacement: Float[Tensor, "at d_model"]) -> Residual:
    """`resid` with the positions `at` replaced, in order, and the others as they were."""
    spliced = resid.clone()
    spliced[at] = replacement.to(resid.dtype)
    return spliced


def reconstructed(
    resid: Residual, reconstruct: Callable[[Tensor], Tensor], factor: float, threshold: float | None, centred: bool
) -> Residual:
    """`resid` with every position that is no outlier replaced by its reconstruction, which is made of scaled activations.

    `threshold` is unscaled, as in `outliers`; `centred` as in `seen`.
    """
    x, mean = seen(resid, centred)
    kept = ~outliers(x.norm(dim=-1), threshold)
    return splice(resid, kept, reconstruct(x[kept] * factor) / factor + mean[kept])


def zero(resid: Residual, at: Positions) -> Residual:
    """`resid` with the positions `at` set to zero."""
    return resid.masked_fill(at.unsqueeze(-1), 0.0)


def outliers(norms: Float[Tensor, "*shape"], threshold: float | None) -> Bool[Tensor, "*shape"]:
    """Where a norm is strictly above the threshold; nowhere without one. Both unscaled."""
    return norms > (float("inf") if threshold is None else threshold)


def squared_distance(a: Float[Tensor, "pos d_model"], b: Float[Tensor, "pos d_model"]) -> Float[Tensor, " pos"]:
    """sum_d (a - b)^2 of each position, in the units of a and b squared."""
    return (a - b).pow(2).sum(-1)
