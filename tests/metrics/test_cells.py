"""Rows of sums -> records: grouping, counting, notes."""

import numpy as np
import pytest

from sae_transfer.metrics.cells import MEASURED_COLUMNS, empty, records
from sae_transfer.metrics.documents import Columns, Documents, by_document
from sae_transfer.rows import COLUMNS, Calibration, Scale
from sae_transfer.specs import Cell

A, B = Cell("base", "sae", "text", "all"), Cell("chat", "sae", "text", "all")


def calibration() -> Calibration:
    """Two models with different scales, one without outliers."""
    return Calibration(
        norms=(),
        scales=(
            Scale("base", "sae", "blocks.1.hook_resid_pre", True, 0.5, 80.0),
            Scale("chat", "sae", "blocks.1.hook_resid_pre", True, 0.25, None),
        ),
        means=(),
    )


def columns(*rows: dict[str, object]) -> Columns:
    """Columns of rows that hold 1 where nothing is said."""
    default = {"model": "base", "sae": "sae", "data": "text", "token_kind": "all", "document": 0, "row": 0}
    default |= {"ce_zero": 9.0, "kept": 2.0}
    return {
        column.name: np.asarray(
            [(default | row).get(column.name, 1.0) for row in rows], dtype=None if column.role == "key" else float
        )
        for column in COLUMNS
    }


def measured(*rows: dict[str, object]) -> dict[Cell, Documents]:
    """The same by cell and document."""
    return by_document(columns(*rows))


def test_a_record_adds_the_rows_of_its_cell_alone() -> None:
    """Rows of one cell are added, whatever their order; documents are counted once."""
    rows = columns({"document": 3}, {"model": "chat"}, {"document": 3, "row": 1}, {"document": 4, "active_features": 10.0})
    base, chat = records(by_document(rows), [A, B], calibration(), {})
    assert (base["model"], base["documents"], base["tokens"], base["outliers"], base["l0"]) == ("base", 2, 3, 3, 2.0)
    assert (chat["model"], chat["documents"], chat["tokens"]) == ("chat", 1, 1)
    assert (base["norm_scaling_factor"], base["outlier_threshold"]) == (0.5, 80.0)
    assert (chat["norm_scaling_factor"], chat["outlier_threshold"]) == (0.25, None)
    assert [type(base[name]) for name in ("documents", "tokens", "outliers")] == [int, int, int]


def test_records_have_the_tables_columns_in_its_order_and_that_of_the_cells() -> None:
    """Scripts parse these names; a cell without rows has no record."""
    found = records(measured({}, {"model": "chat"}), [B, A, Cell("chat", "sae", "chats", "rollout")], calibration(), {})
    assert [tuple(record) for record in found] == [MEASURED_COLUMNS, MEASURED_COLUMNS]
    assert [record["model"] for record in found] == ["chat", "base"]


def test_legacy_ce_recovered_is_by_batch_for_batched_data_only() -> None:
    """Text has batches of token rows; elsewhere the legacy number is CE recovered itself."""
    rows = columns({"ce_spliced": 2.0}, {"row": 8, "ce_zero": 2.0, "ce_spliced": 1.5, "scored": 3.0})
    by_batch = records(by_document(rows), [A], calibration(), {"text": 8})[0]
    assert by_batch["ce_recovered_legacy"] == pytest.approx((7 / 8 + 0.5 / 1) / 2)
    assert by_batch["ce_recovered"] == pytest.approx(7.5 / 9)
    pooled = records(by_document(rows), [A], calibration(), {"chats": 8})[0]
    assert pooled["ce_recovered_legacy"] == pooled["ce_recovered"]


def test_a_missing_value_is_null_and_its_reason_stands_in_the_note() -> None:
    """No nan reaches a user, and every null is explained."""
    record = records(measured({"ce_zero": 1.0, "kept": 1.0}), [A], calibration(), {})[0]
    assert record["ce_recovered"] is record["ce_recovered_legacy"] is record["explained_variance_legacy"] is None
    assert record["note"].split("; ") == [
        "explained_variance: fewer than two positions are kept, or they are all alike",
        "explained_variance_legacy: fewer than two positions are kept, or they are all alike",
        "ce_recovered: zero ablation changes the CE by less than 0.0001 nats",
        "ce_recovered_legacy: zero ablation changes the CE by less than 0.0001 nats",
    ]
    assert records(measured({}), [A], calibration(), {})[0]["note"] is None


@pytest.mark.parametrize(
    ("sums", "note"),
    [
        ({"ce_spliced": 0.5}, "ce_recovered is above 1: the splice lowers the CE"),
        ({"ce_spliced": 1.0}, None),
        ({"ce_zero": 0.5, "ce_spliced": 2.0}, "zero ablation lowers the CE, so ce_recovered measures nothing"),
        ({"ce_zero": 0.5, "ce_spliced": 0.75}, "zero ablation lowers the CE, so ce_recovered measures nothing"),
    ],
)
def test_a_ce_recovered_that_misleads_is_said(sums: dict[str, object], note: str | None) -> None:
    """Above 1 a reader of the bare number would take it for perfection; with zero ablation as a help it has no meaning."""
    assert records(measured(sums), [A], calibration(), {})[0]["note"] == note


def test_a_cell_in_which_nothing_was_spliced_says_so_first() -> None:
    """Its costs are 0 for that reason, and not because the SAE is perfect."""
    note = records(measured({"kept": 0.0}), [A], calibration(), {})[0]["note"].split("; ")
    assert note[0] == "nothing was spliced: every position under test is an outlier"
    assert note[1] == "l0: no position under test is kept"


def test_sums_that_overflowed_are_called_so() -> None:
    """A reason that does not fit would send the reader the wrong way."""
    record = records(measured({"squared_error": np.inf}), [A], calibration(), {})[0]
    assert record["mse"] is record["explained_variance"] is None
    reason = "a sum is not finite, for the model overflows: give --dtype float32"
    assert record["note"] == f"mse: {reason}; explained_variance: {reason}"


def test_positions_that_are_all_alike_are_no_overflow() -> None:
    """Their deviation is 0 and their ratios infinite, in a model whose every number is finite."""
    record = records(measured({"squared_deviation": 0.0, "error_ratio": np.inf}), [A], calibration(), {})[0]
    reason = "fewer than two positions are kept, or they are all alike"
    assert record["note"] == f"explained_variance: {reason}; explained_variance_legacy: {reason}"


def test_a_cell_that_cannot_be_measured_says_why() -> None:
    """Its record has every column, null but for its names."""
    record = empty(B, "token 7 is unknown")
    assert tuple(record) == MEASURED_COLUMNS
    assert {key: value for key, value in record.items() if value is not None} == {
        **{"model": "chat", "sae": "sae", "data": "text", "token_kind": "all"},
        "note": "token 7 is unknown",
    }
    scale = calibration().scales[0]
    known = empty(B, "not measured yet", scale)
    assert (known["norm_scaling_factor"], known["outlier_threshold"], known["kl"]) == (0.5, 80.0, None)


def test_an_overflow_is_not_called_by_another_name() -> None:
    """A sum that is not finite gives no number, and the note says so."""
    (record,) = records(measured({"ce_spliced": np.nan}), [A], calibration(), {"text": 8})
    assert (record["ce_spliced"], record["ce_clean"]) == (None, 1.0)
    assert "ce_spliced: a sum is not finite" in record["note"]
    assert "ce_recovered_legacy: a sum is not finite" in record["note"]
