"""A folder is loaded whole, as safetensors and without its code, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_transfer.errors import UserError
from sae_transfer.models import loading
from sae_transfer.models.split import SplitModel
from sae_transfer.sources import resolve
from sae_transfer.specs import ModelRef
from tests.conftest import N_LAYERS, VOCAB, Pair, chat_tokenizer, save_model
from tests.models.making_gguf import save_gguf
from tests.models.tiny import shaken

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # what peft asks transformers
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),  # what peft says when it saves
]
TOKENS = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))


def load(text: str, dtype: str = "float32") -> SplitModel:
    """What `--model TEXT` gives."""
    return loading.load(resolve.model(ModelRef.parse(text)), dtype, "cpu", set(range(N_LAYERS + 1)))


def logits(split: SplitModel) -> Tensor:
    """Logits of two rows of tokens."""
    with torch.no_grad():
        _, hidden = split.forward(TOKENS, torch.ones_like(TOKENS, dtype=torch.bool), [0])
        return split.logits(hidden.flatten(0, 1))


def plain(model: Any) -> Tensor:
    """The same logits by transformers alone."""
    with torch.no_grad():
        output: Tensor = model(input_ids=TOKENS).logits
    return output.flatten(0, 1)


def save_adapter(base: Path, folder: Path, **changes: Any) -> Path:
    """A LoRA adapter with no weight left at zero."""
    torch.manual_seed(5)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=4, lora_alpha=8, **({"target_modules": ["q_proj", "down_proj"]} | changes)
    )
    shaken(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)).save_pretrained(folder)
    return folder


def edit(folder: Path, drop: str, put: Tensor | None = None) -> Path:
    """Drop a saved model's tensors whose names hold `drop`, or put another in their place."""
    kept = {key: weight for key, weight in load_file(folder / "model.safetensors").items() if drop not in key}
    if put is not None:
        kept[f"{drop}.weight"] = put
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "target_modules": "all-linear"},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["lm_head"]},
    ],
    ids=str,
)
def test_an_adapter_gives_the_logits_of_the_merged_model(pair: Pair, tmp_path: Path, changes: dict[str, Any]) -> None:
    """BASE+ADAPTER is the base with the adapter's weights added to its own."""
    adapter = save_adapter(pair.base, tmp_path / "adapter", **changes)
    base = AutoModelForCausalLM.from_pretrained(pair.base)
    found, without = logits(load(f"x={pair.base}+{adapter}")), plain(base)
    expected = plain(PeftModel.from_pretrained(base, adapter).merge_and_unload())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - without).abs().max() > 0.01


def test_a_model_gives_its_logits(pair: Pair) -> None:
    """A folder loads as transformers loads it."""
    torch.testing.assert_close(logits(load(str(pair.base))), plain(AutoModelForCausalLM.from_pretrained(pair.base)))


def test_tied_embeddings_are_not_missing(tmp_path: Path) -> None:
    """A head that is the embedding table stands in no file and is not asked for."""
    folder = save_model(tmp_path / "tied", 0, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    torch.testing.assert_close(logits(load(str(folder))), plain(AutoModelForCausalLM.from_pretrained(folder)))


@pytest.mark.parametrize("lost", ["layers.1.mlp.down_proj", "model.norm", "lm_head", "layers.2"])
def test_missing_weights_are_refused(tmp_path: Path, lost: str) -> None:
    """A weight that the file lacks is not drawn at random."""
    folder = edit(save_model(tmp_path / "model", 0), lost)
    with pytest.raises(
        UserError, match=rf"(lacks or has misshapen weights: .*{lost}|says 3 layers, the weights have 2).*E-MODEL"
    ):
        load(str(folder))


def test_misshapen_weights_are_refused(tmp_path: Path) -> None:
    """A weight of another shape than the config's is not replaced."""
    folder = edit(save_model(tmp_path / "model", 0), "model.norm", torch.ones(8))
    with pytest.raises(UserError, match=r"E-MODEL"):
        load(str(folder))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """NaN on disk is E-NAN."""
    folder = edit(save_model(tmp_path / "model", 0), "model.norm", torch.full((16,), float("nan")))
    with pytest.raises(UserError, match=r"E-NAN"):
        load(str(folder))


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    """A folder with pytorch_model.bin alone is refused before it is unpickled."""
    folder = save_model(tmp_path / "model", 0)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no \*\.safetensors: .*pickled weights are not opened.*E-MODEL"):
        load(str(folder))


def test_pickled_weights_beside_a_stray_safetensors_file_are_not_opened(tmp_path: Path) -> None:
    """A safetensors file of another name does not let pickled weights in."""
    folder = save_model(tmp_path / "model", 0)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(UserError, match=r"E-MODEL"):
        load(str(folder))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """A download that stopped early is found by the file's own header."""
    folder = save_model(tmp_path / "model", 0)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"truncated or no safetensors file.*E-MODEL"):
        load(str(folder))


def test_prompt_tuning_is_refused(pair: Pair, tmp_path: Path) -> None:
    """An adapter that adds virtual tokens shifts every position."""
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(pair.base), config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(UserError, match=r"PROMPT_TUNING, which adds virtual tokens.*E-MODEL"):
        load(f"x={pair.base}+{tmp_path / 'prompt'}")


@pytest.mark.parametrize("change", [{"hidden_size": 24}, {"num_hidden_layers": 5}, {"num_hidden_layers": 2}], ids=str)
def test_an_adapter_of_another_model_is_refused(pair: Pair, tmp_path: Path, change: dict[str, Any]) -> None:
    """Adapter weights of another width, of layers that the model lacks, or of too few layers are not left out."""
    adapter = save_adapter(save_model(tmp_path / "other", 0, **change), tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter of x can't be loaded.*E-MODEL"):
        load(f"x={pair.base}+{adapter}")


def test_an_adapter_that_lacks_weights_is_refused(pair: Pair, tmp_path: Path) -> None:
    """Adapter weights that the file lacks are not left at their initial value."""
    adapter = save_adapter(pair.base, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({key: weight for key, weight in weights.items() if "layers.1" not in key}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter of x can't be loaded.*E-MODEL"):
        load(f"x={pair.base}+{adapter}")


def test_a_pickled_adapter_is_not_opened(pair: Pair, tmp_path: Path) -> None:
    """An adapter with adapter_model.bin alone is refused."""
    adapter = save_adapter(pair.base, tmp_path / "adapter")
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors.*E-MODEL"):
        load(f"x={pair.base}+{adapter}")


@pytest.mark.parametrize("model_type", ["mine", "llama"])
def test_a_models_code_is_never_run(tmp_path: Path, model_type: str) -> None:
    """A config that names code beside it is refused, and told how to load a type that transformers has itself."""
    folder, ran = save_model(tmp_path / "model", 0, chat_tokenizer()), tmp_path / "ran"
    (folder / "code.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    mapped = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", "code.T"]}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": mapped}))
    with pytest.raises(UserError, match=r"code.M.*none is ever run.*remove auto_map.*E-MODEL"):
        load(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)]
)
def test_each_dtype_loads_and_passes_its_check(pair: Pair, dtype: str, kind: torch.dtype) -> None:
    """Weights and residuals are of the dtype that was asked for, logits are float32."""
    split = load(str(pair.base), dtype)
    assert (split.dtype, split.resid_dtype[1]) == (kind, kind)
    assert logits(split).dtype == torch.float32


def test_an_adapter_in_bfloat16_passes_its_check(pair: Pair, tmp_path: Path) -> None:
    """An adapter saved in float32 goes on top of a bfloat16 base."""
    adapter = save_adapter(pair.base, tmp_path / "adapter")
    split = load(f"x={pair.base}+{adapter}", "bfloat16")
    assert split.resid_dtype[1] == torch.bfloat16
    torch.testing.assert_close(logits(split), logits(load(f"x={pair.base}+{adapter}")), atol=0.5, rtol=0.1)


def test_a_tokenizer_is_found_or_none(pair: Pair, tmp_path: Path) -> None:
    """The folder's tokenizer, with no limit of length; None where it has none, as a GGUF file may."""
    found = loading.tokenizer(resolve.model(ModelRef.parse(str(pair.base))))
    assert found is not None
    assert found("fox " * 3000)["input_ids"] == chat_tokenizer()("fox " * 3000)["input_ids"]
    gguf = save_gguf(pair.base, tmp_path / "bare.gguf")
    for bare in (save_model(tmp_path / "bare", 0), gguf):
        assert loading.tokenizer(resolve.model(ModelRef.parse(str(bare)))) is None


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A broken tokenizer is not the same as none."""
    folder = save_model(tmp_path / "model", 0, chat_tokenizer())
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"is no JSON.*E-TOKENIZER"):
        loading.tokenizer(resolve.model(ModelRef.parse(str(folder))))


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    """With both shapes, not with advice on an option of transformers."""
    folder = save_model(tmp_path / "model", 0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 99}))
    said = r"model.layers.0.mlp.down_proj.weight has shape \(16, 24\), its config says \(16, 99\).*E-MODEL"
    with pytest.raises(UserError, match=said):
        load(str(folder))


def test_layers_that_the_config_does_not_have_are_not_dropped_in_silence(tmp_path: Path) -> None:
    """A config with fewer layers than the weights would load as a shorter, other model."""
    folder = save_model(tmp_path / "model", 0)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "layer_types": None}))
    with pytest.raises(UserError, match="has 2 layers by its config.*E-MODEL"):
        loading.load(resolve.model(ModelRef.parse(str(folder))), "float32", "cpu", {1})
