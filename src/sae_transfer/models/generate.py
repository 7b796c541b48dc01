"""Batched greedy rollouts of a whole model, by its own `generate` with a KV cache, perhaps with its residual changed.

Whatever a model's generation_config.json asks for (sampling, penalties, lengths, beams) is put aside for the length of the
call: the next token is the likeliest one, until an end token or `max_tokens`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from typing import Any

import torch
from transformers import GenerationConfig

from sae_transfer.errors import UserError
from sae_transfer.models.split import Residual, SplitModel

Change = Callable[[Residual], Residual]


@torch.inference_mode()
def greedy(
    model: SplitModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Collection[int],
    change: tuple[int, Change] | None = None,
) -> list[list[int]]:
    """What follows each prompt, without the end token: fewer than `max_tokens` ids where there was one.

    Prompts are padded on the left, which changes no rollout. With `change` (a boundary and a function) the residual there is
    what the function makes of it in every pass, of the prompts and of each token after them; padding too, which nothing
    reads. Raises: UserError E-MODEL where the model can't generate.
    """
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), width, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
    )
    with _settings(model, settings), nullcontext() if change is None else model.changed(*change):
        found = model.lm.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
    return [list(takewhile(lambda token: token not in ends, row)) for row in found[:, width:].tolist()]


def end_tokens(model: SplitModel) -> set[int]:
    """The end tokens that the model itself names, in generation_config.json or config.json."""
    named = (model.lm.generation_config, model.lm.config.get_text_config()) if model.lm.can_generate() else ()
    found = [getattr(config, "eos_token_id", None) for config in named]
    return {int(token) for value in found if value is not None for token in (value if isinstance(value, list) else [value])}


@contextmanager
def _settings(model: SplitModel, settings: GenerationConfig) -> Iterator[None]:
    """`generate` fills in what its own argument leaves open from the model's settings: for this call they are the same."""
    lm: Any = model.lm
    if not lm.can_generate():
        raise UserError("E-MODEL", f"model {model.name} can't generate", "choose a causal language model")
    own, lm.generation_config = lm.generation_config, settings
    try:
        yield
    finally:
        lm.generation_config = own
