"""A model cut in two is the model: real transformers models from a config, compared with their own forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from sae_transfer.errors import UserError
from sae_transfer.models.split import SplitModel
from tests.models.tiny import FAMILIES, N_LAYERS, VOCAB, WIDTH, arguments, batch, shaken, tiny

BOUNDARIES = range(N_LAYERS + 1)


def logits(split: SplitModel, hidden: Tensor) -> Tensor:
    """Logits [batch, pos, vocab] by the cut model's head."""
    return split.logits(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)


def close(found: Tensor, expected: Tensor, within: float = 1e-5) -> None:
    """Equal to `within`, of the value or in itself, whichever allows more."""
    torch.testing.assert_close(found, expected, atol=within, rtol=within)


@contextmanager
def arriving(split: SplitModel, boundary: int, resid: Tensor) -> Iterator[None]:
    """PyTorch's own hooks put a residual into the whole model: the slow way that the cut must equal."""
    with arriving_from(split, boundary, lambda _: resid):
        yield


@contextmanager
def arriving_from(split: SplitModel, boundary: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The same with what is made of the residual that was there."""
    if boundary < N_LAYERS:
        handle = split.layers[boundary].register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        handle = split.layers[-1].register_forward_hook(lambda *called: change(called[2]))
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=10, database=None)
@given(seed=st.integers(0, 999), side=st.sampled_from(["none", "left", "right"]), length=st.integers(12, 20))
def test_prefix_and_suffix_give_the_models_logits(name: str, seed: int, side: str, length: int) -> None:
    """At every boundary, with rows longer than the sliding window, padded anywhere, by the model's head or by ours."""
    model = tiny(name, seed)
    split = SplitModel(model, name)
    tokens, mask = batch(seed, length, side)
    with torch.no_grad():
        expected = model(**arguments(tokens, mask)).logits
        for boundary in BOUNDARIES:
            resid = split.prefix(tokens, mask, [boundary])[boundary]
            split.prefix(*batch(seed + 1, length), [boundary])
            found = logits(split, split.suffix(resid, tokens, mask, boundary))
            close(found[mask], expected[mask])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_pass_leaves_what_prefixes_leave(name: str) -> None:
    """Residuals of several boundaries are the same from one whole pass, from one prefix and from a prefix each."""
    split = SplitModel(tiny(name), name)
    tokens, mask = batch(0, side="left")
    with torch.no_grad():
        whole, _ = split.forward(tokens, mask, BOUNDARIES)
        together = split.prefix(tokens, mask, BOUNDARIES)
        for boundary in BOUNDARIES:
            alone = split.prefix(tokens, mask, [boundary])[boundary]
            close(whole[boundary][mask], alone[mask], within=0.0)
            close(together[boundary][mask], alone[mask], within=0.0)
        assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_no_layer_on_the_far_side_of_a_cut_runs(boundary: int) -> None:
    """A prefix runs the layers before its boundary, a suffix those behind it, each once."""
    split = SplitModel(tiny("llama"), "llama")
    ran = list[int]()
    for index, layer in enumerate(split.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    resid = split.prefix(*batch(0), [boundary])[boundary]
    assert ran == list(range(boundary))
    split.suffix(resid, *batch(0), boundary)
    assert ran == list(range(N_LAYERS))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_a_changed_residual_goes_on_as_in_the_whole_model(name: str, side: str) -> None:
    """A noisy residual gives the logits of the whole model with that residual put in by a hook, skipping layers or not."""
    model = tiny(name)
    split = SplitModel(model, name)
    tokens, mask = batch(1, side=side)
    with torch.no_grad():
        for boundary, resid in split.prefix(tokens, mask, BOUNDARIES).items():
            noisy = resid + resid.std() * torch.randn(resid.shape, generator=torch.Generator().manual_seed(boundary))
            with arriving(split, boundary, noisy):
                expected = model(**arguments(tokens, mask)).logits
            for skip in (True, False):
                found = logits(split, split.suffix(noisy, tokens, mask, boundary, skip=skip))
                close(found[mask], expected[mask])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("boundary", [0, 1, 2, N_LAYERS])
def test_gradients_of_the_residual_are_those_of_the_whole_model(name: str, boundary: int) -> None:
    """The loss of a suffix has the same gradient at the residual as the loss of the whole model."""
    model = tiny(name)
    split = SplitModel(model, name)
    tokens, mask = batch(2, side="left")
    resid = split.prefix(tokens, mask, [boundary])[boundary].requires_grad_()
    with arriving(split, boundary, resid):
        (expected,) = torch.autograd.grad(model(**arguments(tokens, mask)).logits[mask].logsumexp(-1).sum(), resid)
    hidden = split.suffix(resid, tokens, mask, boundary)
    (found,) = torch.autograd.grad(logits(split, hidden)[mask].logsumexp(-1).sum(), resid)
    assert expected.abs().max() > 0
    close(found, expected)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    """After cuts, heads and a refused residual the model holds the same modules and parameters, and no hook."""
    model = tiny(name)
    modules, weights = dict(model.named_modules()), [key for key, _ in model.named_parameters()]
    split = SplitModel(model, name)
    split.check(BOUNDARIES)
    with pytest.raises(ValueError, match="residual of shape"):
        split.suffix(torch.zeros(2, 17, 1), *batch(0), 2)
    after = dict(model.named_modules())
    assert list(after) == list(modules)
    assert all(after[path] is module for path, module in modules.items())
    assert [key for key, _ in model.named_parameters()] == weights
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("width", [1, WIDTH - 1, WIDTH + 1])
@pytest.mark.parametrize("boundary", [0, 3, N_LAYERS])
def test_a_residual_of_another_width_is_refused(boundary: int, width: int) -> None:
    """No residual is broadcast into place, not even one of width 1."""
    with pytest.raises(ValueError, match=f"residual of shape .*{width}.* where .*{WIDTH}.* arrives"):
        SplitModel(tiny("llama"), "llama").suffix(torch.zeros(2, 17, width), *batch(0), boundary)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_zero_hidden_is_what_a_whole_pass_of_zeros_gives(name: str) -> None:
    """One vector stands for every position of every row after a full zero ablation."""
    model = tiny(name)
    split = SplitModel(model, name)
    split.check(BOUNDARIES)
    tokens, mask = batch(3)
    for boundary in BOUNDARIES:
        with torch.no_grad(), arriving(split, boundary, torch.zeros(2, 17, WIDTH)):
            hidden = split.stack(**arguments(tokens, mask)).last_hidden_state
        expected = split.zero_hidden[boundary]
        assert expected is not None
        close(expected.expand_as(hidden), hidden)


def test_a_model_with_attention_sinks_has_no_zero_hidden() -> None:
    """Where zeroed positions differ from each other no vector may stand for them."""
    split = SplitModel(tiny("gpt_oss"), "gpt_oss")
    split.check([1, N_LAYERS])
    assert split.zero_hidden[1] is None
    assert split.zero_hidden[N_LAYERS] is not None


@pytest.mark.parametrize("name", [*FAMILIES, "cohere", "granite"])
def test_the_head_is_the_models_own(name: str) -> None:
    """Hidden states of any length give the model's logits: caps, scales and biases too."""
    model = tiny(name)
    split = SplitModel(model, name)
    tokens, mask = batch(4)
    with torch.no_grad():
        expected = model(**arguments(tokens, mask)).logits
        _, hidden = split.forward(tokens, mask, [0])
        close(logits(split, hidden), expected)
        close(split.logits(hidden[0, :3]), expected[0, :3])
    if name in ("gemma2", "cohere", "granite"):
        assert not torch.allclose(model.lm_head(hidden), expected, rtol=0.1)


@pytest.mark.parametrize("name", FAMILIES)
def test_real_families_pass_their_own_check(name: str) -> None:
    """The check at load refuses none of the families that can be cut, in float32 and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        split = SplitModel(tiny(name).to(dtype), name)
        split.check(BOUNDARIES)
        assert (split.n_layers, split.d_model, split.vocab_size, split.dtype) == (N_LAYERS, WIDTH, VOCAB, dtype)


def test_layers_that_return_more_than_the_residual_are_cut_too() -> None:
    """Bamba's stack unpacks two values from every layer, from one that is skipped as well."""
    split = SplitModel(tiny("bamba"), "bamba")
    split.check(BOUNDARIES)


@pytest.mark.parametrize("part", ["model.layers.1.mlp.down_proj", "model.norm", "lm_head"])
def test_weights_that_are_not_finite_are_refused(part: str) -> None:
    """One NaN anywhere on the way to the logits is found before anything is measured."""
    model = tiny("llama")
    model.get_submodule(part).weight.data.view(-1)[5] = float("nan")
    with pytest.raises(UserError, match=r"logits that are not finite.*E-NAN"):
        SplitModel(model, "llama").check([2])


class Remembering(nn.Module):
    """A layer that leaves its output in a place the layers share, or adds what lies there."""

    def __init__(self, layer: nn.Module, shared: dict[str, Tensor], writes: bool) -> None:
        super().__init__()
        self.layer, self.shared, self.writes = layer, shared, writes

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, plus the shared state where this layer reads it."""
        output: Tensor = self.layer(*args, **kwargs)
        if self.writes:
            self.shared["state"] = output
            return output
        return output + self.shared["state"]


class Shortcut(LlamaForCausalLM):  # type: ignore[misc]
    """A Llama whose logits also feel the embedding of the token itself, past the stack of layers."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """Logits of the hidden states plus those of the embeddings."""
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + self.lm_head(self.get_input_embeddings()(input_ids))
        return output


@pytest.mark.parametrize("boundary", [1, 2, 3])
def test_a_model_that_shares_state_across_the_cut_is_refused(boundary: int) -> None:
    """A cut between the layer that writes a shared state and the one that reads it would use the last batch's state."""
    model, shared = tiny("llama"), dict[str, Tensor]()
    for layer, writes in ((0, True), (3, False)):
        model.model.layers[layer] = Remembering(model.model.layers[layer], shared, writes)
    split = SplitModel(model, "sharing")
    split.check([0, N_LAYERS])
    with pytest.raises(UserError, match=f"can't be cut after {boundary} layers.*E-MODEL"):
        split.check([boundary])


def test_a_model_whose_logits_need_more_than_the_stack_is_refused() -> None:
    """Hidden states alone must give the logits that the whole model gives."""
    with pytest.raises(UserError, match="E-MODEL"):
        SplitModel(shaken(Shortcut(tiny("llama").config)), "shortcut").check([1])


class Twice(nn.Module):
    """A language model that runs its layers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = shaken(tiny("llama"))

    def get_input_embeddings(self) -> nn.Module:
        """The table of the Llama inside."""
        table: nn.Module = self.lm.get_input_embeddings()
        return table

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        """The second of two passes."""
        self.lm(input_ids=input_ids, use_cache=use_cache)
        return self.lm(input_ids=input_ids, use_cache=use_cache)


def test_a_model_without_one_stack_of_layers_is_refused() -> None:
    """Layers that run twice have no single residual stream to cut."""
    with pytest.raises(UserError, match=r"has 0 stacks of layers.*E-MODEL"):
        SplitModel(Twice(), "twice")
