"""Quantised, adapted and merged models are models like any other: rows of one matrix."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sae_transfer import Run, UserError, evaluate
from sae_transfer.models import loading
from sae_transfer.models.generate import greedy
from sae_transfer.models.split import SplitModel
from sae_transfer.sources import resolve
from sae_transfer.specs import ModelRef
from tests.conftest import Pair, save_model, save_sae
from tests.models.making_gguf import save_gguf
from tests.models.test_loading import logits, save_adapter
from tests.models.tiny import N_LAYERS, WIDTH, batch, shaken, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # what peft asks transformers
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),  # what peft says when it saves
]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
"""Sizes that bitsandbytes' 4-bit products take on a CPU."""


def save_wide(folder: Path, seed: int) -> Path:
    """A random Llama that can be quantised, of the scale of a trained one."""
    model = AutoModelForCausalLM.from_pretrained(save_model(folder, seed, **SHAPE))
    for weight in model.parameters():
        weight.data.mul_(0.3 if weight.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def matrix(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of one tiny Llama in eight forms."""
    root = tmp_path_factory.mktemp("formats")
    base, tuned = save_wide(root / "base", 0), save_wide(root / "tuned", 0)
    shaken(AutoModelForCausalLM.from_pretrained(tuned)).save_pretrained(tuned)
    adapter = save_adapter(base, root / "adapter")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    merged.save_pretrained(root / "merged")
    models = dict.fromkeys(["float32", "bfloat16", "float16", "8bit"], str(base))
    models |= {"gguf": str(save_gguf(base, root / "base.gguf")), "lora": f"{base}+{adapter}"}
    models |= {"tuned": str(tuned), "merged": str(root / "merged")}
    dtypes = {name: name for name in models if name in ("bfloat16", "float16", "8bit")}
    sae = save_sae(root / "sae", 0, d_in=64)
    return evaluate(models, {"float32": str(sae)}, rows=str(pair.rows), dtype=dtypes, out=root / "run")


def test_every_form_of_a_model_is_a_row_of_one_matrix(matrix: Run) -> None:
    """A GGUF file of the same weights gives the same numbers, an adapter those of its merged model, the others their own."""
    by = {record["model"]: record for record in matrix.records()}
    print(matrix.table()[["model", "ce_clean", "delta_ce", "kl", "explained_variance"]])  # noqa: T201  # pytest -s
    assert len(by) == 8
    for name, twin in (("gguf", "float32"), ("lora", "merged")):
        for metric in ("ce_clean", "ce_spliced", "ce_zero", "kl", "mse"):
            assert by[name][metric] == pytest.approx(by[twin][metric], rel=1e-4)
    assert len({record["kl"] for name, record in by.items() if name not in ("gguf", "merged")}) == len(by) - 2
    for name in ("bfloat16", "float16", "8bit"):
        assert by[name]["ce_clean"] == pytest.approx(by["float32"]["ce_clean"], rel=0.05)


def test_run_json_keeps_the_format_of_each_model(matrix: Run) -> None:
    """Those that no --dtype names have the default."""
    kept = {ref.name: ref.dtype for ref in matrix.manifest.spec.models}
    assert kept["bfloat16"] == "bfloat16"
    assert kept["tuned"] == "float32"


@pytest.mark.parametrize("dtype", ["8bit", "4bit"])
def test_a_quantised_model_passes_its_check(tmp_path: Path, dtype: str) -> None:
    """It is cut at every boundary, with an adapter too, and is near the model that it was made of."""
    base = save_wide(tmp_path / "base", 0)
    for source in (str(base), f"x={base}+{save_adapter(base, tmp_path / 'adapter')}"):
        model = resolve.model(ModelRef.parse(source))
        split, whole = (loading.load(model, form, "cpu", {0, 1, 2, 3}) for form in (dtype, "float32"))
        assert any(type(module).__module__.startswith("bitsandbytes") for module in split.lm.modules())
        error, size = (logits(split) - logits(whole)).std(), logits(whole).std()
        assert 0 < error < 0.5 * size


def test_a_gguf_file_is_not_quantised_again(tmp_path: Path) -> None:
    """transformers can't, and the line says for which model."""
    path = save_gguf(save_wide(tmp_path / "base", 0), tmp_path / "base.gguf")
    with pytest.raises(UserError, match=r"8bit: model base.gguf can't be quantised.*E-OPTION"):
        loading.load(resolve.model(ModelRef.parse(str(path))), "8bit", "cpu", {1})


def test_what_is_missing_for_8_bit_is_said_in_one_line(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded: here Python finds no module that is not loaded yet, as where bitsandbytes is missing."""
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=lambda *_: None)])
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    with pytest.raises(UserError, match=r"8bit needs bitsandbytes.*pip install 'sae-transfer\[bitsandbytes\]'.*E-OPTION"):
        evaluate(str(pair.base), str(pair.sae_base), rows=str(pair.rows), dtype="8bit")


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("how", ["offloaded", "dispatched"])
def test_a_model_under_accelerate_is_cut_as_it_was_before(name: str, how: str) -> None:
    """With weights that lie elsewhere between calls, or layers behind hooks of their own: the same numbers."""
    tokens, mask = batch(0, side="right")
    before, model = SplitModel(tiny(name), name), tiny(name)
    if how == "offloaded":
        split = SplitModel(cpu_offload(model, execution_device=torch.device("cpu")), name)
    else:
        halves = {path: "cpu" for path, module in model.named_modules() if path and not list(module.children())}
        split = SplitModel(dispatch_model(model, halves, main_device="cpu", force_hooks=True), name)
    split.check(range(N_LAYERS + 1))
    with torch.no_grad():
        resid = before.prefix(tokens, mask, [2])[2] + 0.1 * torch.ones(WIDTH)
        hidden, expected = (which.suffix(resid, tokens, mask, 2)[mask] for which in (split, before))
        torch.testing.assert_close(split.logits(hidden), before.logits(expected))
    assert greedy(split, [[1, 2, 3]], 4, set(), (2, torch.neg)) == greedy(before, [[1, 2, 3]], 4, set(), (2, torch.neg))


def test_device_map_gives_the_same_numbers(pair: Pair, tmp_path: Path) -> None:
    """accelerate places the model, and its adapter, where there is room: on this machine's one device."""
    adapter = save_adapter(pair.base, tmp_path / "adapter")
    for source in (str(pair.base), f"x={pair.base}+{adapter}"):
        model = resolve.model(ModelRef.parse(source))
        found, expected = (logits(loading.load(model, "float32", device, {1, 2})) for device in ("map", "cpu"))
        torch.testing.assert_close(found, expected)
