"""Records with intervals and verdicts: what a cell is compared with, and over which documents and positions."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from sae_transfer.metrics.answers import TABLE_COLUMNS, answered, difference, reference, same_positions
from sae_transfer.metrics.cells import LEGACY, records
from sae_transfer.metrics.definitions import METRICS, Floats
from sae_transfer.metrics.documents import Documents, by_document
from sae_transfer.metrics.kept import Kept
from sae_transfer.rows import COLUMNS, Calibration, Norms, Scale
from sae_transfer.specs import Cell

MODELS = ("base", "chat")
SAES = ("a", "b")
CELLS = [Cell(model, sae, "text", "all") for model in MODELS for sae in SAES]
OWN = {"a": "base", "b": "chat"}
COST = {("base", "a"): 0.1, ("base", "b"): 0.4, ("chat", "a"): 0.2, ("chat", "b"): 0.1}
DOCUMENTS = 40


def norms(model: str, factor: float) -> Norms:
    """Of a model whose mean norm is 4 / factor."""
    return Norms(model, "h", 100, {}, None, 0, "text", factor, factor)


def calibration(threshold: float | None = 9.0) -> Calibration:
    """Both models, chat's activations twice as large, and SAEs that ask for no scaling."""
    scales = tuple(Scale(model, sae, "h", False, 1.0, threshold) for model in MODELS for sae in SAES)
    return Calibration((norms("base", 1.0), norms("chat", 0.5)), scales, ())


def measured(documents: int = DOCUMENTS) -> dict[Cell, Documents]:
    """Two rows of 10 tokens of each document; documents differ in difficulty, alike in all cells."""
    random = np.random.default_rng(0)
    noise = np.repeat(random.lognormal(0, 0.5, size=documents), 2)
    rows: dict[str, list[object]] = {column.name: [] for column in COLUMNS}
    for cell in CELLS:
        for index in range(2 * documents):
            cost = 10 * COST[cell.model, cell.sae] * noise[index]
            row = {"model": cell.model, "sae": cell.sae, "data": "text", "token_kind": "all", "scored": 10, "kept": 10}
            row |= {
                "document": index // 2,
                "row": index,
                "ce_clean": 20.0,
                "ce_spliced": 20 + cost,
                "ce_zero": 90.0,
                "kl": cost,
            }
            row |= {"squared_error": cost, "squared_deviation": 50.0, "error_ratio": 5 * COST[cell.model, cell.sae]}
            for column in COLUMNS:
                rows[column.name].append(row.get(column.name, 30.0))
    return by_document({name: np.asarray(values) for name, values in rows.items()})


def answers(
    documents: int = DOCUMENTS,
    own: Mapping[str, str | None] = OWN,
    batched: Mapping[str, int] | None = None,
    kept: Kept = same_positions,
) -> dict[tuple[str, str], dict[str, object]]:
    """Records by model and SAE."""
    cells = measured(documents)
    found = records(cells, CELLS, calibration(), batched or {})
    done = answered(found, cells, own, calibration(), batched or {}, kept=kept)
    return {(record["model"], record["sae"]): record for record in done}


def test_a_cell_is_compared_with_an_sae_made_for_its_model_or_else_with_its_own_model() -> None:
    """The replacement reference, the origin reference, or none; a cell never with itself."""
    cells = measured(2)
    chat_a = Cell("chat", "a", "text", "all")
    assert reference(chat_a, OWN, cells) is not None
    assert reference(chat_a, OWN, cells).cell == replace(chat_a, sae="b")  # type: ignore[union-attr]
    origin = reference(chat_a, {"a": "base", "b": None}, cells)
    assert (origin.cell, origin.words) == (replace(chat_a, model="base"), "the same SAE on base")  # type: ignore[union-attr]
    assert reference(chat_a, {"a": None, "b": None}, cells) is None
    assert reference(chat_a, {"a": "chat", "b": None}, cells).cell == chat_a  # type: ignore[union-attr]


def test_every_record_has_every_column_and_each_metric_its_interval() -> None:
    """Bounds lie around their metric."""
    for record in answers().values():
        assert tuple(record) == TABLE_COLUMNS
        for name in (*(metric.name for metric in METRICS), LEGACY):
            low, value, high = (record[f"{name}{end}"] for end in ("_low", "", "_high"))
            assert low - 1e-9 <= value <= high + 1e-9  # type: ignore[operator]


def test_verdicts_are_on_differences_over_the_same_documents() -> None:
    """Noise of documents that both cells share is not in them; an SAE on its own model has none."""
    found = answers()
    assert found["base", "a"]["verdict"] is found["chat", "b"]["verdict"] is None
    assert found["base", "a"]["why"] == "base is its own model"
    assert (found["base", "b"]["verdict"], found["chat", "a"]["verdict"]) == ("not enough data", "transfers with care")
    assert found["chat", "a"]["reference"] == "SAE b, made for chat"
    assert "ΔCE +0.1" in str(found["chat", "a"]["why"])
    assert "rescale first, its activations are 2 times what it knows" in str(found["chat", "a"]["why"])


def test_few_documents_are_not_judged() -> None:
    """Whatever they seem to show."""
    assert {record["verdict"] for record in answers(5).values()} == {None, "not enough data"}
    single = answers(1)["chat", "a"]
    assert (single["verdict"], single["kl_low"]) == ("not enough data", None)


def test_without_a_reference_fixed_limits_are_named() -> None:
    """Where no SAE has an own model in the run."""
    found = answers(own={"a": None, "b": None})
    assert {record["reference"] for record in found.values()} == {None}
    assert all("no reference to compare with, so against fixed limits" in str(record["why"]) for record in found.values())


def test_the_legacy_score_has_the_interval_of_its_batches() -> None:
    """The mean over batches of equal weight, each document by its influence: for batches alike it is that of CE recovered."""
    plain, batched = answers(), answers(batched={"text": 2 * DOCUMENTS})
    for key, record in batched.items():
        for end in ("", "_low", "_high"):
            assert record[f"{LEGACY}{end}"] == pytest.approx(plain[key][f"ce_recovered{end}"], abs=1e-9)
    several = answers(batched={"text": 8})["chat", "a"]
    assert several[f"{LEGACY}_low"] < several[LEGACY] < several[f"{LEGACY}_high"]  # type: ignore[operator]


def test_l0_and_variance_are_compared_over_positions_that_both_keep() -> None:
    """Losses are not: outliers are scored in every cell."""

    def kept(cell: Cell, other: Cell) -> Mapping[str, Floats] | None:
        if (cell.model, cell.sae) != ("chat", "a"):
            return None
        sums = measured()[cell].sums
        return {"active_features": 2 * sums["active_features"], "squared_error": sums["squared_error"] + 20.0}

    found = answers(kept=kept)["chat", "a"]
    assert "L0 2.00 times [2.00, 2.00]" in str(found["why"])
    assert "explained variance -0.2" in str(found["why"])
    assert found["l0"] == 3.0


def test_changes_from_the_reference_are_columns_too() -> None:
    """What the verdict is on, for machines; an SAE on its own model has none."""
    found = answers()
    low, value, high = (found["chat", "a"][f"delta_ce_change{end}"] for end in ("_low", "", "_high"))
    expected = found["chat", "a"]["delta_ce"] - found["chat", "b"]["delta_ce"]  # type: ignore[operator]
    assert value == pytest.approx(expected)
    assert low < value < high  # type: ignore[operator]
    assert found["chat", "a"]["l0_change"] == 1.0
    assert found["base", "a"]["delta_ce_change"] is None


def test_any_two_cells_can_be_compared() -> None:
    """Every metric, paired: the change from the reference is one such difference."""
    cells = measured()
    apart = difference(Cell("chat", "a", "text", "all"), Cell("chat", "b", "text", "all"), cells, same_positions)
    record = answers()["chat", "a"]
    assert apart.keys() == {metric.name for metric in METRICS}
    assert [apart["kl"].value, apart["kl"].low] == pytest.approx([record["kl_change"], record["kl_change_low"]])
    assert apart["ce_clean"].value == apart["ce_clean"].low == 0.0


def test_an_unfinished_run_judges_nothing_that_it_cannot_pair() -> None:
    """A model that is only half measured has other documents than the SAE's own model."""
    cells = measured()
    half = {name: values[: DOCUMENTS // 2] for name, values in cells[CELLS[2]].rows.items()}
    keys = {"model": "chat", "sae": "a", "data": "text", "token_kind": "all"}
    some = cells | by_document({**half, **{name: np.asarray([value] * len(half["row"])) for name, value in keys.items()}})
    found = answered(records(some, CELLS, calibration(), {}), some, OWN, calibration(), {})
    record = next(one for one in found if (one["model"], one["sae"]) == ("chat", "a"))
    assert (record["verdict"], record["why"]) == (None, "SAE b, made for chat is not measured on the same documents yet")
    assert record["kl_low"] is not None
