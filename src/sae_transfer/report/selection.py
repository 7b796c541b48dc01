"""Names of models, SAEs, data sets and token kinds -> which records are asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

from sae_transfer.errors import UserError
from sae_transfer.metrics.cells import Record
from sae_transfer.specs import Cell

Wanted = Mapping[str, Sequence[str] | None]
"""Names by column; None is all."""


def only(cells: Iterable[Cell], wanted: Wanted) -> Callable[[Record], bool]:
    """A filter of records. Raises UserError E-OPTION for a name that no cell has."""
    there = list(cells)
    for key, names in wanted.items():
        known = list(dict.fromkeys(getattr(cell, key) for cell in there))
        for name in names or ():
            if name not in known:
                option = f"--{key.replace('_', '-')}"
                raise UserError("E-OPTION", f"{option} {name!r} is not in this run", f"choose from {', '.join(known)}")

    def keep(record: Record) -> bool:
        return all(not names or _among(record, key, names) for key, names in wanted.items())

    if not any(keep(asdict(cell)) for cell in there):
        raise UserError("E-OPTION", "no cell of this run has all of these names", "give fewer of them")
    return keep


def _among(record: Record, key: str, names: Sequence[str]) -> bool:
    """Whether a record is of one of the names; an outlier is of every SAE that leaves it out, a part by kind of its bucket."""
    if key == "sae" and "saes" in record:
        return bool(set(record["saes"]) & set(names))
    return (record["bucket"] if key == "token_kind" and record[key] is None else record[key]) in names
