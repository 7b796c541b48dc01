"""The scored positions of largest KL of a unit: who they are, and what both models expect there."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_transfer.data.packing import TokenData
from sae_transfer.engine.watching import Seen
from sae_transfer.models.split import SplitModel
from sae_transfer.rows import WORST_KEPT, Block
from sae_transfer.specs import TOKEN_KINDS

BEFORE, AFTER = 12, 4
"""Tokens of context that are told on either side."""
LIKELIEST = 3
LOSSES = ("kl", "ce_clean", "ce_spliced")


@dataclass(frozen=True)
class _Held:
    """Candidates, by falling KL."""

    losses: Float[Tensor, "held losses"]
    at: Int[Tensor, "held place"]
    """Document, token row, position."""
    clean: Float[Tensor, "held d_model"]
    spliced: Float[Tensor, "held d_model"]

    def best(self) -> "_Held":
        """The WORST_KEPT of largest KL."""
        order = self.losses[:, 0].argsort(descending=True, stable=True)[:WORST_KEPT]
        there = order.to(self.clean.device)
        return _Held(self.losses[order], self.at[order], self.clean[there], self.spliced[there])

    def joined(self, other: "_Held") -> "_Held":
        """Both."""
        names = ("losses", "at", "clean", "spliced")
        return _Held(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True)
class Worst:
    """Watches a unit. Hidden states of WORST_KEPT positions are held for each SAE and token kind, and only those that are still
    among them at the end go through the head again."""

    model: SplitModel
    data: TokenData
    held: dict[tuple[str, int], _Held] = field(default_factory=dict)
    table = "worst"

    def see(self, seen: Seen) -> None:
        """Keep what exceeds the least KL that is held. A KL that is not finite says nothing."""
        positions = seen.positions
        nth = positions.nth[positions.scored]
        kl, kinds = seen.of("kl")[nth], positions.kinds[positions.scored]
        for kind in {kind for kind, _, _ in positions.keys}:
            before = self.held.get((seen.sae, kind))
            least = float(before.losses[-1, 0]) if before and len(before.losses) == WORST_KEPT else -torch.inf
            chosen = ((kinds == kind) & (kl > least) & kl.isfinite()).nonzero().squeeze(-1)
            if not len(chosen):
                continue
            chosen = chosen[kl[chosen].argsort(descending=True, stable=True)[:WORST_KEPT]]
            under, there = nth[chosen], chosen.to(seen.clean.device)
            owners = torch.tensor([positions.keys[group][2] for group in positions.group[under].tolist()])
            found = _Held(
                torch.stack([seen.of(name)[under] for name in LOSSES], dim=1),
                torch.stack([owners, positions.rows[under], positions.places[under]], dim=1),
                seen.clean[there],
                seen.spliced[there],
            )
            self.held[seen.sae, kind] = (before.joined(found) if before else found).best()

    def blocks(self) -> list[Block]:
        """Rows of rows.WORST, but for their text."""
        return [self._block(sae, kind, held) for (sae, kind), held in self.held.items()]

    @torch.inference_mode()
    def _block(self, sae: str, kind: int, held: _Held) -> Block:
        named = {"model": self.model.name, "sae": sae, "data": self.data.name, "token_kind": TOKEN_KINDS[kind]}
        found: Block = {name: [value] * len(held.at) for name, value in named.items()}
        found |= dict(zip(("document", "row", "position"), held.at.T.tolist(), strict=True))
        found |= dict(zip(LOSSES, held.losses.T.tolist(), strict=True))
        for name, hidden in (("clean", held.clean), ("spliced", held.spliced)):
            likeliest = self.model.logits(hidden).softmax(-1).topk(min(LIKELIEST, self.model.vocab_size))
            found |= {name: likeliest.indices.tolist(), f"{name}_p": likeliest.values.tolist()}
        context = [self._context(row, position) for _, row, position in held.at.tolist()]
        return found | {name: [each[name] for each in context] for name in ("before", "token", "next", "after")}

    def _context(self, row: int, position: int) -> dict[str, object]:
        ids = self.data.rows[row].tokens.tolist()
        return {
            "before": ids[max(position - BEFORE, 0) : position],
            "token": ids[position],
            "next": ids[position + 1],
            "after": ids[position + 2 : position + 2 + AFTER],
        }
