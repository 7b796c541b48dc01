"""Every golden number, through the command line: agreement with the published code to a relative 1e-4."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_jsonl
from tests.running import run_json

Golden = Callable[[str], Path]

PILE = {
    "ce_rec": "ce_recovered_legacy",
    "clean_loss": "ce_clean",
    "sae_recons_loss": "ce_spliced",
    "zero_abl_loss": "ce_zero",
    "n_outliers": "outliers",
    "mse": "mse",
    "MSE": "mse",
    "l0": "l0",
    "L0": "l0",
    "explained_variance": "explained_variance_legacy",
    "EV_all_tokens_one_batch": "explained_variance_legacy",
}
MASKED = PILE | {
    "ce_rec": "ce_recovered",
    "sae_loss": "ce_spliced",
    "n_activations": "tokens",
    "ev": "explained_variance_legacy",
}


def assert_agrees(published: dict[str, Any], record: dict[str, Any], columns: dict[str, str]) -> None:
    """Every published number that has a column, to a relative 1e-4."""
    compared = [key for key in published if key in columns]
    assert len(compared) >= 8
    for key in compared:
        assert record[columns[key]] == pytest.approx(published[key], rel=1e-4), key


@pytest.mark.parametrize("ignore_outliers", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_random_models_match_the_published_functions(golden: Golden, tmp_path: Path, name: str, ignore_outliers: bool) -> None:
    """Text and masked rows of the random models, with outliers left out and with outliers spliced."""
    folder = golden(name)
    expected = json.loads((folder / "golden.json").read_text())
    rows = [{"tokens": tokens} for tokens in expected["tokens"]]
    masked = [row | {"mask": mask} for row, mask in zip(rows, expected["mask"], strict=True)]
    records = run_json(
        *("--model", f"tiny={folder}", "--sae", f"base={folder}/sae_base", "--sae", f"chat={folder}/sae_chat"),
        *("--rows", f"pile={write_jsonl(tmp_path / 'pile.jsonl', rows)}"),
        *("--rows", f"masked={write_jsonl(tmp_path / 'masked.jsonl', masked)}"),
        *("--norm-scaling-factor", str(expected["norm_scaling_factor"]), "--batch-size", "3"),
        *("--outlier-threshold", str(expected["outlier_threshold"]) if ignore_outliers else "off"),
        out=tmp_path / "run",
    )
    for data, columns in (("pile", PILE), ("masked", MASKED)):
        published = [row for row in expected[data] if row["ignore_outliers"] is ignore_outliers]
        assert len(published) == 2
        for row in published:
            assert_agrees(row, next(r for r in records if (r["sae"], r["data"]) == (row["sae"], data)), columns)


@pytest.mark.parametrize("ignore_outliers", [True, False])
def test_smollm2_text_matches_the_published_functions(
    golden: Golden, smollm2: Path, tmp_path: Path, ignore_outliers: bool
) -> None:
    """4,096 tokens of WikiText-2 on the real model; with outliers spliced CE recovered falls from 0.93 to 0.58."""
    folder = golden("smollm2")
    expected = json.loads((folder / "golden.json").read_text())
    rows = [{"tokens": tokens} for tokens in json.loads((folder / "text_tokens.json").read_text())]
    records = run_json(
        *("--model", f"smollm2={smollm2}", "--sae", f"sae_a={folder}/sae_a", "--sae", f"sae_b={folder}/sae_b"),
        *("--rows", str(write_jsonl(tmp_path / "text.jsonl", rows)), "--batch-size", "4"),
        *("--norm-scaling-factor", str(expected["norm_scaling_factor"])),
        *("--outlier-threshold", "200" if ignore_outliers else "off"),
        out=tmp_path / "run",
    )
    for row in expected["pile"]:
        if row["ignore_outliers"] is ignore_outliers:
            assert_agrees(row, next(r for r in records if r["sae"] == row["sae"]), PILE)
    kl = {True: 0.682632, False: 3.191280}[ignore_outliers]
    assert records[0]["kl"] == pytest.approx(kl, rel=1e-4)


def test_smollm2_chats_match_the_published_functions(golden: Golden, smollm2: Path, tmp_path: Path) -> None:
    """24 Alpaca chats with the model's greedy answers, each token kind by itself."""
    folder = golden("smollm2")
    expected = json.loads((folder / "golden.json").read_text())
    records = run_json(
        *("--model", f"smollm2={smollm2}", "--sae", f"sae_a={folder}/sae_a", "--sae", f"sae_b={folder}/sae_b"),
        *("--chats", str(folder / "rollouts.jsonl"), "--chat-template", "qwen"),
        *("--norm-scaling-factor", str(expected["norm_scaling_factor"]), "--outlier-threshold", "200"),
        out=tmp_path / "run",
    )
    assert len(records) == len(expected["chat"]) == 6
    for row in expected["chat"]:
        record = next(r for r in records if (r["sae"], r["token_kind"]) == (row["sae"], row["mask_type"]))
        assert_agrees(row, record, MASKED)
