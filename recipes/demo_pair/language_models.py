"""Token batches -> the base model and what is made of it: chat, drifted, an adapter, and 8-bit weights."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.demo_pair.tokens import IGNORED, VOCABULARY, Batch, Row, batches

LAYERS, HOOK_LAYER, D_MODEL = 4, 2, 128


@dataclass(frozen=True)
class Training:
    """How long and how hard: steps of at most `tokens` positions, and the peak of a cosine that ends at `floor` of it."""

    steps: int
    learning_rate: float
    tokens: int = 1024
    warmup: int = 100
    floor: float = 0.1
    weight_decay: float = 0.0


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=344,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy of the labels, nats."""
    logits = model(batch.tokens[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)


def train(model: LlamaForCausalLM, data: Iterable[Batch], how: Training) -> Iterator[tuple[int, float]]:
    """AdamW with gradients clipped to norm 1; yields each step's number and loss."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=how.learning_rate, betas=(0.9, 0.95), weight_decay=how.weight_decay)
    for step, batch in enumerate(islice(data, how.steps), 1):
        for group in optimiser.param_groups:
            group["lr"] = how.learning_rate * schedule(step, how)
        value = loss(model, batch)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        yield step, float(value.detach())


def schedule(step: int, how: Training) -> float:
    """The share of the peak learning rate: a linear rise, then a cosine down to the floor."""
    done = max(0.0, (step - how.warmup) / max(1, how.steps - how.warmup))
    return min(1.0, step / how.warmup) * (how.floor + (1 - how.floor) * (1 + math.cos(math.pi * done)) / 2)


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, rows: Sequence[Row]) -> float:
    """Cross-entropy over every learned token of the rows, nats."""
    total, count = 0.0, 0
    for batch in batches(rows, 4096, seed=0):
        learned = int((batch.labels[:, 1:] != IGNORED).sum())
        total, count = total + float(loss(model, batch)) * learned, count + learned
    return total / count


@torch.no_grad()
def residuals(model: LlamaForCausalLM, rows: Sequence[Row]) -> Iterator[tuple[Tensor, Tensor]]:
    """The residual stream before layer HOOK_LAYER, [rows, pos, d_model], with the token ids, [rows, pos]; -1 is padding."""
    for batch in batches(rows, 4096, seed=0):
        real = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
        resid = model.model(batch.tokens, output_hidden_states=True).hidden_states[HOOK_LAYER]
        yield resid, batch.tokens.where(real, -1)
