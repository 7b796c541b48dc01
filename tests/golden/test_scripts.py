"""The published scripts on the golden models: records that agree with the published functions to a relative 1e-4."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_jsonl
from tests.golden.test_published_numbers import AGREEMENT
from tests.running import run_script

TEXT = {"L0": ("l0", "L0"), "ce_rec": ("ce_rec",), "clean_loss": ("clean_loss",), "sae_recons_loss": ("sae_recons_loss",)}
TEXT |= {"zero_abl_loss": ("zero_abl_loss",), "MSE": ("mse", "MSE")}
TEXT |= {"Explained Variance": ("explained_variance", "EV_all_tokens_one_batch")}
CHAT = {"mse": ("mse",), "l0": ("l0",), "ev": ("ev", "explained_variance")}
LOSSES = {"{}->Chat CE Rec": "ce_rec", "Clean Chat loss": "clean_loss", "{}->Chat SAE loss": "sae_loss"}
LOSSES |= {"Zero abl loss": "zero_abl_loss"}


def record(name: str, *args: str) -> dict[str, Any]:
    """The record that a script appends."""
    status, _, err = run_script(name, *args)
    assert status == 0, err
    found: dict[str, Any] = json.loads(Path(err.splitlines()[-1].removeprefix("Results saved to ")).read_text())[-1]
    return found


def differences(found: dict[str, Any], golden: dict[str, Any], keys: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Relative difference of every published key."""
    wanted = {key: next(golden[name] for name in names if name in golden) for key, names in keys.items()}
    return {key: abs(found[key] / value - 1) for key, value in wanted.items()}


def pile(script: str, model: Path, sae: Path, rows: Path, size: int, factor: float, threshold: float | None) -> dict[str, Any]:
    """One SAE on one model, on all rows."""
    batches = len(rows.read_text().splitlines()) // size
    project = ("--sae_project", "qwen-500M-base") if script == "sae_transfer_script.py" else ()
    return record(
        *(script, *project, "--model_name", "qwen1.5-0.5B-chat", "--model_path", str(model), "--sae_path", str(sae)),
        *("--text", str(rows), "--eval_batch_size_prompts", str(size), "--eval_batches", str(batches)),
        *("--num_act_batches", "1", "--norm_scaling_factor", str(factor)),
        *(() if threshold is None else ("--ignore_outliers", "--outlier_threshold", str(threshold))),
    )


def alpaca(model: Path, base: Path, chat: Path, chats: Path, mask_type: str, factor: float, threshold: float) -> dict[str, Any]:
    """Two SAEs on one model, on one kind of tokens."""
    return record(
        *("alpaca_transfer_script.py", "--chat_model_name", "qwen1.5-0.5b-chat", "--model_path", str(model)),
        *("--base_sae_project", "qwen-500M-base", "--chat_sae_project", "qwen-500M-chat", "--batch_size", "4"),
        *("--base_sae_path", str(base), "--chat_sae_path", str(chat), "--chats", str(chats), "--mask_type", mask_type),
        *("--norm_scaling_factor", str(factor), "--ignore_outliers", "--outlier_threshold", str(threshold)),
    )


@pytest.mark.parametrize("script", ["sae_transfer_script.py", "finetuned_sae_evals.py"])
@pytest.mark.parametrize("ignore_outliers", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_text_records_of_random_models_are_the_published_ones(
    golden: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    ignore_outliers: bool,
    script: str,
) -> None:
    """Rows of token ids, two batches of three, both SAEs."""
    monkeypatch.chdir(tmp_path)
    folder = golden(name)
    expected = json.loads((folder / "golden.json").read_text())
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": tokens} for tokens in expected["tokens"]])
    threshold = expected["outlier_threshold"] if ignore_outliers else None
    for row in (row for row in expected["pile"] if row["ignore_outliers"] is ignore_outliers):
        found = pile(script, folder, folder / f"sae_{row['sae']}", rows, 3, expected["norm_scaling_factor"], threshold)
        assert max(differences(found, row, TEXT).values()) <= AGREEMENT


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_masked_records_of_random_models_are_the_published_ones(
    golden: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Rows with a mask, as the Alpaca script splices, ablates and scores them."""
    monkeypatch.chdir(tmp_path)
    folder = golden(name)
    expected = json.loads((folder / "golden.json").read_text())
    pairs = zip(expected["tokens"], expected["mask"], strict=True)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": tokens, "mask": mask} for tokens, mask in pairs])
    scale = expected["norm_scaling_factor"], expected["outlier_threshold"]
    found = alpaca(folder, folder / "sae_base", folder / "sae_chat", rows, "rollout", *scale)
    for row in (row for row in expected["masked"] if row["ignore_outliers"]):
        assert max(differences(found, row, of(row["sae"])).values()) <= AGREEMENT


def of(sae: str) -> dict[str, tuple[str, ...]]:
    """Published keys of one of the two SAEs."""
    return {f"{sae}_{key}": names for key, names in CHAT.items()} | {
        key.format(sae.capitalize()): (name,) for key, name in LOSSES.items()
    }


@pytest.mark.parametrize("ignore_outliers", [True, False])
def test_text_records_of_smollm2_are_the_published_ones(
    golden: Callable[[str], Path], smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignore_outliers: bool
) -> None:
    """4,096 tokens of WikiText-2 in batches of four rows."""
    monkeypatch.chdir(tmp_path)
    folder = golden("smollm2")
    expected = json.loads((folder / "golden.json").read_text())
    tokens = json.loads((folder / "text_tokens.json").read_text())
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": row} for row in tokens])
    row = next(row for row in expected["pile"] if row["ignore_outliers"] is ignore_outliers)
    threshold = 200 if ignore_outliers else None
    scale = expected["norm_scaling_factor"]
    found = pile("sae_transfer_script.py", smollm2, folder / row["sae"], rows, 4, scale, threshold)
    assert max(differences(found, row, TEXT).values()) <= AGREEMENT


@pytest.mark.parametrize("mask_type", ["rollout", "user_prompt", "control_tokens"])
def test_chat_records_of_smollm2_are_the_published_ones(
    golden: Callable[[str], Path], smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask_type: str
) -> None:
    """24 chats, four a batch: `control_tokens` too are what the published code gives one by one."""
    monkeypatch.chdir(tmp_path)
    folder = golden("smollm2")
    expected = json.loads((folder / "golden.json").read_text())
    scale = expected["norm_scaling_factor"], 200.0
    found = alpaca(smollm2, folder / "sae_a", folder / "sae_b", folder / "rollouts.jsonl", mask_type, *scale)
    for row in (row for row in expected["chat"] if row["mask_type"] == mask_type):
        assert max(differences(found, row, of({"sae_a": "base", "sae_b": "chat"}[row["sae"]])).values()) <= AGREEMENT
