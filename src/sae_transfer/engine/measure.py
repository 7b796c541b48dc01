"""SplitModel + SAEs + token batches -> rows of sums. A generator: it knows no disk and no metric.

Per batch: the residuals (cached, or one prefix pass), the clean suffix once, per SAE one splice and suffix for each token
kind, zero ablation once per hook point and token kind. Hidden states of scored positions are gathered over the kinds, which
share no position, and go through the head in chunks: the clean logits of a chunk serve every SAE.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_transfer.data.packing import NOT_UNDER_TEST, TokenBatch, TokenData
from sae_transfer.engine.calibrate import Progress, Residuals
from sae_transfer.engine.losses import chunks, cross_entropy, kl_divergence
from sae_transfer.engine.plan import Unit
from sae_transfer.engine.splice import outliers, splice, squared_distance, zero
from sae_transfer.models.split import SplitModel
from sae_transfer.rows import Calibration, Scale
from sae_transfer.saes import LoadedSae
from sae_transfer.specs import TOKEN_KINDS

GROUP = 8
"""SAEs whose hidden states are held at once; the clean head runs once for each group."""

Block = dict[str, list[Any]]
"""Columns of `rows.COLUMNS`, of equal length."""


@dataclass(frozen=True)
class _Positions:
    """Flat indices (batch x pos) of a batch: who is under test, who is scored, and which row of sums each adds to."""

    under: Int[Tensor, " under"]
    scored: Int[Tensor, " scored"]
    labels: Int[Tensor, " scored"]
    group: Int[Tensor, " flat"]
    keys: tuple[tuple[int, int, int], ...]
    """(token kind, row, document) of each group."""

    def add(self, values: Tensor, at: Tensor) -> list[float]:
        """Sums of `values` (any dtype, one per position in `at`) over each group, in float64 and in position order."""
        sums = torch.zeros(len(self.keys), dtype=torch.float64)
        return sums.index_add_(0, self.group[at.cpu()], values.cpu().double()).tolist()


@torch.inference_mode()
def measure(
    unit: Unit,
    model: SplitModel,
    saes: Sequence[LoadedSae],
    data: TokenData,
    kinds: Sequence[str],
    calibration: Calibration,
    at: Residuals,
    progress: Progress,
) -> Iterator[Block]:
    """Rows of sums for every SAE on the unit's batches, a block per batch and SAE."""
    runs = []
    for sae in saes:
        scale = calibration.scale(model.name, sae.name)
        runs.append(_Run(sae, scale, _means(calibration, scale, data.name, model)))
    for batch in unit.batches:
        tokens = data.batch(batch.rows)
        positions = _positions(tokens, [TOKEN_KINDS.index(kind) for kind in kinds])
        if positions.keys:
            residuals = {boundary: resid.to(model.device) for boundary, resid in at(batch, tokens).items()}
            last = max(residuals)
            clean = _scored(model.suffix(residuals[last], tokens.tokens, tokens.mask, last), positions)
            zeroed = {
                boundary: _zero(model, tokens, positions, residuals[boundary], boundary)
                for boundary in {run.boundary for run in runs}
            }
            for start in range(0, len(runs), GROUP):
                yield from _group(model, runs[start : start + GROUP], data.name, tokens, positions, residuals, clean, zeroed)
        progress(batch.tokens)


@dataclass(frozen=True)
class _Run:
    """One SAE on this model: its scale, and the calibrated means [kinds, d_model] in its scaled units."""

    sae: LoadedSae
    scale: Scale
    means: Float[Tensor, "kinds d_model"]

    @property
    def boundary(self) -> int:
        return self.sae.facts.hook_point.boundary


def _means(calibration: Calibration, scale: Scale, data: str, model: SplitModel) -> Float[Tensor, "kinds d_model"]:
    means = torch.zeros(len(TOKEN_KINDS), model.d_model, dtype=torch.float64)
    wanted = (scale.model, scale.hook_point, data, scale.unscaled_threshold)
    for mean in calibration.means:
        if (mean.model, mean.hook_point, mean.data, mean.threshold) == wanted:
            means[TOKEN_KINDS.index(mean.token_kind)] = torch.tensor(mean.values, dtype=torch.float64)
    return (means * scale.factor).float().to(model.device)


def _group(
    model: SplitModel,
    runs: Sequence[_Run],
    data: str,
    tokens: TokenBatch,
    positions: _Positions,
    residuals: Mapping[int, Tensor],
    clean: Float[Tensor, "scored d_model"],
    zeroed: Mapping[int, Tensor],
) -> Iterator[Block]:
    spliced = [_splice(model, run, tokens, positions, residuals[run.boundary]) for run in runs]
    needed = {run.boundary: zeroed[run.boundary] for run in runs}
    losses = _losses(model, positions, clean, [hidden for _, hidden in spliced], needed)
    same: Block = {
        "model": [model.name] * len(positions.keys),
        "data": [data] * len(positions.keys),
        "token_kind": [TOKEN_KINDS[kind] for kind, _, _ in positions.keys],
        "row": [row for _, row, _ in positions.keys],
        "document": [document for _, _, document in positions.keys],
        "scored": positions.add(torch.ones(len(positions.scored)), positions.scored),
        "ce_clean": positions.add(losses.clean, positions.scored),
    }
    for run, (block, _), ce_spliced, kl in zip(runs, spliced, losses.spliced.unbind(), losses.kl.unbind(), strict=True):
        yield (
            same
            | block
            | {
                "sae": [run.sae.name] * len(positions.keys),
                "ce_spliced": positions.add(ce_spliced, positions.scored),
                "ce_zero": positions.add(losses.zero[run.boundary], positions.scored),
                "kl": positions.add(kl, positions.scored),
            }
        )


def _positions(tokens: TokenBatch, kinds: Sequence[int]) -> _Positions:
    chosen = torch.isin(tokens.kinds, torch.tensor(kinds, dtype=torch.long)) & (tokens.kinds != NOT_UNDER_TEST)
    under = chosen.flatten().nonzero().squeeze(-1)
    scored = (chosen & tokens.scored).flatten().nonzero().squeeze(-1)
    owners = torch.stack(
        [tokens.kinds.flatten(), tokens.rows.repeat_interleave(tokens.tokens.shape[1]), tokens.documents.flatten()],
        dim=1,
    )
    keys, which = np.unique(owners[under].numpy(), axis=0, return_inverse=True)
    group = torch.full((tokens.tokens.numel(),), -1)
    group[under] = torch.from_numpy(which.reshape(-1))
    labels = tokens.tokens.flatten()[scored + 1]
    return _Positions(under, scored, labels, group, tuple((int(k), int(r), int(d)) for k, r, d in keys))


def _scored(hidden: Float[Tensor, "batch pos d_model"], positions: _Positions) -> Float[Tensor, "scored d_model"]:
    return hidden.flatten(0, 1)[positions.scored.to(hidden.device)]


def _splice(
    model: SplitModel, run: _Run, tokens: TokenBatch, positions: _Positions, resid: Float[Tensor, "batch pos d_model"]
) -> tuple[Block, Float[Tensor, "scored d_model"]]:
    """The SAE on every kept position: its sums, and the hidden states of scored positions, each kind spliced by itself."""
    flat = resid.flatten(0, 1)
    under = flat[positions.under.to(flat.device)].float()
    norms = under.norm(dim=-1)
    outlying = outliers(norms, run.scale.unscaled_threshold)
    kept = positions.under[~outlying.cpu()]
    kinds = tokens.kinds.flatten()[kept].to(flat.device)
    x = under[~outlying] * run.scale.factor
    y, active = run.sae.reconstruct(x)
    error = squared_distance(y, x)
    deviation = squared_distance(x, run.means[kinds])
    block: Block = {
        "kept": positions.add(torch.ones(len(kept)), kept),
        "outliers": positions.add(outlying, positions.under),
        "norm": positions.add(norms, positions.under),
        "squared_error": positions.add(error, kept),
        "squared_deviation": positions.add(deviation, kept),
        "error_ratio": positions.add(error / deviation, kept),
        "active_features": positions.add(active, kept),
    }
    back = y / run.scale.factor
    changed = (
        (kind, splice(resid, where.to(resid.device), back[kinds == kind])) for kind, where in _by_kind(tokens, positions, kept)
    )
    return block, _suffixes(model, tokens, positions, changed, run.boundary)


def _zero(
    model: SplitModel,
    tokens: TokenBatch,
    positions: _Positions,
    resid: Float[Tensor, "batch pos d_model"],
    boundary: int,
) -> Float[Tensor, "scored d_model"] | Float[Tensor, "1 d_model"]:
    """Hidden states of scored positions, each kind zeroed by itself; a single one where every position is zeroed."""
    constant = model.zero_hidden[boundary]
    kinds = list(_by_kind(tokens, positions, positions.under))
    if constant is not None and len(kinds) == 1 and torch.equal(kinds[0][1], tokens.mask):
        return constant.unsqueeze(0)
    changed = ((kind, zero(resid, where.to(resid.device))) for kind, where in kinds)
    return _suffixes(model, tokens, positions, changed, boundary)


def _by_kind(tokens: TokenBatch, positions: _Positions, at: Int[Tensor, " at"]) -> Iterator[tuple[int, Tensor]]:
    """Each kind under test, and the positions [batch, pos] of it that are among the flat indices `at`."""
    kinds = tokens.kinds.flatten()
    for kind in sorted({kind for kind, _, _ in positions.keys}):
        where = torch.zeros(tokens.kinds.numel(), dtype=torch.bool)
        where[at[kinds[at] == kind]] = True
        yield kind, where.view(tokens.kinds.shape)


def _suffixes(
    model: SplitModel,
    tokens: TokenBatch,
    positions: _Positions,
    changed: Iterable[tuple[int, Tensor]],
    boundary: int,
) -> Float[Tensor, "scored d_model"]:
    """Run on from each changed residual and take from it the scored positions of its own kind."""
    hidden: Tensor | None = None
    for kind, resid in changed:
        own = (tokens.kinds.flatten()[positions.scored] == kind).to(resid.device)
        passed = _scored(model.suffix(resid, tokens.tokens, tokens.mask, boundary), positions)
        hidden = passed if hidden is None else torch.where(own.unsqueeze(-1), passed, hidden)
    assert hidden is not None
    return hidden


@dataclass(frozen=True)
class _Losses:
    """Per scored position: clean CE, CE and KL of each SAE, and CE of zero ablation by boundary."""

    clean: Float[Tensor, " scored"]
    spliced: Float[Tensor, "saes scored"]
    kl: Float[Tensor, "saes scored"]
    zero: dict[int, Tensor]


def _losses(
    model: SplitModel,
    positions: _Positions,
    clean: Float[Tensor, "scored d_model"],
    spliced: Sequence[Float[Tensor, "scored d_model"]],
    zeroed: Mapping[int, Tensor],
) -> _Losses:
    """The head and the losses, a chunk of positions at a time; the clean logits of a chunk serve every SAE."""

    def log_probs(hidden: Tensor) -> Tensor:
        return model.logits(hidden).log_softmax(-1)

    count = len(positions.scored)
    labels = positions.labels.to(clean.device)
    out = torch.empty(1 + 2 * len(spliced) + len(zeroed), count, device=clean.device)
    losses = _Losses(
        out[0],
        out[1 : 1 + len(spliced)],
        out[1 + len(spliced) : 1 + 2 * len(spliced)],
        dict(zip(zeroed, out[1 + 2 * len(spliced) :], strict=True)),
    )
    alike = {boundary: log_probs(hidden)[0] for boundary, hidden in zeroed.items() if len(hidden) < count}
    for part in chunks(count, model.vocab_size):
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
