"""SAEs of every architecture, made and trained by sae-lens's own classes."""

from pathlib import Path
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata, TrainStepInput

from tests.conftest import D_MODEL, D_SAE, save_sae

ARCHITECTURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 5}),
}
TRAINED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "standard": (StandardTrainingSAE, StandardTrainingSAEConfig, {}),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig, {}),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": 5}),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {"jumprelu_init_threshold": 0.1}),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": 5}),
    "matryoshka_batchtopk": (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": 5, "matryoshka_widths": [8, D_SAE]},
    ),
}
X = 3 * torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(0))


def save(folder: Path, architecture: str, **changes: Any) -> Path:
    """A random SAE, every bias and threshold drawn too."""
    if architecture == "standard":
        return save_sae(folder, 0, **changes)
    kind, config, extra = ARCHITECTURES[architecture]
    torch.manual_seed(1)
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_pre", prepend_bos=True, context_size=16, model_name="tiny")
    settings = {"d_in": D_MODEL, "d_sae": D_SAE, "normalize_activations": "expected_average_only_in"} | extra | changes
    sae = kind(config(**settings, metadata=metadata))
    with torch.no_grad():
        for weight in sae.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    sae.save_model(folder)
    return folder


def train(architecture: str) -> Any:
    """A few steps of SAELens's own training on the same random activations."""
    kind, config, extra = TRAINED[architecture]
    torch.manual_seed(2)
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_pre", prepend_bos=True, context_size=16, model_name="tiny")
    sae = kind(config(d_in=D_MODEL, d_sae=D_SAE, **extra, metadata=metadata))
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.01)
    for step in range(8):
        dead = torch.zeros(D_SAE, dtype=torch.bool)
        coefficients = dict.fromkeys(sae.get_coefficients(), 0.1)
        out = sae.training_forward_pass(TrainStepInput(X, coefficients, dead, step, is_logging_step=False))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return sae.eval()
