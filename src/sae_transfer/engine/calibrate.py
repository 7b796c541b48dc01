"""One prefix pass per model -> norms, outlier threshold, norm scaling factor; then the means of the kept activations."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_transfer.data.packing import NOT_UNDER_TEST, TokenBatch, TokenData
from sae_transfer.engine.cache import ActivationCache
from sae_transfer.engine.outlying import Columns, outlying
from sae_transfer.engine.plan import Batch, batches
from sae_transfer.engine.splice import outliers, seen
from sae_transfer.errors import UserError
from sae_transfer.models.split import SplitModel
from sae_transfer.rows import Mean, Norms, Scale
from sae_transfer.specs import TOKEN_KINDS, HookPoint

Residuals = Callable[[Batch, TokenBatch], Mapping[int, Tensor]]
Advance = Callable[[int], None]

GAP = 2.0
"""The ratio of neighbouring norms that sets outliers apart."""
FAR = 3.0
"""Only norms of at least this many medians can be outliers."""
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Sample:
    """Unscaled norms, sorted, of one model at one hook point: of all data sets, and of the one that sets the scale."""

    d_model: int
    every: Float[Tensor, " every"]
    scaled_by: str
    scaling: Float[Tensor, " scaling"]


@runtime_checkable
class Models(Protocol):
    """Models by name, and the boundaries at which their residuals are wanted."""

    boundaries: list[int]

    def get(self, name: str) -> SplitModel: ...


def residuals(model: str, models: Models, cache: ActivationCache) -> Residuals:
    """Residuals of a batch: from the cache, else by a prefix pass, which the cache then keeps if it can. The model is
    not asked for as long as the cache has everything."""

    def at(batch: Batch, tokens: TokenBatch) -> Mapping[int, Tensor]:
        key = f"{model}/{batch.key}"
        found = cache.get(key)
        if found is None:
            found = models.get(model).prefix(tokens.tokens, tokens.mask, models.boundaries)
            cache.put(key, found)
        return found

    return at


def passes(data: Sequence[TokenData], batch_size: int) -> Iterator[tuple[TokenData, Batch, TokenBatch]]:
    """The batches of data sets, in the order in which every pass takes them."""
    for source in data:
        for batch in batches(source.name, source.lengths, batch_size):
            yield source, batch, source.batch(batch.rows)


def sample_norms(
    model: str,
    data: Sequence[TokenData],
    scaled_by: str,
    batch_size: int,
    read: Residuals,
    hook_points: Sequence[HookPoint],
    advance: Advance,
) -> dict[HookPoint, Sample]:
    """Norms of every unpadded position at each hook point. Raises UserError E-NAN where one is not finite."""
    found: dict[HookPoint, dict[str, list[Tensor]]] = {}
    d_model = 0
    for source, batch, tokens in passes(data, batch_size):
        residuals = read(batch, tokens)
        for hook_point in hook_points:
            resid = residuals[hook_point.boundary]
            x, _ = seen(resid[tokens.mask.to(resid.device)], hook_point.centred)
            norms = x.norm(dim=-1).cpu()
            d_model = resid.shape[-1]
            if not bool(norms.isfinite().all()):
                raise UserError("E-NAN", f"model {model} has activations that are not finite", "check its weights and dtype")
            found.setdefault(hook_point, {}).setdefault(source.name, []).append(norms)
        advance(batch.tokens)
    return {
        hook_point: Sample(
            d_model,
            torch.cat([norms for source in by_data.values() for norms in source]).sort().values,
            scaled_by,
            torch.cat(by_data[scaled_by]).sort().values,
        )
        for hook_point, by_data in found.items()
    }


def outlier_threshold(norms: Float[Tensor, " pos"]) -> float | None:
    """The `auto` rule on sorted norms: the geometric mean of the neighbours with the largest ratio, where that is at least
    GAP and the larger of them is at least FAR medians; else None, and there are no outliers."""
    ordered = norms.double()
    median = ordered.quantile(0.5) if len(ordered) < 2**24 else ordered[len(ordered) // 2]
    lower, upper = ordered[:-1], ordered[1:]
    ratio = torch.where((upper >= FAR * median) & (lower > 0), upper / lower, 0.0)
    if not len(ratio) or float(ratio.max()) < GAP:
        return None
    widest = int(ratio.argmax())
    return math.sqrt(float(lower[widest]) * float(upper[widest]))


def norm_scaling_factor(d_model: int, norms: Float[Tensor, " pos"], threshold: float | None) -> float:
    """sqrt(d_model) / mean norm of the positions that are no outliers (SAELens's "expected_average_only_in").

    Raises: UserError E-DATA where there is none.
    """
    mean = float(norms[~outliers(norms, threshold)].double().mean())
    if not mean > 0:
        what = "the data that set the norm scaling factor have no norm above 0 that is no outlier"
        raise UserError("E-DATA", what, "give more text, or --norm-scaling-factor")
    return math.sqrt(d_model) / mean


def describe(model: str, hook_point: HookPoint, sample: Sample) -> Norms:
    """What run.json keeps of a sample of norms."""
    threshold = outlier_threshold(sample.every)
    at = [round(q * (len(sample.every) - 1)) for q in QUANTILES]
    return Norms(
        model=model,
        hook_point=str(hook_point),
        positions=len(sample.every),
        quantiles={str(q): float(sample.every[index]) for q, index in zip(QUANTILES, at, strict=True)},
        auto_threshold=threshold,
        outliers=int(outliers(sample.every, threshold).sum()),
        scaled_by=sample.scaled_by,
        factor_auto=norm_scaling_factor(sample.d_model, sample.scaling, threshold),
        factor_saelens=norm_scaling_factor(sample.d_model, sample.scaling, None),
        deciles=deciles(sample.every[~outliers(sample.every, threshold)]),
    )


def deciles(norms: Float[Tensor, " pos"]) -> tuple[float, ...]:
    """The norms between tenths of sorted norms: each halfway between two neighbours, where rounding moves no position over."""
    last = len(norms) - 1
    at = [min(max(math.ceil(tenth * len(norms) / 10), 1), max(last, 1)) for tenth in range(1, 10)]
    return tuple((float(norms[index - 1]) + float(norms[min(index, last)])) / 2 for index in at)


def scale(norms: Norms, own: Norms | None, sae: str, asked_for: bool, factor: str | float, threshold: str | float) -> Scale:
    """The factor and threshold of one SAE on one model: `norms` are that model's, `own` the SAE's own model's."""
    by_option = {
        "auto": norms.factor_auto,
        "saelens": norms.factor_saelens,
        "own": own.factor_auto if own else math.nan,
    }
    chosen = 1.0 if not asked_for else by_option[factor] if isinstance(factor, str) else factor
    auto = None if norms.auto_threshold is None else norms.auto_threshold * chosen
    at = {"auto": auto, "off": None}[threshold] if isinstance(threshold, str) else threshold
    return Scale(norms.model, sae, norms.hook_point, asked_for, chosen, at)


def means(
    model: str,
    data: Sequence[TokenData],
    batch_size: int,
    read: Residuals,
    hook_points: Mapping[HookPoint, Sequence[float | None]],
    advance: Advance,
) -> tuple[tuple[Mean, ...], list[Columns]]:
    """Mean activation (unscaled) of the kept positions, for each hook point, threshold, data set and token kind; and the
    positions under test that a threshold sets apart."""
    apart: list[Columns] = []
    sums: dict[tuple[HookPoint, float | None, str, int], tuple[int, Tensor]] = {}
    for source, batch, tokens in passes(data, batch_size):
        found = read(batch, tokens)
        for hook_point, thresholds in hook_points.items():
            x, _ = seen(found[hook_point.boundary], hook_point.centred)
            norms = x.norm(dim=-1)
            kinds = tokens.kinds.to(x.device)
            for threshold in thresholds:
                kept = ~outliers(norms, threshold)
                if threshold is not None and not bool(kept.all()):
                    apart.append(outlying(model, str(hook_point), threshold, source.name, tokens, norms))
                for kind in sorted(set(tokens.kinds.flatten().tolist())):
                    if kind != NOT_UNDER_TEST:
                        chosen = x[kept & (kinds == kind)].cpu().double()
                        key = (hook_point, threshold, source.name, kind)
                        count, total = sums.get(key, (0, torch.zeros(x.shape[-1], dtype=torch.float64)))
                        sums[key] = (count + len(chosen), total + chosen.sum(0))
        advance(batch.tokens)
    averaged = tuple(
        Mean(model, str(hook), threshold, name, TOKEN_KINDS[kind], count, tuple((total / max(count, 1)).tolist()))
        for (hook, threshold, name, kind), (count, total) in sums.items()
    )
    return averaged, apart
