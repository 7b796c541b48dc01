"""SplitModel + SAEs + token batches -> rows of sums. A generator: it knows no disk and no metric.

Per batch: the residuals (cached, or one prefix pass), the clean suffix once, per SAE one splice and suffix for each token
kind, zero ablation once per hook point and token kind. Hidden states of scored positions are gathered over the kinds, which
share no position, and go through the head in chunks: the clean logits of a chunk serve every SAE.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_transfer.data.packing import TokenData
from sae_transfer.engine.calibrate import Advance, Residuals
from sae_transfer.engine.losses import chunks, cross_entropy, kl_divergence
from sae_transfer.engine.plan import Unit
from sae_transfer.engine.positions import Positions, added
from sae_transfer.engine.splice import outliers, seen, splice, squared_distance, zero
from sae_transfer.engine.watching import Seen, Watcher
from sae_transfer.models.split import SplitModel
from sae_transfer.rows import SUMS, Block, Calibration, Scale
from sae_transfer.saes import LoadedSae
from sae_transfer.specs import TOKEN_KINDS

GROUP = 8
"""SAEs whose hidden states are held at once; the clean head runs once for each group."""


@dataclass(frozen=True)
class _SaeOnModel:
    """One SAE on this model: its scale, and the calibrated means [kinds, d_model] in its scaled units."""

    sae: LoadedSae
    scale: Scale
    means: Float[Tensor, "kinds d_model"]

    @property
    def boundary(self) -> int:
        """Where it cuts the model."""
        return self.sae.facts.hook_point.boundary


@dataclass(frozen=True)
class _Pass:
    """One batch on one model: its positions and its residuals by boundary."""

    model: SplitModel
    positions: Positions
    residuals: Mapping[int, Tensor]

    def hidden(self, resid: Float[Tensor, "batch pos d_model"], boundary: int) -> Float[Tensor, "scored d_model"]:
        """Run on from a residual; the hidden states of scored positions."""
        tokens = self.positions.batch
        hidden = self.model.suffix(resid, tokens.tokens, tokens.mask, boundary)
        return hidden.flatten(0, 1)[self.positions.scored.to(hidden.device)]

    def hidden_by_kind(self, changed: Iterable[tuple[int, Tensor]], boundary: int) -> Float[Tensor, "scored d_model"]:
        """Run on from a residual for each token kind; each scored position's hidden state comes from its own kind's."""
        merged: Tensor | None = None
        for kind, resid in changed:
            hidden = self.hidden(resid, boundary)
            own = (self.positions.kinds[self.positions.scored] == kind).to(hidden.device)
            merged = hidden if merged is None else torch.where(own.unsqueeze(-1), hidden, merged)
        assert merged is not None
        return merged


@torch.inference_mode()
def measure(
    unit: Unit,
    model: SplitModel,
    saes: Sequence[LoadedSae],
    data: TokenData,
    kinds: Sequence[str],
    calibration: Calibration,
    read: Residuals,
    advance: Advance,
    watchers: Sequence[Watcher] = (),
) -> Iterator[Block]:
    """Rows of sums for every SAE on the unit's batches, a block per batch and SAE; `watchers` see the positions behind them."""
    runs = [_sae_on_model(sae, model, data.name, calibration) for sae in saes]
    for batch in unit.batches:
        tokens = data.batch(batch.rows)
        positions = Positions.of(tokens, kinds)
        if positions.keys:
            residuals = {boundary: resid.to(model.device) for boundary, resid in read(batch, tokens).items()}
            on = _Pass(model, positions, residuals)
            last = max(residuals)
            clean = on.hidden(residuals[last], last)
            zeroed = {boundary: _zero(on, boundary) for boundary in {run.boundary for run in runs}}
            for start in range(0, len(runs), GROUP):
                for found in _group(on, runs[start : start + GROUP], clean, zeroed):
                    for watcher in watchers:
                        watcher.see(found)
                    yield _rows(found, model.name, data.name)
        advance(batch.tokens)


def _sae_on_model(sae: LoadedSae, model: SplitModel, data: str, calibration: Calibration) -> _SaeOnModel:
    scale = calibration.scale(model.name, sae.name)
    means = torch.zeros(len(TOKEN_KINDS), model.d_model, dtype=torch.float64)
    wanted = (scale.model, scale.hook_point, data, scale.unscaled_threshold)
    for mean in calibration.means:
        if (mean.model, mean.hook_point, mean.data, mean.threshold) == wanted:
            means[TOKEN_KINDS.index(mean.token_kind)] = torch.tensor(mean.values, dtype=torch.float64)
    return _SaeOnModel(sae, scale, (means * scale.factor).float().to(model.device))


def _group(
    on: _Pass, runs: Sequence[_SaeOnModel], clean: Float[Tensor, "scored d_model"], zeroed: Mapping[int, Tensor]
) -> Iterator[Seen]:
    """Some SAEs at once: what each did, position by position."""
    spliced = [_splice(on, run) for run in runs]
    needed = {run.boundary: zeroed[run.boundary] for run in runs}
    losses = _losses(on, clean, [hidden for _, hidden in spliced], needed)
    spread, scored = on.positions.spread, on.positions.scored
    same = {"scored": spread(torch.ones(len(scored)), scored), "ce_clean": spread(losses.clean, scored)}
    for index, (run, (own, hidden)) in enumerate(zip(runs, spliced, strict=True)):
        values = {
            **same,
            **own,
            "ce_spliced": spread(losses.spliced[index], scored),
            "ce_zero": spread(losses.zero[run.boundary], scored),
            "kl": spread(losses.kl[index], scored),
        }
        stacked = torch.stack([values[name] for name in SUMS], dim=1)
        yield Seen(run.sae.name, run.scale, on.positions, stacked, clean, hidden)


def _rows(found: Seen, model: str, data: str) -> Block:
    """Positions -> a row of sums for each token kind, token row and document."""
    keys = found.positions.keys
    named = {"model": model, "sae": found.sae, "data": data}
    sums = added(found.values, found.positions.group, len(keys))
    return {
        **{name: [value] * len(keys) for name, value in named.items()},
        "token_kind": [TOKEN_KINDS[kind] for kind, _, _ in keys],
        "row": [row for _, row, _ in keys],
        "document": [document for _, _, document in keys],
        **dict(zip(SUMS, sums.T.tolist(), strict=True)),
    }


def _splice(on: _Pass, run: _SaeOnModel) -> tuple[dict[str, Tensor], Float[Tensor, "scored d_model"]]:
    """The SAE on kept positions: its statistics, and the hidden states of scored positions, each kind spliced by itself."""
    resid, positions, spread = on.residuals[run.boundary], on.positions, on.positions.spread
    under, lacking = seen(resid.flatten(0, 1)[positions.under.to(resid.device)], run.sae.facts.hook_point.centred)
    norms = under.norm(dim=-1)
    outlying = outliers(norms, run.scale.unscaled_threshold)
    kept = positions.under[~outlying.cpu()]
    kinds = positions.kinds[kept].to(resid.device)
    x = under[~outlying] * run.scale.factor
    y, active = run.sae.reconstruct(x)
    error, deviation = squared_distance(y, x), squared_distance(x, run.means[kinds])
    values = {
        "kept": spread(torch.ones(len(kept)), kept),
        "outliers": spread(outlying, positions.under),
        "norm": spread(norms, positions.under),
        "squared_error": spread(error, kept),
        "squared_deviation": spread(deviation, kept),
        "error_ratio": spread(error / deviation, kept),
        "active_features": spread(active, kept),
    }
    back = y / run.scale.factor + lacking[~outlying]
    changed = ((kind, splice(resid, where.to(resid.device), back[kinds == kind])) for kind, where in positions.by_kind(kept))
    return values, on.hidden_by_kind(changed, run.boundary)


def _zero(on: _Pass, boundary: int) -> Float[Tensor, "scored d_model"] | Float[Tensor, "1 d_model"]:
    """Hidden states of scored positions, each kind zeroed by itself; a single one where every position is zeroed."""
    constant, resid = on.model.zero_hidden[boundary], on.residuals[boundary]
    kinds = list(on.positions.by_kind(on.positions.under))
    if constant is not None and len(kinds) == 1 and torch.equal(kinds[0][1], on.positions.batch.mask):
        return constant.unsqueeze(0)
    return on.hidden_by_kind(((kind, zero(resid, where.to(resid.device))) for kind, where in kinds), boundary)


@dataclass(frozen=True)
class _Losses:
    """Per scored position: clean CE, CE and KL of each SAE, and CE of zero ablation by boundary."""

    clean: Float[Tensor, " scored"]
    spliced: Float[Tensor, "saes scored"]
    kl: Float[Tensor, "saes scored"]
    zero: dict[int, Tensor]


def _losses(
    on: _Pass,
    clean: Float[Tensor, "scored d_model"],
    spliced: Sequence[Float[Tensor, "scored d_model"]],
    zeroed: Mapping[int, Tensor],
) -> _Losses:
    """The head and the losses, a chunk of positions at a time; the clean logits of a chunk serve every SAE."""

    def log_probs(hidden: Tensor) -> Tensor:
        return on.model.logits(hidden).log_softmax(-1)

    count = len(on.positions.scored)
    labels = on.positions.labels.to(clean.device)
    losses = _Losses(
        clean=torch.empty(count, device=clean.device),
        spliced=torch.empty(len(spliced), count, device=clean.device),
        kl=torch.empty(len(spliced), count, device=clean.device),
        zero={boundary: torch.empty(count, device=clean.device) for boundary in zeroed},
    )
    alike = {boundary: log_probs(hidden)[0] for boundary, hidden in zeroed.items() if len(hidden) < count}
    for part in chunks(count, on.model.vocab_size):
        reference = log_probs(clean[part])
        losses.clean[part] = cross_entropy(reference, labels[part])
        for index, hidden in enumerate(spliced):
            changed = log_probs(hidden[part])
            losses.spliced[index, part] = cross_entropy(changed, labels[part])
            losses.kl[index, part] = kl_divergence(reference, changed)
        for boundary, hidden in zeroed.items():
            if boundary in alike:
                losses.zero[boundary][part] = -alike[boundary][labels[part]]
            else:
                losses.zero[boundary][part] = cross_entropy(log_probs(hidden[part]), labels[part])
    return losses
