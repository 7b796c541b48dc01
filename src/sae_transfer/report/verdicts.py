"""Records -> what they say of each SAE on each model: the verdicts, grouped over data sets and token kinds, worst first."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sae_transfer.errors import printable
from sae_transfer.metrics.cells import Record
from sae_transfer.metrics.verdict import FAILS, NOT_ENOUGH, TRANSFERS, WITH_CARE

WORST_FIRST = (FAILS, NOT_ENOUGH, WITH_CARE, TRANSFERS, None)
STYLES = {FAILS: "bold red", NOT_ENOUGH: "bold blue", WITH_CARE: "bold yellow", TRANSFERS: "bold green", None: "dim"}


@dataclass(frozen=True)
class Answer:
    """One verdict of an SAE on a model: where it holds, and why it does in the place where splicing costs most."""

    sae: str
    model: str
    verdict: str | None
    places: tuple[str, ...]
    worst: str
    why: str
    moved: str

    def reason(self) -> str:
        """Why, and where that is."""
        return self.why if len(self.places) == 1 and self.places[0] == self.worst else f"{self.worst}: {self.why}"


def answers(records: Sequence[Record]) -> list[Answer]:
    """Every SAE on every model that is not its own, in the order of the records."""
    groups: dict[tuple[str, str], dict[str | None, list[Record]]] = {}
    for record in records:
        if record["why"] is not None and (record["verdict"] or record["reference"]):
            groups.setdefault((record["sae"], record["model"]), {}).setdefault(record["verdict"], []).append(record)
    return [
        _answer(sae, model, verdict, groups[sae, model][verdict])
        for sae, model in groups
        for verdict in WORST_FIRST
        if verdict in groups[sae, model]
    ]


def _answer(sae: str, model: str, verdict: str | None, records: Sequence[Record]) -> Answer:
    kinds: dict[str, list[str]] = {}
    for record in records:
        kinds.setdefault(record["data"], []).append(record["token_kind"])
    worst = max(records, key=_cost)
    places = tuple(place(data, *of) for data, of in kinds.items())
    return Answer(sae, model, verdict, places, place_of(worst), worst["why"], moved(worst))


def _cost(record: Record) -> float:
    """What splicing costs more than with the reference, or at all where there is none."""
    named = ("delta_ce_change", "kl_change") if record["kl_change"] is not None else ("delta_ce", "kl")
    return max((record[name] for name in named if record[name] is not None), default=0.0)


def moved(record: Record) -> str:
    """How far the model's residual stream lies from that of the SAE's own model; empty where that is not known."""
    if record["drift_cosine"] is None:
        return ""
    cosine, ratio, cka = (record[f"drift_{name}"] for name in ("cosine", "norm_ratio", "cka"))
    times = f"{ratio:.2f}" if 0.1 <= ratio < 10 else f"{ratio:.3g}"
    return f"residual stream against the SAE's own model's: cosine {cosine:.2f}, norms {times} times, CKA {cka:.2f}"


def place(data: str, *token_kinds: str) -> str:
    """A data set and token kinds in words."""
    named = [kind.replace("_", " ") for kind in token_kinds if kind != "all"]
    return f"{data} ({', '.join(named)})" if named else data


def place_of(record: Record) -> str:
    """Where a record was measured."""
    return place(record["data"], record["token_kind"])


def terminal(records: Sequence[Record], width: int | None, colour: bool) -> str:
    """Verdicts as a table; empty where there are none, as in a run of SAEs on their own models."""
    found = answers(records)
    if not found:
        return ""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for answer in found:
        verdict = f"[{STYLES[answer.verdict]}]{answer.verdict or 'not judged'}[/]"
        table.add_row(verdict, escape(printable(f"SAE {answer.sae} on {answer.model}, {'; '.join(answer.places)}")))
        for line in (answer.reason(), answer.moved):
            if line:
                table.add_row("", escape(printable(line)))
    out = io.StringIO()
    wide = Console(width=10_000).measure(table).maximum
    Console(file=out, width=width or wide, force_terminal=colour, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
