"""Drift beside an evaluation: the same numbers as `drift`, at the SAEs' hook points, kept in run.json."""

from pathlib import Path

import pytest

from sae_transfer import Run, drift, evaluate
from sae_transfer.engine.moments import CHEAP
from tests.conftest import Pair, write_jsonl

HOOK = "blocks.1.hook_resid_pre"


def evaluated(pair: Pair, out: Path, **changes: str) -> Run:
    """Both models, the base SAE."""
    models = {"base": str(pair.base), "chat": str(pair.chat)}
    return evaluate(models, {"base": str(pair.sae_base)}, **{"rows": str(pair.rows), **changes}, out=out)  # type: ignore[arg-type]


@pytest.mark.parametrize("cache", ["2GB", "0"])
def test_an_evaluation_keeps_the_drift_of_its_saes_own_model(pair: Pair, tmp_path: Path, cache: str) -> None:
    """Whatever the cache, it is what `drift` measures; what takes a decomposition is left out."""
    run = evaluated(pair, tmp_path / "run", activation_cache=cache)
    (expected,) = drift({"base": str(pair.base), "chat": str(pair.chat)}, rows=str(pair.rows), layers=1).records()
    found = Run(run.path).drift("base", "chat", "rows", "all", HOOK)
    assert found is not None
    assert found == run.manifest.drift[0]
    assert (found.positions, found.outliers) == (expected["positions"], expected["outliers"])
    assert [getattr(found, name) for name in CHEAP] == pytest.approx([expected[name] for name in CHEAP], rel=1e-6)
    assert found.orthogonal_share is None
    assert run.drift("chat", "base", "rows", "all", HOOK) is None


def test_it_takes_the_first_positions_of_long_data(pair: Pair, tmp_path: Path) -> None:
    """Whole rows of at most 16,384 positions: 862 of 19."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": [(7 * i + j) % 300 for j in range(19)]} for i in range(900)])
    found = evaluated(pair, tmp_path / "run", rows=str(rows)).drift("base", "chat", "rows", "all", HOOK)
    assert found is not None
    assert (found.positions or 0) + (found.outliers or 0) == 862 * 19


def test_an_sae_without_an_own_model_has_none(pair: Pair, tmp_path: Path) -> None:
    """There is nothing to compare with."""
    run = evaluate({"chat": str(pair.chat)}, {"base": str(pair.sae_base)}, rows=str(pair.rows), out=tmp_path / "run")
    assert run.manifest.drift == ()
