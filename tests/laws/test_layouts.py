"""How the work is laid out changes no row: batches, padding, order, cache, company. Float32 rounding is all that may differ."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_transfer.data.packing import TokenData
from sae_transfer.rows import SUMS
from sae_transfer.specs import DataRef, EvaluateSpec, ModelRef, SaeRef
from tests.conftest import Pair
from tests.laws.engine import Sums, measured

ROUNDING = 5e-6
"""Relative; 7e-7 is the largest that was measured over 14 layouts (batch sizes 1 to 30, both padding sides)."""

COUNTS = ("scored", "kept", "outliers")


def spec_of(pair: Pair, **changes: object) -> EvaluateSpec:
    """Both models, both SAEs, chats and rows of different lengths."""
    spec = EvaluateSpec(
        models=(ModelRef("base", str(pair.base)), ModelRef("chat", str(pair.chat))),
        saes=(SaeRef("base", str(pair.sae_base)), SaeRef("chat", str(pair.sae_chat))),
        data=(DataRef("chats", "chats", str(pair.chats)), DataRef("rows", "rows", str(pair.rows))),
        batch_size=8,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def assert_same(found: Sums, expected: Sums) -> None:
    """The same keys, the same counts, and sums that differ by rounding alone."""
    assert found.keys() == expected.keys()
    for key, sums in expected.items():
        for name in SUMS:
            if name in COUNTS:
                assert found[key][name] == sums[name], (key, name)
            else:
                assert found[key][name] == pytest.approx(sums[name], rel=ROUNDING, abs=ROUNDING * max(sums["scored"], 1)), (
                    key,
                    name,
                )


@pytest.fixture(scope="module")
def reference(pair: Pair) -> Sums:
    """The rows of the default layout."""
    return measured(spec_of(pair))[0]


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 30), side=st.sampled_from(["left", "right"]), cache=st.sampled_from([0, 20_000, 10**9]))
def test_batches_padding_and_cache_change_no_row(pair: Pair, reference: Sums, batch_size: int, side: str, cache: int) -> None:
    """Any batch size, either padding side and any size of the activation cache give the same rows."""
    change = lambda data: replace(data, padding=side)  # noqa: E731
    assert_same(measured(spec_of(pair, batch_size=batch_size), change, cache)[0], reference)


def test_order_of_saes_and_models_changes_no_row(pair: Pair, reference: Sums) -> None:
    """SAEs and models may be named in any order."""
    spec = spec_of(pair)
    assert_same(measured(replace(spec, models=spec.models[::-1], saes=spec.saes[::-1]))[0], reference)


def test_order_of_documents_changes_no_row(pair: Pair, reference: Sums) -> None:
    """Documents may come in any order: each keeps its sums."""

    def reversed_rows(data: TokenData) -> TokenData:
        rows = [replace(row, index=index) for index, row in enumerate(reversed(data.rows))]
        return replace(data, rows=tuple(rows))

    found = measured(spec_of(pair), reversed_rows)[0]
    count = {data: 1 + max(key[5] for key in reference if key[2] == data) for data in ("chats", "rows")}
    assert_same({(*key[:5], count[key[2]] - 1 - key[5]): sums for key, sums in found.items()}, reference)


def test_an_sae_gives_the_same_rows_alone_and_in_company(pair: Pair, reference: Sums) -> None:
    """What other SAEs are measured in the same pass, and on which hook points, makes no difference."""
    spec = spec_of(pair)
    alone = measured(replace(spec, saes=spec.saes[:1]))[0]
    assert_same(alone, {key: sums for key, sums in reference.items() if key[1] == "base"})


def test_every_position_under_test_is_counted_once(pair: Pair, reference: Sums) -> None:
    """Rows without a mask: kept and outliers make up every token, and all but a row's last position is scored."""
    for key, sums in reference.items():
        if key[2] == "rows":
            assert sums["kept"] + sums["outliers"] == sums["scored"] + 1
    assert np.isfinite([list(sums.values()) for sums in reference.values()]).all()
