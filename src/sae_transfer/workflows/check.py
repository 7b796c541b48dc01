"""`check`: a run + bounds -> whether they hold, so that a team revalidates its SAEs at every update of a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sae_transfer.errors import UserError
from sae_transfer.metrics.gate import Bound, Outcome, State, outcomes
from sae_transfer.report.run import Run
from sae_transfer.report.selection import only
from sae_transfer.report.verdicts import place_of
from sae_transfer.specs import several

EXIT_CODES: Mapping[State, int] = {"holds": 0, "broken": 3, "not enough data": 4}
BOUNDS: Mapping[str, Bound] = {
    "max_delta_ce": Bound("delta_ce", "ΔCE", "most", 0.0),
    "max_kl": Bound("kl", "KL", "most", 0.0),
    "min_explained_variance": Bound("explained_variance", "explained variance", "least", 0.0),
}
"""What can be bounded, but for the limit."""

Names = str | Sequence[str] | None


def check(
    run: Run | str | Path,
    *,
    max_delta_ce: float | None = None,
    max_kl: float | None = None,
    min_explained_variance: float | None = None,
    model: Names = None,
    sae: Names = None,
    data: Names = None,
    token_kind: Names = None,
) -> list[Outcome]:
    """Every bound on every cell that has these names, by its 95% interval: `outcome.state` is "holds", "broken" or "not
    enough data", `outcome.record` the cell. Raises: UserError E-OPTION, E-RUN where the run is unfinished."""
    run = run if isinstance(run, Run) else Run(run)
    limits = {"max_delta_ce": max_delta_ce, "max_kl": max_kl, "min_explained_variance": min_explained_variance}
    bounds = [replace(BOUNDS[name], limit=limit) for name, limit in limits.items() if limit is not None]
    for bound in bounds:
        if not math.isfinite(bound.limit):
            raise UserError("E-OPTION", f"a bound of {bound.limit} on {bound.metric} checks nothing", "give a number")
    if not bounds:
        raise UserError("E-OPTION", "nothing to check", "give --max-delta-ce, --max-kl or --min-explained-variance")
    if run.manifest.status != "done":
        raise UserError("E-RUN", f"{run.path} is unfinished", "repeat the command that began it")
    wanted = {"model": several(model), "sae": several(sae), "data": several(data), "token_kind": several(token_kind)}
    keep = only(run.cells, wanted)
    records = [record for record in run.records() if keep(record)]
    return outcomes(records, bounds)


def line(one: Outcome) -> str:
    """An outcome in words."""
    return f"{one.state}: SAE {one.record['sae']} on {one.record['model']}, {place_of(one.record)}: {one.said}"


def exit_code(found: Sequence[Outcome]) -> int:
    """3 where a bound is broken, else 4 where one is not settled, else 0."""
    states = {one.state for one in found}
    worst: State = "broken" if "broken" in states else "not enough data" if "not enough data" in states else "holds"
    return EXIT_CODES[worst]
