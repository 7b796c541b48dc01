"""Records of a run -> plain sentences: what a change did to a model, and what fine-tuning an SAE gave."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_transfer.errors import ELSEWHERE, UserError
from sae_transfer.metrics.cells import Record

NOTHING_TO_REPAIR = 0.02
"""Nats between two SAEs on the same model that are not worth a repair."""


@dataclass(frozen=True)
class Place:
    """A data set and a token kind in words: cells are compared within it."""

    data: str
    token_kind: str
    words: str


def record(records: Sequence[Record], model: str, sae: str, place: Place) -> Record:
    """The record of one cell. Raises: UserError E-RUN where the run has none."""
    for one in records:
        if (one["model"], one["sae"], one["data"], one["token_kind"]) == (model, sae, place.data, place.token_kind):
            return one
    what = f"the run has no cell {model} / {sae} / {place.data} / {place.token_kind}"
    raise UserError("E-RUN", what, ELSEWHERE)


def damage(records: Sequence[Record], sae: str, own: str, model: str, place: Place) -> str:
    """What the fine-tuning did to the model itself."""
    here, there = (record(records, name, sae, place)["ce_clean"] for name in (model, own))
    return f"{model} itself predicts {place.words} with {here:.2f} nats a token, {own} with {there:.2f}."


def repair(records: Sequence[Record], sae: str, tuned: str, own: str, model: str, place: Place, goal: tuple[str, str]) -> str:
    """What a fine-tuned SAE regained on a model: `goal` names the (model, SAE) cell that shows what can be had.

    The control is the fine-tuned SAE on the model that it came from: where it costs less there, too, than the SAE that it
    was made of, some of the gain is due to more training, not to the change of the model.
    """
    before, after, best = (
        record(records, *cell, place)["delta_ce"] for cell in ((model, sae), (model, tuned), (goal[0], goal[1]))
    )
    gap = before - best
    if gap < NOTHING_TO_REPAIR:
        return (
            f"There was nothing to repair on {model}: on {place.words} the {sae} SAE has a ΔCE of {before:.3f} nats a token, "
            f"the {goal[1]} SAE on {goal[0]} one of {best:.3f}."
        )
    kept, control = (record(records, own, name, place)["delta_ce"] for name in (sae, tuned))
    told = "so some of the gain is more training" if control < kept else "so the gain is the new model's"
    return (
        f"Fine-tuned on {model}, the {sae} SAE has a ΔCE of {after:.3f} nats a token on {place.words} there, not {before:.3f}: "
        f"{(before - after) / gap:.0%} of the gap is closed. On {own} it has {control:.3f} (before: {kept:.3f}), {told}."
    )
