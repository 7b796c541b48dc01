"""Residuals of a model -> sparse autoencoders, by sae-lens's trainer; from nothing, or from another SAE's weights."""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from transformers import LlamaForCausalLM

from recipes.demo_pair.files import write_json
from recipes.demo_pair.language_models import D_MODEL, HOOK_LAYER, residuals
from recipes.demo_pair.tokens import PACKED, Row
from sae_transfer.engine.calibrate import norm_scaling_factor, outlier_threshold
from sae_transfer.engine.splice import outliers

D_SAE, ACTIVE = 1024, 8
BATCH = 1024


@dataclass(frozen=True)
class SaeTraining:
    """How long and how hard: steps of BATCH positions."""

    steps: int
    learning_rate: float


def activations(model: LlamaForCausalLM, rows: Sequence[Row]) -> Tensor:
    """What an SAE learns from, [pos, d_model]: scaled to a mean norm of sqrt(d_model), outliers left out."""
    resid = torch.cat([found[tokens >= 0] for found, tokens in residuals(model, rows)])
    norms = resid.norm(dim=-1)
    threshold = outlier_threshold(norms.sort().values)
    return resid[~outliers(norms, threshold)] * norm_scaling_factor(D_MODEL, norms, threshold)


def new_sae(model_name: str, seed: int) -> Any:
    """A TopK SAE with sae-lens's own initial weights."""
    torch.manual_seed(seed)
    metadata = SAEMetadata(
        model_name=model_name,
        hook_name=f"blocks.{HOOK_LAYER}.hook_resid_pre",
        hook_head_index=None,
        prepend_bos=True,
        context_size=PACKED,
    )
    config = TopKTrainingSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=ACTIVE, apply_b_dec_to_input=True, metadata=metadata)
    return TopKTrainingSAE(config)


def trained(sae: Any, model_name: str, scaled: Tensor, how: SaeTraining, seed: int) -> Any:
    """A copy of the SAE, trained on scaled activations."""
    sae = deepcopy(sae)
    sae.cfg.metadata.model_name = model_name
    config = SAETrainerConfig(
        total_training_samples=how.steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=how.learning_rate,
        lr_end=how.learning_rate / 10,
        lr_warm_up_steps=how.steps // 20,
        lr_decay_steps=how.steps // 5,
        dead_feature_window=max(100, how.steps // 5),
    )
    return SAETrainer(config, sae, _shuffled(scaled, seed)).fit()


def _shuffled(scaled: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches of positions, in a new order every time round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(scaled), generator=generator)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield scaled[order[start : start + BATCH]]


def save(sae: Any, folder: Path) -> None:
    """SAELens's format. The config asks for the scaling that was done before training: each model gets its own factor."""
    sae.cfg.normalize_activations = "expected_average_only_in"
    sae.save_inference_model(folder)
    config = folder / "cfg.json"
    write_json(config, json.loads(config.read_text(encoding="utf-8")))
