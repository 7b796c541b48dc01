"""The walk of `evaluate` without a disk: sources -> token rows -> calibration -> rows of sums, by cell, document and row."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from sae_transfer import saes
from sae_transfer.data.packing import TokenData
from sae_transfer.engine.cache import ActivationCache
from sae_transfer.engine.calibrate import residuals
from sae_transfer.engine.measure import measure
from sae_transfer.engine.plan import plan
from sae_transfer.rows import KEYS, SUMS, Calibration
from sae_transfer.specs import EvaluateSpec
from sae_transfer.workflows.calibrate import calibrate
from sae_transfer.workflows.prepare import resolved
from sae_transfer.workflows.progress import Silent
from sae_transfer.workflows.shelf import Shelf
from sae_transfer.workflows.tokenise import tokenised

Sums = dict[tuple[Any, ...], dict[str, float]]


def measured(
    spec: EvaluateSpec, change: Callable[[TokenData], TokenData] = lambda data: data, cache_bytes: int = 10**9
) -> tuple[Sums, Calibration]:
    """Sums by key (`rows.KEYS`), and the calibration. `change` may alter each data set before it is measured."""
    found = resolved(spec)
    prepared = tokenised(spec, found)
    prepared = replace(prepared, data={name: change(data) for name, data in prepared.data.items()})
    loaded = [saes.load(sae, "cpu") for sae in found.saes]
    models = Shelf(found, spec, sorted({sae.facts.hook_point.boundary for sae in loaded}), Silent())
    cache = ActivationCache(io.BytesIO(), cache_bytes)
    calibration, _ = calibrate(spec, found, prepared, models, cache, Silent())
    sums: Sums = {}
    for unit in plan(prepared.pairs(found), prepared.lengths, spec.batch_size):
        kinds = prepared.about[unit.data].token_kinds
        at = residuals(unit.model, models, cache)
        model, data = models.get(unit.model), prepared.data[unit.data]
        for block in measure(unit, model, loaded, data, kinds, calibration, at, lambda _: None):
            for index in range(len(block["sae"])):
                key = tuple(block[name][index] for name in KEYS)
                assert key not in sums
                sums[key] = {name: float(cast(float, block[name][index])) for name in SUMS}
    return sums, calibration
