"""Each statistic of drift against a plain computation, and on maps whose answer is known."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from sae_transfer.engine.moments import CHEAP, STATISTICS, Halves, Moments, described

POSITIONS, WIDTH, MEAN = 400, 6, 1000.0
Array = NDArray[np.float64]


def stream(seed: int, mean: float = MEAN) -> Tensor:
    """Activations [pos, d_model] about a mean that is far larger than what varies."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(WIDTH, WIDTH, generator=generator)
    return torch.randn(POSITIONS, WIDTH, generator=generator) @ mix + mean * torch.linspace(1, 2, WIDTH)


def changed(x: Tensor, noise: float = 0.3) -> Tensor:
    """A model's activations moved by a bit of everything."""
    generator = torch.Generator().manual_seed(9)
    return 1.1 * x + torch.linspace(-1, 1, WIDTH) + noise * torch.randn(x.shape, generator=generator)


def halves_of(x: Tensor, y: Tensor) -> Halves:
    """Positions of even and of odd index."""
    return Halves(Moments.of(x[::2], y[::2]), Moments.of(x[1::2], y[1::2]))


def plain(x: Array, y: Array) -> dict[str, float | list[float]]:
    """The definitions of docs/drift.md, position by position."""
    moved = sum(float(np.dot(b - a, b - a)) for a, b in zip(x, y, strict=True))
    xc, yc = x - x.mean(0), y - y.mean(0)
    best = (x * y).sum() / (x * x).sum()
    left = 0.0
    for fit, test in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        mx, my = x[fit].mean(0), y[fit].mean(0)
        q, _ = orthogonal_procrustes(x[fit] - mx, y[fit] - my)
        left += float((((y[test] - my) - (x[test] - mx) @ q) ** 2).sum())
    variances = np.linalg.eigvalsh(np.cov((y - x).T))[::-1]
    return {
        "cosine": float(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x, y, strict=True)])),
        "norm_ratio": float(np.linalg.norm(y, axis=1).mean() / np.linalg.norm(x, axis=1).mean()),
        "relative_distance": float(np.sqrt(moved / (xc**2).sum())),
        "cka": float(((yc.T @ xc) ** 2).sum() / np.linalg.norm(xc.T @ xc) / np.linalg.norm(yc.T @ yc)),
        "scalar_share": 1 - float(((y - best * x) ** 2).sum()) / moved,
        "shift_share": 1 - float(((y - x - (y - x).mean(0)) ** 2).sum()) / moved,
        "orthogonal_share": 1 - left / moved,
        "difference_pcs": [float(value) for value in variances[:5] / variances.sum()],
    }


@pytest.mark.parametrize("mean", [0.0, MEAN])
@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_its_definition(name: str, mean: float) -> None:
    """Moments give what a loop over the positions gives, with a huge mean and without."""
    x = stream(0, mean)
    y = changed(x)
    expected = plain(x.double().numpy(), y.double().numpy())[name]
    assert STATISTICS[name](halves_of(x, y)) == pytest.approx(expected, rel=1e-8, abs=1e-9)


@given(st.lists(st.integers(1, POSITIONS - 1), max_size=6, unique=True))
def test_moments_add_up_however_positions_are_parted(cuts: Sequence[int]) -> None:
    """Parts of any size give the moments of the whole."""
    x = stream(0)
    y = changed(x)
    edges = [0, *sorted(cuts), POSITIONS]
    parts = [Moments.of(x[a:b], y[a:b]) for a, b in pairwise(edges)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    whole = Moments.of(x, y)
    assert total.count == whole.count
    for name in ("cosine", "norm_x", "norm_y", "square_x", "square_d", "along"):
        assert getattr(total, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    for name in ("mean_x", "mean_y", "xx", "yy", "xy"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-10, atol=1e-8)


def rotation(seed: int) -> Tensor:
    """A random orthogonal map."""
    drawn = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q: Tensor = torch.linalg.qr(drawn)[0]
    return q


def test_a_model_lies_at_no_distance_from_itself() -> None:
    """Cosine 1, CKA 1, distance 0, and no share of a move that was not made."""
    x = stream(0)
    values, note = described(halves_of(x, x.clone()), tuple(STATISTICS))
    assert values["cosine"] == pytest.approx(1, abs=1e-12)
    assert values["cka"] == pytest.approx(1, abs=1e-12)
    assert (values["norm_ratio"], values["relative_distance"]) == (1, 0)
    assert note == "nothing moved: no scalar_share, shift_share, orthogonal_share, difference_pcs"


@pytest.mark.parametrize("a", [0.01, 1.5, 140.0])
def test_a_scalar_explains_a_scaled_stream(a: float) -> None:
    """y = a x: direction and shape stay, size is a, a scalar explains everything."""
    x = stream(0, 3.0).double()
    halves = halves_of(x, a * x)
    for name, value in {"scalar_share": 1, "cosine": 1, "cka": 1, "norm_ratio": a}.items():
        assert STATISTICS[name](halves) == pytest.approx(value, rel=1e-12)


def test_a_shift_explains_a_shifted_stream() -> None:
    """y = x + b: a shift explains everything, CKA sees nothing, and the difference has no directions."""
    x = stream(0, 3.0).double()
    values, note = described(halves_of(x, x + torch.linspace(1, 5, WIDTH, dtype=torch.float64)), tuple(STATISTICS))
    assert values["shift_share"] == pytest.approx(1, rel=1e-12)
    assert values["cka"] == pytest.approx(1, rel=1e-12)
    assert note == "moved by one shift alone: no difference_pcs"


def test_an_orthogonal_map_explains_a_turned_stream() -> None:
    """y = Q x + b: the map explains everything on the half that it was not fitted on, and CKA is 1."""
    x = stream(0, 3.0).double()
    halves = halves_of(x, x @ rotation(1) + 2)
    assert STATISTICS["orthogonal_share"](halves) == pytest.approx(1, abs=1e-10)
    assert STATISTICS["cka"](halves) == pytest.approx(1, rel=1e-12)


def test_an_orthogonal_map_explains_no_noise() -> None:
    """Fitted and judged on the same positions it would: held out, an overfit map is worse than none."""
    x, noise = stream(0, 0.0)[:40], torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3))
    share = STATISTICS["orthogonal_share"](halves_of(x, x + noise))
    assert isinstance(share, float)
    assert share < 0.05


@pytest.mark.parametrize(("positions", "reason"), [(0, "no position is kept"), (2, "more than 6 positions in each half")])
def test_what_too_few_positions_leave_open_is_said(positions: int, reason: str) -> None:
    """Nothing is made up: the value is None and the note says why."""
    x = stream(0)[:positions]
    halves = halves_of(x, changed(x)) if positions else Halves(None, None)
    values, note = described(halves, tuple(STATISTICS))
    assert values["orthogonal_share"] is None
    assert reason in note


def test_cheap_statistics_are_the_same_numbers() -> None:
    """What `evaluate` leaves out changes nothing of the rest."""
    x = stream(0)
    halves = halves_of(x, changed(x))
    some, every = described(halves, CHEAP)[0], described(halves, tuple(STATISTICS))[0]
    assert some == {name: every[name] for name in CHEAP}
