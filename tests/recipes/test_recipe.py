"""The recipe as a whole, in its smoke version."""

import json
import shutil
import sys
from pathlib import Path
from subprocess import run

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from recipes.demo_pair.derivatives import quantised

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What two runs of the smoke recipe ship, beside a file that was there before."""
    shipped = []
    for name in ("first", "second"):
        at = tmp_path_factory.mktemp(name)
        (at / "ship").mkdir()
        (at / "ship" / "old").write_text("replaced")
        command = [
            sys.executable,
            "-m",
            "recipes.demo_pair",
            "--smoke",
            "--seeds",
            "5",
            "-o",
            str(at),
            "--ship",
            str(at / "ship"),
        ]
        done = run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(at / "seed-5")
        shipped.append(at / "ship")
    return shipped


def test_the_same_seed_gives_the_same_hashes(twice: list[Path]) -> None:
    """Weights, data, log and all."""
    first, second = (json.loads((at / "manifest.json").read_text()) for at in twice)
    assert first == second
    assert len(first["sha256"]) > 30
    assert "old" not in first["sha256"]


def test_the_relatives_differ_from_the_base(twice: list[Path]) -> None:
    """Each was trained or rounded; the adapter lies beside no model."""
    models = {
        name: AutoModelForCausalLM.from_pretrained(twice[0] / "models" / name)
        for name in ("base", "chat", "drifted", "quantised")
    }
    weights = {name: torch.cat([weight.flatten() for weight in model.parameters()]) for name, model in models.items()}
    for name in ("chat", "drifted", "quantised"):
        assert not torch.equal(weights["base"], weights[name])
    assert sorted(path.name for path in (twice[0] / "models" / "lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_quantised_weights_are_8_bit_and_exact_in_bfloat16() -> None:
    """A row has at most 256 values, each within a 128th of its largest from the weight, and bfloat16 loses nothing."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=600, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    for (name, before), after in zip(model.named_parameters(), quantised(model).parameters(), strict=True):
        assert torch.equal(after, after.to(torch.bfloat16).float()), name
        if before.ndim == 2:
            largest = before.abs().amax(dim=1, keepdim=True)
            assert bool(((after - before).abs() <= largest / 64).all())
            assert max(len(row.unique()) for row in after) <= 256
            assert not torch.equal(before, after)
