"""Two models on the same tokens, no SAE -> how far the second one's residual stream lies from the first one's.

Positions go into moments (`moments.py`) some thousands at a time, whatever the batches are. Where the residuals are not
cached, a stretch of batches runs through the first model before the second is asked for, so that a shelf with room for one
model changes it twice a stretch, not twice a batch; and places whose moments together would pass a bound are taken in
groups, each with its own pass over the cache.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_transfer.data.packing import TokenBatch, TokenData
from sae_transfer.engine.cache import ActivationCache
from sae_transfer.engine.calibrate import Advance, Models, Residuals
from sae_transfer.engine.moments import STATISTICS, Halves, Moments, described, moments_bytes
from sae_transfer.engine.plan import Batch, batches
from sae_transfer.engine.splice import outliers, seen
from sae_transfer.errors import UserError
from sae_transfer.rows import Drift
from sae_transfer.specs import TOKEN_KINDS, HookPoint

TOGETHER = 2_048
"""Positions that one product of matrices takes."""
HELD = 1_000_000_000
"""Bytes of the first model's activations that wait for the second's."""
MOMENTS = 4_000_000_000
"""Bytes of moments that are held at once; places beyond them wait for the next pass."""

Read = Callable[[Batch, TokenBatch, Sequence[int]], Mapping[int, Tensor]]
"""Residuals of a batch at some boundaries."""
Activations = Float[Tensor, "pos d_model"]
Key = tuple[HookPoint, int, int]
"""Hook point, token kind, half."""


@dataclass(frozen=True)
class Side:
    """One model of the two: how its residuals are read, and its outlier thresholds (unscaled)."""

    name: str
    read: Read
    thresholds: Mapping[HookPoint, float | None]


@dataclass(frozen=True)
class Setting:
    """Where drift is measured, and how. `positions`: only the first rows, until they hold so many. Bytes change no number."""

    d_model: int
    batch_size: int
    device: torch.device
    statistics: Sequence[str] = tuple(STATISTICS)
    positions: int | None = None
    hook_points: Sequence[HookPoint] = ()
    kinds: Sequence[str] = ()
    moments: int = MOMENTS
    held: int = HELD

    def at(self, hook_points: Sequence[HookPoint], kinds: Sequence[str]) -> "Setting":
        """The same for some hook points and token kinds."""
        return replace(self, hook_points=hook_points, kinds=kinds)

    def groups(self) -> list[list[tuple[HookPoint, int]]]:
        """Hook points and token kinds whose moments are held together."""
        places = [(hook_point, TOKEN_KINDS.index(kind)) for hook_point in self.hook_points for kind in self.kinds]
        size = max(1, self.moments // moments_bytes(self.d_model))
        return [places[start : start + size] for start in range(0, len(places), size)]

    def tokens(self, lengths: Sequence[int]) -> int:
        """What `measured` will advance by, for rows of such lengths: the tokens of every batch that it takes."""
        rows = first_rows(lengths, self.positions)
        taken = sum(batch.tokens for batch in batches("", lengths, self.batch_size) if min(batch.rows) < rows)
        return taken * len(self.groups())


def by_boundary(model: str, models: Models, cache: ActivationCache) -> Read:
    """Residuals kept boundary by boundary, so that a group reads its own alone. What is missing comes of one prefix pass."""

    def at(batch: Batch, tokens: TokenBatch, boundaries: Sequence[int]) -> Mapping[int, Tensor]:
        keys = {boundary: f"{model}/{batch.key}/{boundary}" for boundary in boundaries}
        kept = {boundary: cache.get(key) for boundary, key in keys.items()}
        found = {boundary: residuals[boundary] for boundary, residuals in kept.items() if residuals is not None}
        missing = [boundary for boundary in boundaries if boundary not in found]
        if missing:
            made = models.get(model).prefix(tokens.tokens, tokens.mask, missing)
            for boundary, resid in made.items():
                cache.put(keys[boundary], {boundary: resid})
            found |= made
        return found

    return at


def every_boundary(read: Residuals) -> Read:
    """The same of a reader that gives all of its boundaries."""
    return lambda batch, tokens, _: read(batch, tokens)


@torch.inference_mode()
def measured(reference: Side, other: Side, data: TokenData, setting: Setting, advance: Advance) -> list[Drift]:
    """A record for each token kind and hook point, in this order."""
    found: list[Drift] = []
    for places in setting.groups():
        piles = _Piles(places)
        for stretch in _stretches(data, places, setting):
            waiting = [
                (batch, tokens, where, _at(reference, batch, tokens, where, places, setting))
                for batch, tokens, where in stretch
            ]
            for batch, tokens, where, xs in waiting:
                ys = _at(other, batch, tokens, where, places, setting)
                piles.add(tokens, where, xs, ys)
                advance(batch.tokens)
        found += [_record(reference, other, data, place, piles, setting) for place in places]
    return sorted(found, key=lambda record: setting.kinds.index(record.token_kind))


def first_rows(lengths: Sequence[int], positions: int | None) -> int:
    """How many rows hold the first so many positions; at least one, all without a bound."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if positions is not None and total > positions:
            return max(count, 1)
    return len(lengths)


def _stretches(
    data: TokenData, places: Sequence[tuple[HookPoint, int]], setting: Setting
) -> Iterator[list[tuple[Batch, TokenBatch, Bool[Tensor, "batch pos"]]]]:
    """Batches that wait together, and which of their positions are under test and counted."""
    rows = first_rows(data.lengths, setting.positions)
    wanted = torch.tensor(sorted({kind for _, kind in places}))
    width = setting.d_model * torch.float32.itemsize * len({hook_point for hook_point, _ in places})
    stretch: list[tuple[Batch, TokenBatch, Bool[Tensor, "batch pos"]]] = []
    size = 0
    for batch in batches(data.name, data.lengths, setting.batch_size):
        if min(batch.rows) < rows:
            tokens = data.batch(batch.rows)
            where = torch.isin(tokens.kinds, wanted) & (tokens.rows < rows).unsqueeze(1)
            needed = int(where.sum()) * width
            if stretch and size + needed > setting.held:
                yield stretch
                stretch, size = [], 0
            if needed:
                stretch.append((batch, tokens, where))
                size += needed
    if stretch:
        yield stretch


@dataclass(frozen=True)
class _Seen:
    """Activations of one model at one hook point, and which of them are outliers."""

    x: Activations
    outlying: Bool[Tensor, " pos"]


def _at(
    side: Side,
    batch: Batch,
    tokens: TokenBatch,
    where: Bool[Tensor, "batch pos"],
    places: Collection[tuple[HookPoint, int]],
    setting: Setting,
) -> dict[HookPoint, _Seen]:
    hook_points = list(dict.fromkeys(hook_point for hook_point, _ in places))
    residuals = side.read(batch, tokens, sorted({hook_point.boundary for hook_point in hook_points}))
    found = {}
    for hook_point in hook_points:
        resid = residuals[hook_point.boundary]
        if resid.shape[-1] != setting.d_model:
            what = f"model {side.name} has width {resid.shape[-1]}, the other {setting.d_model}"
            raise UserError("E-WIDTH", what, "compare a model with what it was made of")
        x, _ = seen(resid[where.to(resid.device)].to(setting.device), hook_point.centred)
        found[hook_point] = _Seen(x, outliers(x.norm(dim=-1), side.thresholds[hook_point]))
    return found


class _Piles:
    """Moments by hook point, token kind and half, and positions that wait until there are enough of them for a product."""

    def __init__(self, places: Sequence[tuple[HookPoint, int]]) -> None:
        self.places = places
        self.outliers = dict.fromkeys(places, 0)
        self._moments: dict[Key, Moments] = {}
        self._waiting: dict[Key, list[tuple[Activations, Activations]]] = {}

    def add(
        self,
        tokens: TokenBatch,
        where: Bool[Tensor, "batch pos"],
        xs: Mapping[HookPoint, _Seen],
        ys: Mapping[HookPoint, _Seen],
    ) -> None:
        """Positions of a batch, with what both models have there."""
        kinds, halves = tokens.kinds[where], tokens.documents[where] % 2
        for hook_point, kind in self.places:
            x, y = xs[hook_point], ys[hook_point]
            mine = (kinds == kind).to(x.x.device)
            outlying = x.outlying | y.outlying
            self.outliers[hook_point, kind] += int((outlying & mine).sum())
            for half in (0, 1):
                chosen = mine & ~outlying & (halves == half).to(mine.device)
                if bool(chosen.any()):
                    self._wait((hook_point, kind, half), x.x[chosen], y.x[chosen])

    def halves(self, hook_point: HookPoint, kind: int) -> Halves:
        """The moments of one place, nothing waiting any more."""
        for half in (0, 1):
            self._settle((hook_point, kind, half))
        return Halves(self._moments.get((hook_point, kind, 0)), self._moments.get((hook_point, kind, 1)))

    def _wait(self, key: Key, x: Activations, y: Activations) -> None:
        waiting = self._waiting.setdefault(key, [])
        waiting.append((x, y))
        if sum(len(entry) for entry, _ in waiting) >= TOGETHER:
            self._settle(key)

    def _settle(self, key: Key) -> None:
        waiting = self._waiting.pop(key, [])
        if waiting:
            moments = Moments.of(torch.cat([x for x, _ in waiting]), torch.cat([y for _, y in waiting]))
            self._moments[key] = self._moments[key] + moments if key in self._moments else moments


def _record(
    reference: Side, other: Side, data: TokenData, place: tuple[HookPoint, int], piles: _Piles, setting: Setting
) -> Drift:
    hook_point, kind = place
    halves = piles.halves(hook_point, kind)
    values, note = described(halves, setting.statistics)
    return Drift(
        reference=reference.name,
        model=other.name,
        data=data.name,
        token_kind=TOKEN_KINDS[kind],
        hook_point=str(hook_point),
        positions=sum(half.count for half in (halves.even, halves.odd) if half is not None),
        outliers=piles.outliers[place],
        **values,  # type: ignore[arg-type]
        note=note,
    )
