"""Our side: calibration and measuring, as `workflows/evaluate.py` orders them, with everything loaded already."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any
from unittest.mock import patch

from benchmarks.saelens import Losses
from benchmarks.setting import Setting
from sae_transfer.engine import measure
from sae_transfer.engine.cache import ActivationCache
from sae_transfer.engine.calibrate import residuals
from sae_transfer.engine.plan import plan
from sae_transfer.engine.watching import Watcher
from sae_transfer.saes import LoadedSae
from sae_transfer.workflows import breaking
from sae_transfer.workflows.calibrate import calibrate
from sae_transfer.workflows.progress import Silent

SUMMED = ("scored", "kept", "ce_clean", "ce_spliced", "ce_zero", "active_features", "squared_error")
STAGES = ("prefix", "suffix", "head + losses", "SAE", "rest")


def evaluate(setting: Setting, watch: Callable[..., list[Watcher]] = breaking.watch) -> Losses:
    """Both SAEs on all rows, in one pass; what the rows of sums say. `watch`: who sees the positions behind them."""
    spec, prepared, models = setting.spec, setting.prepared, setting.models
    sums: dict[str, Counter[str]] = {sae.name: Counter() for sae in setting.saes}
    with tempfile.TemporaryFile(buffering=0) as spill:
        cache = ActivationCache(spill, spec.activation_cache)
        calibration, outlying = calibrate(spec, setting.found, prepared, models, cache, Silent())
        for unit in plan(prepared.pairs(setting.found), prepared.lengths, spec.batch_size):
            data, kinds = prepared.data[unit.data], prepared.about[unit.data].token_kinds
            read = residuals(unit.model, models, cache)
            watchers = watch(unit, setting.model, data, calibration, outlying)
            what = (unit, setting.model, setting.saes, data, kinds, calibration, read, lambda _: None, watchers)
            for block in measure.measure(*what):
                for column in SUMMED:
                    sums[block["sae"][0]][column] += sum(block[column])
            for watcher in watchers:
                breaking.blocks(watcher, prepared.texts[unit.data])
    return {name: _means(total) for name, total in sums.items()}


def rows_alone(setting: Setting) -> Losses:
    """The same without the breakdown, the worst tokens and what is measured apart."""
    return evaluate(setting, lambda *_: [])


def _means(sums: Counter[str]) -> dict[str, float]:
    return {
        "CE clean": sums["ce_clean"] / sums["scored"],
        "CE spliced": sums["ce_spliced"] / sums["scored"],
        "CE zero": sums["ce_zero"] / sums["scored"],
        "L0": sums["active_features"] / sums["kept"],
        "MSE": sums["squared_error"] / sums["kept"],
    }


def stages(setting: Setting) -> dict[str, float]:
    """Seconds that one `evaluate` spends in each stage, by stopwatches around the calls."""
    spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    timed = replace(setting, saes=tuple(_TimedSae.of(sae, spent) for sae in setting.saes))
    model = setting.model
    started = time.perf_counter()
    with (
        patch.object(model, "prefix", _watched(model.prefix, "prefix", spent)),
        patch.object(model, "suffix", _watched(model.suffix, "suffix", spent)),
        patch.object(measure, "_losses", _watched(measure._losses, "head + losses", spent)),
    ):
        evaluate(timed)
    spent["rest"] = time.perf_counter() - started - sum(spent.values())
    return spent


class _TimedSae(LoadedSae):
    """An SAE whose reconstructions are timed."""

    @classmethod
    def of(cls, sae: LoadedSae, spent: dict[str, float]) -> "_TimedSae":
        timed = cls(**{field.name: getattr(sae, field.name) for field in fields(sae)})
        object.__setattr__(timed, "reconstruct", _watched(sae.reconstruct, "SAE", spent))
        return timed


def _watched(call: Callable[..., Any], stage: str, spent: dict[str, float]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _watch(stage, spent):
            return call(*args, **kwargs)

    return run


@contextmanager
def _watch(stage: str, spent: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        spent[stage] += time.perf_counter() - started
