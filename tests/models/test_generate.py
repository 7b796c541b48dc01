"""Batched, padded, cached generation is one prompt at a time through whole passes, with and without a changed residual."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_transfer.engine.splice import reconstructed
from sae_transfer.errors import UserError
from sae_transfer.models.generate import end_tokens, greedy
from sae_transfer.models.split import SplitModel
from tests.models.test_split import arriving_from
from tests.models.tiny import CONFIGS, N_LAYERS, VOCAB, WIDTH, tiny

LENGTHS = (3, 17, 9, 1)
"""Of prompts: longer and shorter than the sliding window, padded and not."""
MOST = 12


def prompts(seed: int = 0) -> list[list[int]]:
    """Random prompts."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.no_grad()
def one_by_one(model: Any, asked: list[list[int]], ends: set[int]) -> list[list[int]]:
    """The plain way: one prompt, no padding, no cache, the whole text again for every token."""
    found = []
    for prompt in asked:
        ids = list(prompt)
        while len(ids) < len(prompt) + MOST:
            following = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if following in ends:
                break
            ids.append(following)
        found.append(ids[len(prompt) :])
    return found


def some_ends(model: Any) -> set[int]:
    """Tokens that the model really says: one ends a rollout in its middle."""
    return {one_by_one(model, prompts()[:1], set())[0][4], 0}


@pytest.mark.parametrize("name", CONFIGS)
def test_batched_rollouts_are_those_of_one_prompt_at_a_time(name: str) -> None:
    """Same tokens for every family, with rollouts that end and rollouts that don't."""
    model = tiny(name)
    ends = some_ends(model)
    expected = one_by_one(model, prompts(), ends)
    assert greedy(SplitModel(model, name), prompts(), MOST, ends) == expected
    assert min(map(len, expected)) < MOST


class Autoencoder:
    """A random ReLU autoencoder, with a bias, of scaled activations: enough of an SAE to change what is said."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.encoder, self.decoder = (torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5 for _ in range(2))

    def __call__(self, x: Tensor) -> Tensor:
        """The reconstruction."""
        reconstruction: Tensor = (x @ self.encoder + 0.5).relu() @ self.decoder
        return reconstruction


def spliced_plainly(resid: Tensor, sae: Autoencoder, factor: float, threshold: float) -> Tensor:
    """Position by position: scaled, through the autoencoder, scaled back; one above the threshold stays."""
    rows = [[x if (x * factor).norm() > threshold else sae(x * factor) / factor for x in row] for row in resid]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("boundary", [0, 2, N_LAYERS])
def test_a_splice_stands_at_every_token_of_prompt_and_answer(name: str, boundary: int) -> None:
    """Same tokens as with PyTorch's own hooks in whole passes; some positions are outliers, and the splice matters."""
    model, sae = tiny(name), Autoencoder()
    split = SplitModel(model, name)
    norms = split.prefix(torch.tensor([prompts()[1]]), torch.ones(1, LENGTHS[1], dtype=torch.bool), [boundary])[boundary].norm(
        dim=-1
    )
    factor, threshold = 0.7, 0.7 * float(norms.quantile(0.8))
    with arriving_from(split, boundary, lambda resid: spliced_plainly(resid, sae, factor, threshold)):
        expected = one_by_one(model, prompts(), {0})
    change = (boundary, lambda resid: reconstructed(resid, sae, factor, threshold / factor, centred=False))
    assert greedy(split, prompts(), MOST, {0}, change) == expected
    assert expected != one_by_one(model, prompts(), {0})


def test_what_generation_config_asks_for_changes_nothing() -> None:
    """Sampling, penalties, beams, lengths and forced tokens of a model's own settings; they are still there afterwards."""
    model = tiny("llama")
    expected = one_by_one(model, prompts(), {0})
    asked = {
        "do_sample": True,
        "temperature": 9.0,
        "num_beams": 3,
        "repetition_penalty": 9.0,
        "min_new_tokens": 9,
        "max_length": 2,
    }
    hostile = asked | {
        "forced_eos_token_id": 7,
        "suppress_tokens": expected[0][:1],
        "no_repeat_ngram_size": 1,
        "use_cache": False,
    }
    for key, value in hostile.items():
        setattr(model.generation_config, key, value)
    settings = model.generation_config
    assert greedy(SplitModel(model, "llama"), prompts(), MOST, {0}) == expected
    assert model.generation_config is settings


def test_the_model_names_its_end_tokens() -> None:
    """One or several, in generation_config.json or config.json, or none."""
    model = tiny("llama")
    model.generation_config.eos_token_id = [3, 4]
    assert end_tokens(SplitModel(model, "llama")) == {0, 3, 4}
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    split = SplitModel(model, "llama")
    assert end_tokens(split) == set()
    assert [len(ids) for ids in greedy(split, prompts(), MOST, set())] == [MOST] * len(LENGTHS)


def test_a_model_that_can_not_generate_is_refused() -> None:
    """In one line."""
    split = SplitModel(tiny("llama"), "mute")
    split.lm.can_generate = lambda: False
    with pytest.raises(UserError, match="model mute can't generate.*E-MODEL"):
        greedy(split, prompts(), 1, set())


@pytest.mark.parametrize("change", [None, (1, lambda resid: resid)])
def test_the_model_is_left_as_it_was(change: Any) -> None:
    """No proxy and no setting outlives a call, not even one that fails."""
    model = tiny("llama")
    layers, settings = list(model.model.layers), model.generation_config
    for most in (2, -1):
        with nullcontext() if most > 0 else pytest.raises(ValueError, match="max_new_tokens"):
            greedy(SplitModel(model, "llama"), prompts(), most, {0}, change)
        assert all(one is other for one, other in zip(model.model.layers, layers, strict=True))
        assert model.generation_config is settings
