"""Where a cell breaks, while it is measured: who watches a unit of work, and the text of the tokens that they name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from sae_transfer.rows import UNIT_TABLES, Block, Calibration
from sae_transfer.workflows.tokenise import Prepared

if TYPE_CHECKING:
    from sae_transfer.data.decoding import Texts
    from sae_transfer.data.packing import TokenData
    from sae_transfer.engine.plan import Unit
    from sae_transfer.engine.watching import Watcher
    from sae_transfer.models.split import SplitModel

Columns = Mapping[str, NDArray[Any]]


def watch(unit: "Unit", model: "SplitModel", data: "TokenData", calibration: Calibration, outlying: Columns) -> list["Watcher"]:
    """What is measured beside a unit's rows, each a table of its own. `outlying`: the run's outliers (rows.OUTLIERS)."""
    from sae_transfer.engine.breakdown import Breakdown
    from sae_transfer.engine.outlying import Apart
    from sae_transfer.engine.worst import Worst

    return [Apart.of(unit.model, unit.data, outlying), Breakdown.of(unit, calibration), Worst(model, data)]


def blocks(watcher: "Watcher", texts: "Texts") -> list[Block]:
    """What a watcher has to tell, with the text of the tokens that it names, null where no tokenizer is at hand."""
    kinds = {column.name: column.dtype for column in UNIT_TABLES[watcher.table] if column.role == "text"}
    return [
        block | {name: [_text(texts, ids, kind) for ids in block[name.removesuffix("_text")]] for name, kind in kinds.items()}
        for block in watcher.blocks()
    ]


def _text(texts: "Texts", ids: int | list[int], kind: str) -> str | list[str | None] | None:
    """The text of one token, of several alternatives, or of several in a row."""
    if isinstance(ids, int):
        return texts.one(ids)
    return [texts.one(token) for token in ids] if kind == "list[string]" else texts.run(ids)


def named(outlying: Columns, prepared: Prepared) -> dict[str, Any]:
    """Outliers with the text of their tokens, null where no tokenizer is at hand."""
    tokens = zip(outlying["data"].tolist(), outlying["token"].astype(int).tolist(), strict=True)
    return {**outlying, "text": [prepared.texts[data].one(token) for data, token in tokens]}
