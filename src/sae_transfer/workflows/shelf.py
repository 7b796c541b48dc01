"""Models by name, loaded when they are asked for, and the device that they go to."""

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sae_transfer.errors import UserError
from sae_transfer.specs import ReadingSpec, RolloutsSpec
from sae_transfer.workflows.prepare import Resolved
from sae_transfer.workflows.progress import Progress

if TYPE_CHECKING:
    from sae_transfer.models.split import SplitModel


class Shelf:
    """One model at a time stays in memory."""

    def __init__(self, found: Resolved, spec: ReadingSpec, boundaries: list[int], progress: Progress) -> None:
        self.boundaries = boundaries
        self._progress = progress
        self._centred = {s.ref.name: s.facts.hook_point.boundary for s in found.saes if s.facts.hook_point.centred}
        self._found = {model.ref.name: model for model in found.models}
        self._spec = spec
        self._held: SplitModel | None = None

    def get(self, name: str) -> "SplitModel":
        """The model, cut at the boundaries and checked."""
        from sae_transfer.models import loading

        if self._held is None or self._held.name != name:
            self._held = None
            gc.collect()  # the hooks of --device map refer to each other
            self._progress.stage(f"loading {name}", 0)
            found = self._found[name]
            self._held = loading.load(found, self._spec.dtype_of(found.ref), placement(self._spec), set(self.boundaries))
            refuse_shift(self._held, self._centred)
        return self._held


def refuse_shift(model: "SplitModel", centred: Mapping[str, int]) -> None:
    """An SAE that sees no mean over d_model says nothing of it: the model must not feel it. `centred`: boundaries by SAE.

    Raises: UserError E-SAE.
    """
    for name, boundary in centred.items():
        if model.feels_shift(boundary):
            what = f"SAE {name} was trained on centred weights (center_writing_weights), and {model.name} can't be centred"
            raise UserError("E-SAE", what, "choose an SAE trained without, or a model whose every norm is a LayerNorm")


def placement(spec: ReadingSpec | RolloutsSpec) -> str:
    """Where a model goes: `map`, or the one device. Raises UserError E-OPTION."""
    return spec.device if spec.device == "map" else device(spec)


def device(spec: ReadingSpec | RolloutsSpec) -> str:
    """The device that `--device` means, with `map` that of SAEs. Raises UserError E-OPTION where this machine has none such."""
    import torch

    if spec.device in ("auto", "map"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu"}
    if torch.backends.mps.is_available():
        there.add("mps")
    if torch.cuda.is_available():
        there |= {"cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))}
    if spec.device not in there:
        raise UserError("E-OPTION", f"--device {spec.device} is not on this machine", f"give {', '.join(sorted(there))}")
    return spec.device
