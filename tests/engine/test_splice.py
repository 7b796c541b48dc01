"""Replacing and zeroing positions, outliers, distances."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_transfer.engine.splice import outliers, seen, splice, squared_distance, zero

RESID = torch.arange(1.0, 25.0).view(2, 3, 4)
AT = torch.tensor([[True, False, False], [False, True, True]])


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_only_chosen_positions_are_replaced(chosen: list[bool]) -> None:
    """They take the replacements in order; the others and the argument itself stay as they were."""
    at, before = torch.tensor(chosen).view(2, 3), RESID.clone()
    replacement = -torch.arange(1.0, 1.0 + 4 * int(at.sum())).view(-1, 4)
    spliced = splice(RESID, at, replacement)
    assert torch.equal(spliced[at], replacement)
    assert torch.equal(spliced[~at], RESID[~at])
    assert torch.equal(RESID, before)


def test_a_replacement_takes_the_residuals_dtype() -> None:
    """A float32 reconstruction goes into a bfloat16 stream."""
    spliced = splice(RESID.bfloat16(), AT, torch.full((3, 4), 0.5))
    assert spliced.dtype == torch.bfloat16
    assert set(spliced[AT].flatten().tolist()) == {0.5}


def test_zero_ablation_zeroes_chosen_positions_alone() -> None:
    """The others and the argument stay as they were."""
    zeroed = zero(RESID, AT)
    assert zeroed[AT].abs().sum() == 0
    assert torch.equal(zeroed[~AT], RESID[~AT])
    assert RESID.min() == 1


def test_an_outlier_is_strictly_above_the_threshold() -> None:
    """At the threshold a position is kept; without one all are."""
    norms = torch.tensor([1.0, 2.0, 3.0])
    assert outliers(norms, 2.0).tolist() == [False, False, True]
    assert outliers(norms, None).tolist() == [False, False, False]


def test_a_centred_sae_sees_the_residual_without_its_mean() -> None:
    """And the mean is what its reconstruction lacks; other SAEs see the residual itself, and lack nothing."""
    x, lacking = seen(RESID.bfloat16(), centred=True)
    assert torch.equal(x.mean(-1), torch.zeros(2, 3))
    assert torch.equal(x + lacking, RESID)
    x, lacking = seen(RESID.bfloat16(), centred=False)
    assert torch.equal(x, RESID)
    assert torch.equal(lacking, torch.zeros(2, 3, 1))


def test_squared_distance_is_summed_over_d_model() -> None:
    """One number a position."""
    a, b = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[4.0, 6.0], [0.0, 1.0]])
    assert squared_distance(a, b).tolist() == [25.0, 1.0]
