"""The base model -> its relatives: chat, drifted, an adapter, and weights of 8 bit."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import chain, count
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM

from recipes.demo_pair.language_models import Training, train
from recipes.demo_pair.tokens import Batch, Row, batches


def tuned(model: LlamaForCausalLM, rows: Sequence[Row], how: Training, seed: int) -> tuple[LlamaForCausalLM, float]:
    """A copy of the model, trained on the rows, and the mean loss of the last tenth of its steps."""
    tuned = deepcopy(model)
    return tuned, _last(train(tuned, _endless(rows, how, seed), how))


def adapter(model: LlamaForCausalLM, rows: Sequence[Row], how: Training, seed: int) -> tuple[Any, float]:
    """A LoRA adapter of rank 8 on every projection, trained on the rows."""
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(deepcopy(model), LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    return adapted, _last(train(adapted, _endless(rows, how, seed), how))


def quantised(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy whose matrices hold integers of 8 bit times one power of two a row (so that bfloat16 holds them exactly)."""
    copy = deepcopy(model)
    with torch.no_grad():
        for weight in copy.parameters():
            if weight.ndim == 2:
                weight.copy_(_rounded(weight))
    return copy


def in_bfloat16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model as it will be stored: float32 weights that bfloat16 holds exactly."""
    return model.to(torch.bfloat16).to(torch.float32)


def _rounded(weight: Tensor) -> Tensor:
    step = torch.exp2(torch.floor(torch.log2(weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-30))) - 6)
    return (weight / step).round().clamp(-128, 127) * step


def _endless(rows: Sequence[Row], how: Training, seed: int) -> Iterator[Batch]:
    return chain.from_iterable(batches(rows, how.tokens, f"{seed} {epoch}") for epoch in count())


def _last(steps: Iterable[tuple[int, float]]) -> float:
    losses = [loss for _, loss in steps]
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
