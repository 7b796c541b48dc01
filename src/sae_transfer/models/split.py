"""A causal language model cut at residual-stream hook points: prefix, suffix, and hidden states -> logits.

Nothing of an architecture is written a second time. The layers on the far side of a cut are replaced, for the length of
one call, by proxies that pass the residual through, and the model's own forward runs: masks, rotary embeddings, layer
types and the final norm stay its own. Logits come from the model's own head in the same way, with its stack of layers
replaced by a stub that returns the hidden states given. One SplitModel serves one thread.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn

from sae_transfer.errors import UserError

Tokens = Int[Tensor, "batch pos"]
Mask = Bool[Tensor, "batch pos"]
Residual = Float[Tensor, "batch pos d_model"]

CHECK_SEED = 0
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of the largest logit. Float32 passes are bit-equal on CPU; the slack is for kernels that choose by layout."""


class _Proxy(nn.Module):
    """Stands in for a module of the model: holds it unregistered and answers for all of its attributes."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


class _Layer(_Proxy):
    """A layer whose input, run and output can each be replaced. Returns a tensor, or a tuple of so many `values`."""

    def __init__(
        self,
        original: nn.Module,
        values: int,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
        run: bool = True,
    ) -> None:
        super().__init__(original)
        self.__dict__.update(values=values, before=before, after=after, run=run)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        resid, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        if self.before is not None:
            resid = self.before(resid)
        output = self.original(resid, *args, **kwargs) if self.run else resid
        resid, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, (None,) * (self.values - 1))
        if self.after is not None:
            resid = self.after(resid)
        return (resid, *rest) if self.values else resid


class _Stub(_Proxy):
    """Stands in for the stack of layers: returns the hidden states given, in the stack's own output type."""

    def __init__(self, original: nn.Module, output_type: type, hidden: Tensor) -> None:
        super().__init__(original)
        self.__dict__.update(output=output_type(last_hidden_state=hidden))

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


class SplitModel:
    """A model that can be run up to a boundary and on from there. Boundary b lies after b layers, 0 <= b <= n_layers.

    Ids and masks are sent to `device`, and what comes back lies there, wherever accelerate has put the layers.
    Making one runs a probe of three tokens, which finds the layers by structure; `check` then compares cut and uncut
    passes on the real weights. Raises UserError E-MODEL where the model has no single stack of layers.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self.lm = cast(Any, model.get_base_model() if isinstance(model, PeftModel) else model)
        self.lm.eval().requires_grad_(False)
        self.device = _execution_device(self.lm.get_input_embeddings())
        self.dtype: torch.dtype = next(self.lm.parameters()).dtype
        self.layers, self.stack_path, self.values, self.output_type, self.d_model = _probe(self.lm, self.device, name)
        self.stack = self.lm.get_submodule(self.stack_path)
        self.takes_positions = "position_ids" in inspect.signature(self.stack.forward).parameters
        self.vocab_size: int = self.lm.get_input_embeddings().weight.shape[0]
        self.resid_dtype: dict[int, torch.dtype] = {}
        self.zero_hidden: dict[int, Float[Tensor, " d_model"] | None] = {}
        """Hidden state that every position has after full zero ablation at a boundary; None where positions differ."""

    @property
    def n_layers(self) -> int:
        """Number of layers, and the last boundary."""
        return len(self.layers)

    def prefix(self, tokens: Tokens, mask: Mask, boundaries: Iterable[int]) -> dict[int, Residual]:
        """Residuals at the boundaries; no layer behind the last of them runs. `mask` is False on padding."""
        wanted = sorted(set(boundaries))
        residuals, swaps = self._taps(wanted)
        for layer in range(wanted[-1], self.n_layers):
            tap = swaps.get(layer, _Layer(self.layers[layer], self.values))
            tap.__dict__["run"] = False
            swaps[layer] = tap
        with self._swapped(swaps):
            self._run(tokens, mask)
        return residuals

    def forward(self, tokens: Tokens, mask: Mask, boundaries: Iterable[int]) -> tuple[dict[int, Residual], Residual]:
        """The unchanged pass: residuals at the boundaries, and hidden states after the final norm."""
        residuals, swaps = self._taps(sorted(set(boundaries)))
        with self._swapped(swaps):
            hidden = self._run(tokens, mask)
        return residuals, hidden

    def suffix(self, resid: Residual, tokens: Tokens, mask: Mask, boundary: int, skip: bool = True) -> Residual:
        """Hidden states after the final norm when the residual at the boundary is `resid`. Gradients flow into `resid`.

        `skip=False` runs the layers before the cut as well, which changes time and nothing else.
        """

        def start(arriving: Tensor) -> Tensor:
            if resid.shape != arriving.shape:
                raise ValueError(f"residual of shape {tuple(resid.shape)} where {tuple(arriving.shape)} arrives")
            return resid.to(arriving.device, self.resid_dtype.get(boundary, arriving.dtype))

        swaps = {layer: _Layer(self.layers[layer], self.values, run=False) for layer in range(boundary if skip else 0)}
        if boundary < self.n_layers:
            swaps[boundary] = _Layer(self.layers[boundary], self.values, before=start)
        else:
            last = self.n_layers - 1
            swaps[last] = _Layer(self.layers[last], self.values, after=start, run=not skip)
        with self._swapped(swaps):
            return self._run(tokens, mask)

    def logits(self, hidden: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos vocab"]:
        """Logits (float32) of hidden states after the final norm, by the model's own head: caps, scales and biases too."""
        parent_path, _, attribute = self.stack_path.rpartition(".")
        parent = self.lm.get_submodule(parent_path)
        setattr(parent, attribute, _Stub(self.stack, self.output_type, hidden.unsqueeze(0)))
        try:
            dummy = torch.zeros(1, hidden.shape[0], dtype=torch.long, device=self.device)
            logits: Tensor = self.lm(input_ids=dummy, use_cache=False).logits
        finally:
            setattr(parent, attribute, self.stack)
        return logits[0].float().to(self.device)

    @contextmanager
    def changed(self, boundary: int, change: Callable[[Residual], Residual]) -> Iterator[None]:
        """Inside, every pass of the whole model goes on from what `change` makes of the residual at the boundary."""
        layer = min(boundary, self.n_layers - 1)
        proxy = _Layer(self.layers[layer], self.values)

        def here(resid: Residual) -> Residual:
            return change(resid.to(self.device)).to(resid.device)

        proxy.__dict__["before" if boundary < self.n_layers else "after"] = here
        with self._swapped({layer: proxy}):
            yield

    def _taps(self, boundaries: Iterable[int]) -> tuple[dict[int, Residual], dict[int, _Layer]]:
        residuals: dict[int, Residual] = {}
        swaps: dict[int, _Layer] = {}

        def keep(boundary: int) -> Callable[[Tensor], Tensor]:
            def store(resid: Tensor) -> Tensor:
                residuals[boundary] = resid.to(self.device)
                self.resid_dtype[boundary] = resid.dtype
                return resid

            return store

        for boundary in boundaries:
            layer = min(boundary, self.n_layers - 1)
            proxy = swaps.setdefault(layer, _Layer(self.layers[layer], self.values))
            proxy.__dict__["before" if boundary < self.n_layers else "after"] = keep(boundary)
        return residuals, swaps

    @contextmanager
    def _swapped(self, swaps: Mapping[int, nn.Module]) -> Iterator[None]:
        originals = {layer: self.layers[layer] for layer in swaps}
        try:
            for layer, proxy in swaps.items():
                self.layers[layer] = proxy
            yield
        finally:
            for layer, original in originals.items():
                self.layers[layer] = original

    def _run(self, tokens: Tokens, mask: Mask) -> Residual:
        output = self.stack(**self._arguments(tokens, mask))
        hidden: Tensor = output.last_hidden_state
        return hidden.to(self.device)

    def _arguments(self, tokens: Tokens, mask: Mask) -> dict[str, Any]:
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        positions = {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)} if self.takes_positions else {}
        return {"input_ids": tokens, "attention_mask": mask.long(), "use_cache": False, **positions}

    def check(self, boundaries: Iterable[int]) -> None:
        """Compare cut and uncut passes at the boundaries on random tokens, then look at zeroed ones (`zero_hidden`).

        Raises: UserError E-NAN for logits that are not finite, E-MODEL where a cut changes the logits.
        """
        wanted = sorted(set(boundaries))
        generator = torch.Generator().manual_seed(CHECK_SEED)
        tokens = torch.randint(0, self.vocab_size, (2, 2, 9), generator=generator)
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[1, 6:] = False
        with torch.no_grad():
            residuals, hidden = self.forward(tokens[0], mask, wanted)
            reference = self.logits(hidden.flatten(0, 1))
            if not reference.isfinite().all():
                raise UserError("E-NAN", f"model {self.name} gives logits that are not finite", "check its weights")
            whole = self.lm(**_taken(self.lm, self._arguments(tokens[0], mask)))
            limit = TOLERANCE.get(self.dtype, 1e-2) * max(1.0, float(reference.abs().max()))
            difference = whole.logits.float().flatten(0, 1).to(self.device) - reference
            if not float(difference[mask.flatten()].abs().max()) <= limit:
                what = f"model {self.name} has logits that its last hidden states alone don't give"
                raise UserError("E-MODEL", what, "choose another model")
            for boundary in wanted:
                first = self.prefix(tokens[0], mask, [boundary])[boundary]
                self.prefix(tokens[1], mask, [boundary])
                noise = torch.randn(first.shape, generator=generator).to(first)
                noisy = first + noise * residuals[boundary].std()
                for cut, uncut in (
                    (self.suffix(first, tokens[0], mask, boundary), hidden),
                    (
                        self.suffix(noisy, tokens[0], mask, boundary),
                        self.suffix(noisy, tokens[0], mask, boundary, skip=False),
                    ),
                ):
                    difference = self.logits(cut.flatten(0, 1)) - self.logits(uncut.flatten(0, 1))
                    if not float(difference[mask.flatten()].abs().max()) <= limit:
                        raise UserError(
                            "E-MODEL",
                            f"model {self.name} can't be cut after {boundary} layers: its logits change",
                            "choose another hook point or model",
                        )
                self.zero_hidden[boundary] = self._zeroed(tokens[0], boundary)

    def feels_shift(self, boundary: int) -> bool:
        """Whether logits change when each position's residual at the boundary moves by a constant over d_model (random
        ones, on random tokens). LayerNorm takes a shift out again; RMSNorm does not."""
        generator = torch.Generator().manual_seed(CHECK_SEED)
        tokens = torch.randint(0, self.vocab_size, (2, 9), generator=generator)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        with torch.no_grad():
            resid = self.prefix(tokens, mask, [boundary])[boundary]
            shift = torch.randn(*tokens.shape, 1, generator=generator).to(resid.device) * resid.float().std()
            still, moved = (
                self.logits(self.suffix(at, tokens, mask, boundary).flatten(0, 1)) for at in (resid, resid.float() + shift)
            )
        limit = TOLERANCE.get(self.dtype, 1e-2) * max(1.0, float(still.abs().max()))
        return not float((moved - still).abs().max()) <= limit

    def _zeroed(self, tokens: Tokens, boundary: int) -> Float[Tensor, " d_model"] | None:
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        zeros = torch.zeros(*tokens.shape, self.d_model, device=self.device, dtype=self.resid_dtype[boundary])
        hidden = self.suffix(zeros, tokens, everywhere, boundary)
        alike = (hidden - hidden[0, 0]).abs().max() <= 1e-5 * hidden.abs().max().clamp(min=1.0)
        return hidden[0, 0] if bool(alike) else None


def _execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: under accelerate's offload its weights lie elsewhere between its calls."""
    hook = getattr(module, "_hf_hook", None)
    own = getattr(hook, "execution_device", None)
    weight: Tensor = cast(Any, module).weight
    return weight.device if own is None else torch.device(own)


def _taken(module: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the module's forward takes."""
    takes = inspect.signature(module.forward).parameters
    every = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values())
    return {name: value for name, value in arguments.items() if every or name in takes}


def _probe(lm: nn.Module, device: torch.device, name: str) -> tuple[nn.ModuleList, str, int, type, int]:
    """Run three tokens and find the one list of layers that were each called once, in order, on [batch, pos, d_model]."""
    calls: list[tuple[nn.Module, Any]] = []
    handles = [
        module.register_forward_hook(lambda called, _, output: calls.append((called, output))) for module in lm.modules()
    ]
    try:
        with torch.no_grad():
            lm(input_ids=torch.zeros(1, 3, dtype=torch.long, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    outputs: dict[int, list[Any]] = {}
    for module, output in calls:
        outputs.setdefault(id(module), []).append(output)
    order = [id(module) for module, _ in calls]
    found: list[tuple[str, nn.ModuleList]] = []
    for path, module in lm.named_modules():
        nested = any(path.startswith(outer + ".") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) and not nested:
            members = [id(layer) for layer in module]
            if [entry for entry in order if entry in members] == members and all(
                _is_residual(outputs[member][0]) for member in members
            ):
                found.append((path, module))
    if len(found) != 1:
        raise UserError("E-MODEL", f"model {name} has {len(found)} stacks of layers where one is needed", "it can't be cut")
    path, layers = found[0]
    parts = path.split(".")
    ancestors = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    called = [ancestor for ancestor in ancestors if id(lm.get_submodule(ancestor)) in outputs]
    if not called:
        raise UserError("E-MODEL", f"model {name} has no module that runs its layers", "it can't be cut")
    first = outputs[id(layers[0])][0]
    values = len(first) if isinstance(first, tuple) else 0
    stack_output = outputs[id(lm.get_submodule(called[0]))][0]
    return layers, called[0], values, type(stack_output), (first[0] if values else first).shape[-1]


def _is_residual(output: Any) -> bool:
    tensor = output[0] if isinstance(output, tuple) and output else output
    return isinstance(tensor, Tensor) and tensor.dim() == 3 and tensor.shape[:2] == (1, 3)
