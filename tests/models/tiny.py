"""Tiny random transformers models, one per family: four layers, no parameter left at its initial value."""

from typing import Any

import torch
import transformers as hf
from torch import Tensor

VOCAB, WIDTH, N_LAYERS, WINDOW = 97, 32, 4, 6
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "pad_token_id": 0}
HEADED = GROUPED | {"head_dim": 8}
WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
GPT2 = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 64}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", HEADED),
    "mistral": ("MistralConfig", HEADED | {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", GROUPED | {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("Qwen3Config", HEADED),
    "gemma": ("GemmaConfig", HEADED),
    "gemma2": ("Gemma2Config", HEADED | WINDOWED | {"attn_implementation": "eager", "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3TextConfig", HEADED | WINDOWED),
    "phi3": ("Phi3Config", GROUPED | {"sliding_window": WINDOW}),
    "olmo2": ("Olmo2Config", GROUPED),
    "gpt2": ("GPT2Config", GPT2 | ENDS),
    "gpt_neox": ("GPTNeoXConfig", COMMON),
    "cohere": ("CohereConfig", GROUPED | {"logit_scale": 0.3}),
    "granite": ("GraniteConfig", GROUPED | {"logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "gpt_oss": ("GptOssConfig", HEADED | WINDOWED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "bamba": (
        "BambaConfig",
        GROUPED | {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    ),
}
FAMILIES = [name for name in CONFIGS if name not in ("cohere", "granite", "gpt_oss", "bamba")]


def tiny(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model of the family, every weight, norm and bias randomised."""
    kind, settings = CONFIGS[name]
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(getattr(hf, kind)(**(settings | changes))).eval()
    return shaken(model)


def shaken(model: Any) -> Any:
    """The model with noise on all its parameters."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    return model


def batch(seed: int, length: int = 17, side: str = "none", padding: int = 5) -> tuple[Tensor, Tensor]:
    """Two rows of random tokens and their mask; the first row is padded on a side."""
    tokens = torch.randint(1, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, length, dtype=torch.bool)
    if side == "left":
        mask[0, :padding] = False
    if side == "right":
        mask[0, length - padding :] = False
    return tokens, mask


def arguments(tokens: Tensor, mask: Tensor) -> dict[str, Any]:
    """What the model's own forward is called with: the mask, and positions that count unpadded tokens."""
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": tokens, "attention_mask": mask.long(), "position_ids": positions, "use_cache": False}
