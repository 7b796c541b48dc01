"""Where a cell breaks, while it is measured: who watches a unit of work, and the text of the tokens that they name."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from sae_transfer.workflows.tokenise import Prepared

if TYPE_CHECKING:
    from sae_transfer.engine.plan import Unit
    from sae_transfer.engine.watching import Watcher

Columns = Mapping[str, NDArray[Any]]


def watch(unit: "Unit", outlying: Columns) -> Sequence["Watcher"]:
    """What is measured beside a unit's rows, each a table of its own. `outlying`: the run's outliers (rows.OUTLIERS)."""
    from sae_transfer.engine.outlying import Apart

    return [Apart.of(unit.model, unit.data, outlying)]


def named(outlying: Columns, prepared: Prepared) -> dict[str, Any]:
    """Outliers with the text of their tokens, null where no tokenizer is at hand."""
    from sae_transfer.data import decoding

    tokens = list(zip(outlying["data"].tolist(), outlying["token"].astype(int).tolist(), strict=True))
    texts = {
        data: decoding.each(prepared.tokenizers.get(data), (token for owner, token in tokens if owner == data))
        for data in prepared.data
    }
    return {**outlying, "text": [texts[data][token] for data, token in tokens]}
