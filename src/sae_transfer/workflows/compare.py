"""Pairs of models on the same tokens -> drift records. `drift` and `evaluate` each bring their own way to read residuals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sae_transfer.rows import Calibration, Drift
from sae_transfer.specs import EvaluateSpec, HookPoint
from sae_transfer.workflows.prepare import Resolved
from sae_transfer.workflows.progress import Progress
from sae_transfer.workflows.shelf import Shelf
from sae_transfer.workflows.shelf import device as placed
from sae_transfer.workflows.tokenise import Prepared

if TYPE_CHECKING:
    from sae_transfer.engine.cache import ActivationCache
    from sae_transfer.engine.drift import Read, Setting

POSITIONS = 16_384
"""Of each data set, in input order and whole rows: what an evaluation compares. Fixed, so that no other option changes it."""

Pairs = Mapping[tuple[str, str], Sequence[HookPoint]]
"""(reference, model) and where they are compared."""
Thresholds = Mapping[tuple[str, str], float | None]
"""`auto`'s outlier threshold, unscaled, by model and hook point."""


def compared(
    pairs: Pairs, prepared: Prepared, thresholds: Thresholds, read: Mapping[str, "Read"], setting: "Setting", progress: Progress
) -> tuple[Drift, ...]:
    """A record for every pair, data set, token kind and hook point; without numbers where a model can't read the data.

    `setting` is completed by the hook points and token kinds.
    """
    from sae_transfer.engine.drift import Side, measured

    def side(name: str, hook_points: Sequence[HookPoint]) -> Side:
        return Side(name, read[name], {at: thresholds[name, str(at)] for at in hook_points})

    reasons = {(skipped.model, skipped.data): skipped.reason for skipped in prepared.skipped}
    records: list[Drift] = []
    for (reference, model), hook_points in pairs.items():
        for data in prepared.data.values():
            here = setting.at(hook_points, prepared.about[data.name].token_kinds)
            reason = reasons.get((reference, data.name)) or reasons.get((model, data.name))
            if reason:
                places = [(kind, str(hook_point)) for kind in here.kinds for hook_point in hook_points]
                records += [Drift(reference, model, data.name, *place, note=reason) for place in places]
            else:
                advance = progress.stage(f"comparing {model}, {data.name}", here.tokens(data.lengths))
                records += measured(side(reference, hook_points), side(model, hook_points), data, here, advance)
    return tuple(records)


def beside(
    spec: EvaluateSpec,
    found: Resolved,
    prepared: Prepared,
    models: Shelf,
    cache: "ActivationCache",
    calibration: Calibration,
    progress: Progress,
) -> tuple[Drift, ...]:
    """What an evaluation shows beside its verdicts: every other model against each SAE's own model, where the SAE sits.

    Only the first POSITIONS of each data set count, and what takes a decomposition of matrices is left to `drift`.
    """
    import torch

    from sae_transfer.engine.calibrate import residuals
    from sae_transfer.engine.drift import Setting, every_boundary
    from sae_transfer.engine.moments import CHEAP

    names = [model.ref.name for model in found.models if prepared.of(model.ref.name)]
    places = dict.fromkeys((spec.own_model(sae.ref), sae.facts.hook_point) for sae in found.saes)
    pairs: dict[tuple[str, str], list[HookPoint]] = {}
    for own, hook_point in places:
        for name in names:
            if own in names and own is not None and own != name:
                pairs.setdefault((own, name), []).append(hook_point)
    if not pairs:
        return ()
    thresholds = {(entry.model, entry.hook_point): entry.auto_threshold for entry in calibration.norms}
    read = {name: every_boundary(residuals(name, models, cache)) for name in names}
    device = torch.device(accumulates(placed(spec)))
    setting = Setting(found.saes[0].facts.d_in, spec.batch_size, device, CHEAP, POSITIONS)
    with torch.inference_mode():
        return compared(pairs, prepared, thresholds, read, setting, progress)


def accumulates(device: str) -> str:
    """Where float64 sums are added: on a CUDA device, else on the CPU (MPS has no float64)."""
    return device if device.startswith("cuda") else "cpu"
