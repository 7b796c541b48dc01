"""What a run fixes before it measures: norms of every model, from them the scales, and with those the means and outliers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sae_transfer.errors import UserError
from sae_transfer.rows import Calibration, Mean, Norms, Scale
from sae_transfer.specs import EvaluateSpec, HookPoint
from sae_transfer.workflows.prepare import Resolved
from sae_transfer.workflows.progress import Progress
from sae_transfer.workflows.shelf import Shelf
from sae_transfer.workflows.tokenise import Prepared

if TYPE_CHECKING:
    from sae_transfer.engine.cache import ActivationCache
    from sae_transfer.engine.outlying import Columns


def calibrate(
    spec: EvaluateSpec,
    found: Resolved,
    prepared: Prepared,
    models: Shelf,
    cache: "ActivationCache",
    progress: Progress,
) -> tuple[Calibration, "Columns"]:
    """Norms of every model at every hook point, from them the scales, and with those the means of kept activations; and
    the outliers among the positions under test (rows.OUTLIERS, without their text)."""
    import torch

    from sae_transfer.engine import calibrate as engine
    from sae_transfer.engine.outlying import together

    hook_points = sorted({sae.facts.hook_point for sae in found.saes})
    names = [model.ref.name for model in found.models if prepared.of(model.ref.name)]
    tokens = sum(sum(data.lengths) for name in names for data in prepared.of(name))
    advance = progress.stage("calibrating", tokens)
    norms: dict[tuple[str, HookPoint], Norms] = {}
    with torch.inference_mode():
        for name in names:
            data = prepared.of(name)
            read = engine.residuals(name, models, cache)
            by = _scaled_by(found, [source.name for source in data])
            samples = engine.sample_norms(name, data, by, spec.batch_size, read, hook_points, advance)
            for hook_point in hook_points:
                norms[name, hook_point] = engine.describe(name, hook_point, samples[hook_point])
        scales = []
        for name in names:
            for sae in found.saes:
                own = norms.get((spec.own_model(sae.ref) or "", sae.facts.hook_point))
                if own is None and spec.norm_scaling_factor == "own" and sae.facts.wants_scaling:
                    raise UserError("E-TOKEN", f"the own model of SAE {sae.ref.name} can't read the data", "give other data")
                asked = sae.facts.wants_scaling
                at_hook = norms[name, sae.facts.hook_point]
                options = (spec.norm_scaling_factor, spec.outlier_threshold)
                scales.append(engine.scale(at_hook, own, sae.ref.name, asked, *options))
        means: list[Mean] = []
        outlying: list[Columns] = []
        advance = progress.stage("averaging", tokens)
        for name in reversed(names):  # the last model is still loaded, and the first is measured first
            read = engine.residuals(name, models, cache)
            thresholds = _thresholds(name, hook_points, scales)
            averaged, apart = engine.means(name, prepared.of(name), spec.batch_size, read, thresholds, advance)
            means += averaged
            outlying += apart
    return Calibration(tuple(norms.values()), tuple(scales), tuple(means)), together(outlying)


def _thresholds(model: str, hook_points: Sequence[HookPoint], scales: Sequence[Scale]) -> dict[HookPoint, list[float | None]]:
    """The different outlier thresholds (unscaled) of a model at each hook point."""
    found: dict[HookPoint, list[float | None]] = {}
    for hook_point in hook_points:
        own = [scale for scale in scales if (scale.model, scale.hook_point) == (model, str(hook_point))]
        found[hook_point] = list(dict.fromkeys(scale.unscaled_threshold for scale in own))
    return found


def _scaled_by(found: Resolved, readable: Sequence[str]) -> str:
    """The data set that sets the norm scaling factor: the first text, else rows, else chats."""
    for kind in ("text", "rows", "chats"):
        for data in found.data:
            if data.ref.kind == kind and data.ref.name in readable:
                return data.ref.name
    raise AssertionError("a model without data is not calibrated")
