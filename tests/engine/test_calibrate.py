"""The outlier rule, scaling factors and thresholds."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_transfer import UserError, evaluate
from sae_transfer.engine.calibrate import Sample, describe, norm_scaling_factor, outlier_threshold, scale
from sae_transfer.rows import Norms
from sae_transfer.specs import HookPoint
from tests.conftest import write_jsonl


def norms_of(*values: float) -> torch.Tensor:
    """Sorted, in float32, as the prefix pass gives them."""
    return torch.tensor(sorted(values), dtype=torch.float32)


@pytest.mark.parametrize(
    ("norms", "threshold"),
    [
        ([1, 1, 1, 1, 9, 10], 3.0),  # 1 -> 9 is the widest gap of at least 2, 9 is at least 3 medians
        ([1, 1, 1, 1, 3, 7], math.sqrt(3)),  # 3 -> 7 is narrower than 1 -> 3, and 3 is 3 medians
        ([1, 1, 1, 1, 2.9, 4], None),  # 2.9 -> 4 is too narrow; 1 -> 2.9 ends below 3 medians
        ([1, 1, 1, 1, 1.4, 5.9], math.sqrt(1.4 * 5.9)),
        ([1, 1, 1, 1.6, 3.1], None),  # wide enough nowhere
        ([1, 1, 1, 1, 1.9, 3.8], math.sqrt(1.9 * 3.8)),  # a ratio of exactly 2
        ([5], None),
        ([0, 0, 0, 4], None),  # nothing can be said of a ratio to nothing
    ],
)
def test_the_widest_gap_far_above_the_median_sets_outliers_apart(norms: list[float], threshold: float | None) -> None:
    """The threshold is the geometric mean of the gap's two norms, or there is none."""
    assert outlier_threshold(norms_of(*norms)) == (None if threshold is None else pytest.approx(threshold, rel=1e-6))


@given(st.lists(st.floats(0.5, 1.9), min_size=3, max_size=50), st.floats(0.125, 8))
def test_the_rule_does_not_depend_on_units(norms: list[float], factor: float) -> None:
    """Scaled norms give the scaled threshold; norms within a factor of 3 of each other have no outlier."""
    with_one = norms_of(*norms, 100.0)
    found = outlier_threshold(with_one)
    assert found is not None
    assert outlier_threshold(with_one * factor) == pytest.approx(found * factor, rel=1e-5)
    assert max(norms) <= found <= 100.0


def test_scaling_factors_leave_out_the_rules_outliers_or_nothing() -> None:
    """`auto` leaves them out of the mean, `saelens` does not."""
    sample = Sample(16, norms_of(1, 1, 3, 3, 100), "text", norms_of(1, 3, 100))
    norms = describe("m", HookPoint(1, "resid_pre"), sample)
    assert (norms.outliers, norms.positions, norms.scaled_by) == (1, 5, "text")
    assert norms.factor_auto == pytest.approx(4 / 2)
    assert norms.factor_saelens == pytest.approx(4 / (104 / 3))
    assert norms.auto_threshold == pytest.approx(math.sqrt(300))
    assert norms.quantiles == {"0.0": 1, "0.01": 1, "0.1": 1, "0.5": 3, "0.9": 100, "0.99": 100, "1.0": 100}


def test_the_scaled_mean_norm_is_the_root_of_d_model() -> None:
    """What "expected_average_only_in" asks for."""
    norms = norms_of(2.0, 5.0, 11.0)
    assert float((norms * norm_scaling_factor(64, norms, None)).mean()) == pytest.approx(8.0)


NORMS = Norms("chat", "blocks.1.hook_resid_pre", 9, {}, 50.0, 1, "text", 0.5, 0.25)
OWN = Norms("base", "blocks.1.hook_resid_pre", 9, {}, None, 0, "text", 2.0, 1.0)


@pytest.mark.parametrize(
    ("factor", "asked", "expected"),
    [
        ("auto", True, 0.5),
        ("saelens", True, 0.25),
        ("own", True, 2.0),
        (7.0, True, 7.0),
        ("auto", False, 1.0),
        (7.0, False, 1.0),
    ],
)
def test_every_kind_of_factor(factor: str | float, asked: bool, expected: float) -> None:
    """It is 1 where the SAE's config does not ask for scaling, whatever the option says."""
    assert scale(NORMS, OWN, "sae", asked, factor, "off").factor == expected


@pytest.mark.parametrize(("threshold", "scaled", "unscaled"), [("auto", 25.0, 50.0), ("off", None, None), (30.0, 30.0, 60.0)])
def test_every_kind_of_threshold(threshold: str | float, scaled: float | None, unscaled: float | None) -> None:
    """`auto` is found on unscaled norms; a number is a scaled norm."""
    found = scale(NORMS, None, "sae", True, "auto", threshold)
    assert (found.threshold, found.unscaled_threshold) == (scaled, unscaled)


def test_auto_finds_smollm2s_outliers(golden: Callable[[str], Path], smollm2: Path, tmp_path: Path) -> None:
    """17 of 4,096 text positions at layer 15 and none at layer 5; 24 of the chats' at layer 15, one a chat."""
    folder = golden("smollm2")
    early = tmp_path / "early"
    early.mkdir()
    config = json.loads((folder / "sae_a" / "cfg.json").read_text())
    (early / "cfg.json").write_text(json.dumps(config | {"hook_name": "blocks.5.hook_resid_pre", "hook_layer": 5}))
    (early / "sae_weights.safetensors").symlink_to(folder / "sae_a" / "sae_weights.safetensors")
    rows = [{"tokens": tokens} for tokens in json.loads((folder / "text_tokens.json").read_text())]
    text = write_jsonl(tmp_path / "text.jsonl", rows)
    run = evaluate(str(smollm2), {"late": str(folder / "sae_a"), "early": str(early)}, rows=str(text), out=tmp_path / "run")
    assert {norms.hook_point: norms.outliers for norms in run.manifest.calibration.norms} == {
        "blocks.5.hook_resid_pre": 0,
        "blocks.15.hook_resid_pre": 17,
    }
    late = next(norms for norms in run.manifest.calibration.norms if norms.outliers)
    assert late.factor_auto == pytest.approx(0.160577, rel=1e-4)
    assert late.factor_saelens == pytest.approx(0.096637, rel=1e-4)
    assert {record["sae"]: record["outliers"] for record in run.records()} == {"late": 17, "early": 0}
    chats = str(folder / "rollouts.jsonl")
    run = evaluate(str(smollm2), str(folder / "sae_a"), chats=chats, chat_template="qwen", out=tmp_path / "chats")
    (norms,) = run.manifest.calibration.norms
    assert norms.outliers == 24
    assert norms.factor_auto == pytest.approx(0.1514, abs=5e-5)
    assert norms.factor_saelens == pytest.approx(0.0444, abs=5e-5)


@pytest.mark.parametrize("norms", [(), (0.0, 0.0), (9.0, 9.0)])
def test_data_of_outliers_alone_set_no_factor(norms: tuple[float, ...]) -> None:
    """A mean of nothing would be a factor that is no number."""
    with pytest.raises(UserError, match="no outlier.*E-DATA"):
        norm_scaling_factor(64, norms_of(*norms), 5.0)
