"""Pairs of models on the same tokens -> drift records. `drift` and `evaluate` each bring their own way to read residuals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sae_transfer.rows import Drift
from sae_transfer.specs import HookPoint
from sae_transfer.workflows.progress import Progress
from sae_transfer.workflows.tokenise import Prepared

if TYPE_CHECKING:
    from sae_transfer.engine.drift import Read, Setting

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


def accumulates(device: str) -> str:
    """Where float64 sums are added: on a CUDA device, else on the CPU (MPS has no float64)."""
    return device if device.startswith("cuda") else "cpu"
