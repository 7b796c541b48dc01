"""The other side: SAELens's `run_evals`, SAE after SAE, on the same weights in the two forms that it takes a model in."""

import tempfile
import warnings
from typing import Any
from unittest.mock import patch

import torch
import transformer_lens.loading_from_pretrained as tl
from datasets import Dataset
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.load_model import HookedProxyLM
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer
from transformer_lens.HookedRootModule import HookedRootModule

from benchmarks.setting import BATCH_SIZE, CONTEXT, HOOK, ROWS, Setting

PROXY_HOOK = "model.layers.14"
"""The output of layer 14, which is what HOOK calls the input of layer 15."""

Losses = dict[str, dict[str, float]]
"""SAE -> quantity -> value."""


def hooked(setting: Setting) -> HookedTransformer:
    """The Hugging Face model's weights in a HookedTransformer, nothing folded or centred. Its logits are compared."""
    lm: Any = setting.model.lm
    lm.config.architectures = [type(lm).__name__]  # a GGUF file names none
    with tempfile.TemporaryDirectory(prefix="bench") as folder:  # TransformerLens takes a config by path where it has no name
        lm.config.save_pretrained(folder)
        cfg = tl.get_pretrained_model_config(folder, hf_cfg=lm.config.to_dict(), device="cpu", dtype=torch.float32)
        weights = tl.get_pretrained_state_dict(folder, cfg, lm)
    cfg.tokenizer_name = None
    model = HookedTransformer(cfg, move_to_device=False)
    model.load_and_process_state_dict(
        weights,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    tokens = torch.tensor(setting.rows[:1])
    with torch.inference_mode():
        theirs, ours = model(tokens), lm(tokens, use_cache=False).logits
    if not float((theirs - ours).abs().max()) <= 1e-4 * float(ours.abs().max()):
        raise SystemExit("FAIL: the HookedTransformer's logits are not the Hugging Face model's")
    return model


def proxied(setting: Setting) -> HookedRootModule:
    """The Hugging Face model itself with one hook, SAELens's other way to run a model, and its quicker one."""
    model: HookedRootModule = HookedProxyLM(setting.model.lm, None, hook_names=[PROXY_HOOK])
    return model


def evals(setting: Setting, model: HookedRootModule, hook: str = HOOK) -> Losses:
    """run_evals on every SAE and all rows, with the metrics that both sides have: CE, KL, L0, MSE, explained variance."""
    config = EvalConfig(
        batch_size_prompts=BATCH_SIZE,
        n_eval_reconstruction_batches=ROWS // BATCH_SIZE,
        n_eval_sparsity_variance_batches=ROWS // BATCH_SIZE,
        compute_kl=True,
        compute_ce_loss=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    found = {}
    for sae in setting.saes:
        with patch.object(sae.module.cfg.metadata, "hook_name", hook):
            rows = store(setting, model, sae.module)
            metrics, _ = run_evals(sae.module, rows, model, ActivationScaler(), config, exclude_special_tokens=False)
        preserved = metrics["model_performance_preservation"]
        found[sae.name] = {
            "CE clean": preserved["ce_loss_without_sae"],
            "CE spliced": preserved["ce_loss_with_sae"],
            "CE zero": preserved["ce_loss_with_ablation"],
            "L0": metrics["sparsity"]["l0"],
            "MSE": metrics["reconstruction_quality"]["mse"],
        }
    return found


def store(setting: Setting, model: HookedRootModule, sae: Any) -> ActivationsStore:
    """A store that gives our rows, in order, over and over: rows that are tokens already get no BOS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 16 rows are few for training
        return ActivationsStore.from_sae(
            model, sae, Dataset.from_dict({"tokens": setting.rows}), context_size=CONTEXT, store_batch_size_prompts=BATCH_SIZE
        )
