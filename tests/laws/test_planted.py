"""Planted breaks are found and named: a token kind that is shifted, a norm decile that is scaled, a position that is broken."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_transfer import Run, evaluate
from sae_transfer.report.breakdown import broken
from tests.conftest import D_MODEL, chat_tokenizer, save_model, save_sae, write_jsonl
from tests.models.tiny import VOCAB, WIDTH, tiny

FIRST = "blocks.0.hook_resid_pre"


def perfect(folder: Path, width: int, blind: bool = False, least: float = 0.0) -> str:
    """An SAE of features +-x_i that gives every activation back; or is `blind` to the first direction, or loses what is below
    `least`."""
    eye, none = torch.eye(width), torch.zeros(2 * width)
    if blind:
        eye[0, 0] = 0.0
    sae = save_sae(folder, 0, FIRST, d_in=width, d_sae=2 * width, normalize_activations="none")
    weights = {
        "W_enc": torch.cat([eye, -eye], 1),
        "W_dec": torch.cat([eye, -eye]),
        "b_enc": none - least,
        "b_dec": none[:width],
    }
    save_file({name: value.contiguous() for name, value in weights.items()}, sae / "sae_weights.safetensors")
    return str(sae)


def random_rows(path: Path, count: int = 40, length: int = 24) -> str:
    """Token ids without order."""
    rows = torch.randint(0, VOCAB, (count, length), generator=torch.Generator().manual_seed(4)).tolist()
    return str(write_jsonl(path, [{"tokens": row} for row in rows]))


def sentences(run: Run, axis: str) -> list[str]:
    """What is named on an axis, by model."""
    return broken(run.by(axis))


def test_a_broken_position_is_named(tmp_path: Path) -> None:
    """A position embedding of GPT-2 that points where the SAE sees nothing; nothing is named on the model as it was."""
    for name, size in (("whole", 0.0), ("broken", 2.0)):
        lm: Any = tiny("gpt2")
        with torch.no_grad():
            lm.transformer.wte.weight[:, 0] = 0.0
            lm.transformer.wpe.weight[:, 0] = 0.0
            lm.transformer.wpe.weight[5, 0] = size
        lm.save_pretrained(tmp_path / name)
    models = {name: str(tmp_path / name) for name in ("whole", "broken")}
    rows, sae = random_rows(tmp_path / "rows.jsonl"), perfect(tmp_path / "sae", WIDTH, blind=True)
    run = evaluate(models, {"sae": sae}, rows=rows, outlier_threshold="off", out=tmp_path / "run")
    (sentence,) = sentences(run, "position")
    assert sentence.startswith("broken / sae / rows / all: position 5 has ")
    assert "of the KL in 4% of the tokens (KL " in sentence


def test_a_shifted_token_kind_is_named(tmp_path: Path) -> None:
    """Every token of the answers, and of nothing else, moved by one vector."""
    tokenizer = chat_tokenizer()
    digits = [token for text, token in tokenizer.get_vocab().items() if any(c.isdigit() for c in text)]
    for name, size in (("whole", 0.0), ("broken", 3.0)):
        save_model(tmp_path / name, 0, tokenizer)
        from transformers import AutoModelForCausalLM

        lm = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        with torch.no_grad():
            lm.model.embed_tokens.weight[:, 0] = 0.0
            lm.model.embed_tokens.weight[digits, 0] = size
        lm.save_pretrained(tmp_path / name)
    chats = [{"instruction": "the quick brown fox jumps over", "completion": f"{i} {i + 7} {3 * i}"} for i in range(20)]
    data = str(write_jsonl(tmp_path / "chats.jsonl", chats))
    models = {name: str(tmp_path / name) for name in ("whole", "broken")}
    run = evaluate(
        models,
        {"sae": perfect(tmp_path / "sae", D_MODEL, blind=True)},
        chats=data,
        outlier_threshold="off",
        out=tmp_path / "run",
    )
    (sentence,) = sentences(run, "token-kind")
    assert sentence.startswith("broken / sae / chats: token kind rollout has ")


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_scaled_norm_decile_is_named(tmp_path: Path, family: str) -> None:
    """The embeddings of a tenth of the tokens shrunk, so that the SAE's threshold takes them for nothing."""
    lm: Any = tiny(family)
    with torch.no_grad():
        weight = lm.get_input_embeddings().weight
        weight.mul_(10.0)
        weight[::10] *= 0.01
    lm.save_pretrained(tmp_path / "broken")
    rows, sae = random_rows(tmp_path / "rows.jsonl"), perfect(tmp_path / "sae", WIDTH, least=0.05)
    run = evaluate({"broken": str(tmp_path / "broken")}, {"sae": sae}, rows=rows, outlier_threshold="off", out=tmp_path / "run")
    first, *_ = sentences(run, "norm")
    assert first.startswith("broken / sae / rows / all: norm decile 1 has ")


def test_damage_that_is_spread_is_not_named() -> None:
    """Nor a bucket of few tokens, nor one within the spread, nor KL of nearly nothing."""
    record = {
        "model": "m",
        "sae": "s",
        "data": "d",
        "token_kind": "all",
        "axis": "norm",
        "bucket": "10",
        "tokens": 20,
        "kept": 20,
    }
    record |= {"kl": 3.0, "kl_elsewhere": 1.0, "kl_standard_error": 0.5, "kl_share": 0.75, "token_share": 0.5}
    record |= {"mse": 9.0, "mse_elsewhere": 3.0, "mse_standard_error": 1.5, "squared_error_share": 0.7}
    assert broken([record]) == [
        "m / s / d / all: norm decile 10 has 75% of the KL in 50% of the tokens (KL 3 there, 1 elsewhere).",
        "m / s / d / all: norm decile 10 has 70% of the squared error in 50% of the tokens (MSE 9 there, 3 elsewhere).",
    ]
    few, spread = {"tokens": 19, "kept": 19}, {"kl_elsewhere": 1.01, "mse_elsewhere": 3.01}
    noisy, small = {"kl_standard_error": 0.51, "mse_standard_error": 1.51}, {"kl": 0.009, "kl_elsewhere": 0.0, "mse": None}
    unknown = {"kl_standard_error": None, "mse_standard_error": None}
    assert [broken([record | change]) for change in (few, spread, noisy, small, unknown)] == [[]] * 5
