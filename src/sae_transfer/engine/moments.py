"""Activations of two models at the same positions -> moments that add up, and how far the two lie apart. Pure.

x is the reference model's activation, y the other's, d = y - x. Moments are taken about their own means and added by Chan,
Golub and LeVeque's rule (1983), so that a mean far larger than what varies cancels nothing; they are float64 throughout.
docs/drift.md has each formula. Statistics that need the moments of two halves of the documents take them; all others take
their sum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

TOP = 5
"""Principal directions of the difference that are told."""
NOTHING = 1e-12
"""A variance is none below this share of what it was computed from: what rounding in float64 may leave."""

Vectors = Float[Tensor, "pos d_model"]
Matrix = Float[Tensor, "d_model d_model"]


class UnknownError(ValueError):
    """A statistic that these positions don't determine, and why."""


@dataclass(frozen=True)
class Moments:
    """Sums over positions. `square` is |.|^2; the matrices are centred: the sum of (x - mean x)(y - mean y)^T, and so on."""

    count: int
    cosine: float
    norm_x: float
    norm_y: float
    square_x: float
    square_d: float
    along: float
    """Sum of the products d . x."""
    mean_x: Float[Tensor, " d_model"]
    mean_y: Float[Tensor, " d_model"]
    xx: Matrix
    yy: Matrix
    xy: Matrix

    @classmethod
    def of(cls, x: Vectors, y: Vectors) -> "Moments":
        """Of some positions, at least one."""
        x, y = x.double(), y.double()
        d, norm_x, norm_y = y - x, x.norm(dim=-1), y.norm(dim=-1)
        mean_x, mean_y = x.mean(0), y.mean(0)
        cx, cy = x - mean_x, y - mean_y
        return cls(
            count=len(x),
            cosine=float(((x * y).sum(-1) / (norm_x * norm_y).clamp(min=torch.finfo(x.dtype).tiny)).sum()),
            norm_x=float(norm_x.sum()),
            norm_y=float(norm_y.sum()),
            square_x=float(x.pow(2).sum()),
            square_d=float(d.pow(2).sum()),
            along=float((d * x).sum()),
            mean_x=mean_x,
            mean_y=mean_y,
            xx=cx.T @ cx,
            yy=cy.T @ cy,
            xy=cx.T @ cy,
        )

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of the positions of both."""
        count = self.count + other.count
        share, weight = other.count / count, self.count * other.count / count
        dx, dy = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        return Moments(
            count=count,
            cosine=self.cosine + other.cosine,
            norm_x=self.norm_x + other.norm_x,
            norm_y=self.norm_y + other.norm_y,
            square_x=self.square_x + other.square_x,
            square_d=self.square_d + other.square_d,
            along=self.along + other.along,
            mean_x=self.mean_x + share * dx,
            mean_y=self.mean_y + share * dy,
            xx=self.xx + other.xx + weight * torch.outer(dx, dx),
            yy=self.yy + other.yy + weight * torch.outer(dy, dy),
            xy=self.xy + other.xy + weight * torch.outer(dx, dy),
        )


@dataclass(frozen=True)
class Halves:
    """The moments of documents of even and of odd index; None where a half has no position."""

    even: Moments | None
    odd: Moments | None

    @cached_property
    def all(self) -> Moments:
        """Of every position. Raises UnknownError where there is none."""
        there = [half for half in (self.even, self.odd) if half is not None]
        if not there:
            raise UnknownError("no position is kept")
        return there[0] if len(there) == 1 else there[0] + there[1]


def moments_bytes(d_model: int) -> int:
    """What the two halves of one place hold at once, in bytes."""
    return 2 * 3 * d_model**2 * torch.float64.itemsize


def cosine(halves: Halves) -> float:
    """Mean of cos(x, y)."""
    return halves.all.cosine / halves.all.count


def norm_ratio(halves: Halves) -> float:
    """Mean |y| / mean |x|."""
    return _over(halves.all.norm_y, halves.all.norm_x, "every activation of the reference is zero")


def relative_distance(halves: Halves) -> float:
    """sqrt(sum |d|^2 / sum |x - mean x|^2)."""
    variance = _variance(halves.all.xx, halves.all.square_x)
    return float((halves.all.square_d / variance) ** 0.5)


def cka(halves: Halves) -> float:
    """Linear CKA of centred activations (Kornblith et al. 2019): |Xc^T Yc|^2 / (|Xc^T Xc| |Yc^T Yc|), Frobenius norms."""
    every = halves.all
    _variance(every.xx, every.square_x)
    return _over(float(every.xy.pow(2).sum()), float(every.xx.norm() * every.yy.norm()), "the activations have no variance")


def scalar_share(halves: Halves) -> float:
    """Share of sum |d|^2 that y = a x explains with the best a: (sum d . x)^2 / (sum |x|^2 sum |d|^2)."""
    moved = _moved(halves.all)
    return _over(halves.all.along**2, halves.all.square_x * moved, "every activation of the reference is zero")


def shift_share(halves: Halves) -> float:
    """Share of sum |d|^2 that y = x + b explains with the best b: n |mean d|^2 / sum |d|^2."""
    shift = halves.all.mean_y - halves.all.mean_x
    return halves.all.count * float(shift.pow(2).sum()) / _moved(halves.all)


def orthogonal_share(halves: Halves) -> float:
    """Share of sum |d|^2 that an orthogonal map about the means explains on the half of documents that it was not fitted on.

    Below 0 where the map makes it worse. Both ways, errors added before they are divided.
    """
    moved = _moved(halves.all)
    even, odd = halves.even, halves.odd
    d_model = len(halves.all.mean_x)
    if even is None or odd is None or min(even.count, odd.count) <= d_model:
        raise UnknownError(f"a map of width {d_model} needs more than {d_model} positions in each half of the documents")
    return 1 - (_left_over(even, odd) + _left_over(odd, even)) / moved


def difference_pcs(halves: Halves) -> tuple[float, ...]:
    """Shares of the variance of d along its top principal directions, largest first."""
    every = halves.all
    _moved(every)
    covariance = every.xx + every.yy - every.xy - every.xy.T
    total = float(covariance.trace())
    if not total > NOTHING * float(every.xx.trace() + every.yy.trace()):
        raise UnknownError("moved by one shift alone")
    largest = torch.linalg.eigvalsh(covariance).flip(0)[:TOP].clamp(min=0)
    return tuple((largest / total).tolist())


STATISTICS: dict[str, Callable[[Halves], float | tuple[float, ...]]] = {
    "cosine": cosine,
    "norm_ratio": norm_ratio,
    "relative_distance": relative_distance,
    "cka": cka,
    "scalar_share": scalar_share,
    "shift_share": shift_share,
    "orthogonal_share": orthogonal_share,
    "difference_pcs": difference_pcs,
}
CHEAP = ("cosine", "norm_ratio", "relative_distance", "cka", "scalar_share", "shift_share")
"""Those without a decomposition, whose cost grows with the cube of d_model."""


def described(halves: Halves, names: Sequence[str]) -> tuple[Mapping[str, float | tuple[float, ...] | None], str]:
    """Some of the statistics; None where one is unknown, and the reasons."""
    values: dict[str, float | tuple[float, ...] | None] = {}
    reasons: dict[str, list[str]] = {}
    for name in names:
        try:
            values[name] = STATISTICS[name](halves)
        except UnknownError as unknown:
            values[name] = None
            reasons.setdefault(str(unknown), []).append(name)
    return values, "; ".join(f"{reason}: no {', '.join(missing)}" for reason, missing in reasons.items())


def _left_over(fitted: Moments, on: Moments) -> float:
    """sum |y - my - (x - mx) Q|^2 over `on`, with the means and the Q of `fitted` (Procrustes; Schönemann 1966)."""
    u, _, vt = torch.linalg.svd(fitted.xy)
    q = u @ vt
    off = (on.mean_y - fitted.mean_y) - (on.mean_x - fitted.mean_x) @ q
    centred = on.yy.trace() + on.xx.trace() - 2 * (q * on.xy).sum()
    return float(centred + on.count * off.pow(2).sum())


def _moved(moments: Moments) -> float:
    if moments.square_d == 0:
        raise UnknownError("nothing moved")
    return moments.square_d


def _variance(centred: Matrix, square: float) -> float:
    variance = float(centred.trace())
    if not variance > NOTHING * square:
        raise UnknownError("the activations of the reference have no variance")
    return variance


def _over(above: float, below: float, why: str) -> float:
    if not below > 0:
        raise UnknownError(why)
    return above / below
