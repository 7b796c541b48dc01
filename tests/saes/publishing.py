"""SAE folders as others publish them: arrays, transposed weights, pickles; and what each computes, written out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import D_MODEL, D_SAE

Plain = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Activations -> features and reconstruction."""
K = 5


def weights() -> dict[str, Tensor]:
    """Random ones, in SAELens's names and shapes."""
    generator = torch.Generator().manual_seed(4)
    shapes = {"W_enc": (D_MODEL, D_SAE), "W_dec": (D_SAE, D_MODEL), "b_enc": (D_SAE,), "b_dec": (D_MODEL,)}
    made = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return made | {"threshold": torch.rand(D_SAE, generator=generator)}


def _wrote(folder: Path, **configs: Any) -> Path:
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def jumprelu(w: dict[str, Tensor], threshold: Tensor, centre: bool = False) -> Plain:
    """Features whose pre-activation is above the threshold."""

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        before = (x - w["b_dec"] * centre) @ w["W_enc"] + w["b_enc"]
        features = before.relu() * (before > threshold)
        return features, features @ w["W_dec"] + w["b_dec"]

    return plain


def topk(w: dict[str, Tensor]) -> Plain:
    """The K largest features, b_dec taken out of the input."""

    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        before = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        largest = before.topk(K)
        features = torch.zeros_like(before).scatter(-1, largest.indices, largest.values)
        return features, features @ w["W_dec"] + w["b_dec"]

    return plain


def gemma_scope(root: Path, **changes: Any) -> tuple[Path, Plain]:
    """Google's: params.npz below the repository's name."""
    w = weights()
    folder = _made(root / "gemma-scope-2b-pt-res" / "layer_1" / "width_16k" / "average_l0_7")
    arrays = {"w_enc": w["W_enc"], "w_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"], "threshold": w["threshold"]}
    np.savez(folder / "params.npz", **{name: array.numpy() for name, array in arrays.items()} | changes)
    return folder, jumprelu(w, w["threshold"])


def llama_scope(root: Path, **changes: Any) -> tuple[Path, Plain]:
    """OpenMOSS's: one threshold, in units of the unscaled activations."""
    w, folder = weights(), _made(root / "Llama3_1-8B-Base-L1R-8x")
    config = {"d_model": D_MODEL, "d_sae": D_SAE, "jump_relu_threshold": 1.5, "dataset_average_activation_norm": {"in": 20.0}}
    hooks = {"hook_point_in": "blocks.1.hook_resid_post", "hook_point_out": "blocks.1.hook_resid_post"}
    _wrote(folder, hyperparams=config | hooks | changes)
    _made(folder / "checkpoints")
    turned = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous()}
    biases = {"encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]}
    save_file(turned | biases, folder / "checkpoints" / "final.safetensors")
    return folder, jumprelu(w, torch.tensor(1.5 * D_MODEL**0.5 / 20.0))


def sparsify(root: Path, **changes: Any) -> tuple[Path, Plain]:
    """EleutherAI's: a folder that is named after its module."""
    w, folder = weights(), _made(root / "pythia" / "layers.1")
    config = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": D_SAE, "k": K, "d_in": D_MODEL}
    _wrote(folder, cfg=config | changes)
    named = {"W_dec": w["W_dec"], "b_dec": w["b_dec"], "encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"]}
    save_file(named, folder / "sae.safetensors")
    return folder, topk(w)


def dictionary_learning(root: Path, kind: str = "AutoEncoder", **changes: Any) -> tuple[Path, Plain]:
    """Marks' and Karvonen's: a pickled state_dict beside the trainer's config."""
    w, folder = weights(), _made(root / "resid_post_layer_1" / "trainer_0")
    turned = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous()}
    gate = {"r_mag": 0.1 * w["threshold"], "gate_bias": w["b_enc"], "mag_bias": 0.5 * w["b_enc"]}
    state, plain = {
        "AutoEncoder": (turned | {"encoder.bias": w["b_enc"], "bias": w["b_dec"]}, jumprelu(w, torch.tensor(0.0), centre=True)),
        "AutoEncoderTopK": (turned | {"encoder.bias": w["b_enc"], "b_dec": w["b_dec"], "k": torch.tensor(K)}, topk(w)),
        "BatchTopKSAE": (
            turned | {"encoder.bias": w["b_enc"], "b_dec": w["b_dec"], "threshold": torch.tensor(0.4), "k": torch.tensor(K)},
            jumprelu(w, torch.tensor(0.4), centre=True),
        ),
        "MatryoshkaBatchTopKSAE": (
            {
                "W_enc": w["W_enc"],
                "W_dec": w["W_dec"],
                "b_enc": w["b_enc"],
                "b_dec": w["b_dec"],
                "threshold": torch.tensor(0.4),
            },
            jumprelu(w, torch.tensor(0.4), centre=True),
        ),
        "JumpReluAutoEncoder": (w, jumprelu(w, w["threshold"])),
        "GatedAutoEncoder": (turned | gate | {"decoder_bias": w["b_dec"]}, _gated(w, **gate)),
    }[kind]
    trainer = {"dict_class": kind, "activation_dim": D_MODEL, "dict_size": D_SAE, "layer": 1, "lm_name": "lab/tiny", "k": K}
    _wrote(folder, config={"trainer": trainer | {"submodule_name": "resid_post_layer_1"} | changes, "buffer": {"ctx_len": 16}})
    torch.save(state, folder / "ae.pt")
    return folder, plain


def _gated(w: dict[str, Tensor], r_mag: Tensor, gate_bias: Tensor, mag_bias: Tensor) -> Plain:
    def plain(x: Tensor) -> tuple[Tensor, Tensor]:
        before = (x - w["b_dec"]) @ w["W_enc"]
        features = (before + gate_bias > 0) * (r_mag.exp() * before + mag_bias).relu()
        return features, features @ w["W_dec"] + w["b_dec"]

    return plain
