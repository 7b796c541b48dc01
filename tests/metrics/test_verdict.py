"""The rule that turns changes with intervals into verdicts, and the sentences that come with them."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_transfer import UserError
from sae_transfer.metrics.intervals import Interval
from sae_transfer.metrics.verdict import (
    ALONE,
    CRITERIA,
    FAILS,
    LEAST_DOCUMENTS,
    NOT_ENOUGH,
    TRANSFERS,
    VERDICTS,
    WITH_CARE,
    Circumstances,
    Verdict,
    criteria,
    judge,
)
from tests.conftest import SHARED

AT = Circumstances(documents=200)
FINE = Interval(0.0, -0.01, 0.01)


def verdict(delta_ce: Interval, at: Circumstances = AT, **changes: Interval) -> Verdict:
    """On a change of delta CE, KL unchanged, against some reference."""
    return judge({"delta_ce": delta_ce, "kl": FINE} | changes, "SAE b", at, CRITERIA)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.01, 0.03, TRANSFERS),
        (0.06, 0.29, WITH_CARE),
        (0.31, 0.5, FAILS),
        (0.02, 0.06, WITH_CARE),
        (0.27, 0.31, WITH_CARE),
        (0.29, 0.33, FAILS),
        (0.0, 0.2, NOT_ENOUGH),
        (0.2, 0.4, NOT_ENOUGH),
        (-1.0, 1.0, NOT_ENOUGH),
    ],
)
def test_the_interval_decides(low: float, high: float, expected: str) -> None:
    """Within the limits, between them, beyond; on both sides of one: the worse side if it is narrow, else nothing."""
    assert verdict(Interval((low + high) / 2, low, high)).verdict == expected


@given(st.floats(-0.5, 1), st.floats(0, 0.3), st.floats(0, 1))
def test_noise_alone_never_moves_a_verdict_across_a_limit(truth: float, half: float, shift: float) -> None:
    """Two intervals of one width that both hold the truth never say that it transfers and that it does not."""
    ends = [truth - 2 * half * share for share in (shift, 1 - shift)]
    found = {verdict(Interval(low + half, low, low + 2 * half)).verdict for low in ends}
    assert not {TRANSFERS, FAILS} <= found


def test_the_worst_of_delta_ce_and_kl_decides() -> None:
    """What is certain of one is not undone by what the other leaves open."""
    certain, open_ = Interval(0.15, 0.14, 0.16), Interval(0.07, 0.02, 0.12)
    assert verdict(open_, kl=certain).verdict == WITH_CARE
    assert verdict(Interval(0.25, 0.1, 0.4), kl=certain).verdict == NOT_ENOUGH
    assert verdict(Interval(0.25, 0.1, 0.4), kl=Interval(0.5, 0.4, 0.6)).verdict == FAILS


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("explained_variance", Interval(-0.2, -0.3, -0.11), "explained variance -0.200 [-0.300, -0.110]"),
        ("l0", Interval(math.log(2), math.log(1.6), math.log(2.5)), "L0 2.00 times [1.60, 2.50]"),
        ("l0", Interval(math.log(0.5), math.log(0.4), math.log(0.6)), "L0 0.50 times [0.40, 0.60]"),
        ("ce_recovered", Interval(-0.1, -0.2, -0.06), "CE recovered -0.100 [-0.200, -0.060]"),
    ],
)
def test_the_other_metrics_call_for_care_where_they_are_certain(name: str, change: Interval, said: str) -> None:
    """They never make a verdict worse than that, and not by noise."""
    found = verdict(FINE, AT, **{name: change})
    assert found.verdict == WITH_CARE
    assert said in found.why
    wide = Interval(change.value, change.value - 1, change.value + 1)
    assert verdict(FINE, AT, **{name: wide}).verdict == TRANSFERS


def test_few_documents_are_not_judged_whatever_they_show() -> None:
    """Their intervals don't hold what they promise; the sentence says how many more are needed."""
    found = verdict(Interval(2.0, 1.9, 2.1), replace(AT, documents=5))
    assert found.verdict == NOT_ENOUGH
    assert f"5 documents are too few: measure {LEAST_DOCUMENTS - 5} more at least" in found.why


@pytest.mark.parametrize(
    ("delta_ce", "kl", "said"),
    [
        (Interval(0.1, 0.02, 0.18), FINE, "between 'transfers' and 'transfers with care': measure about 319 more documents"),
        (Interval(0.0, -0.1, 0.1), FINE, "measure about 600 more documents"),
        (Interval(0.5, 0.25, 0.75), Interval(0.31, 0.25, 0.37), "measure about 137 more documents"),
        (Interval(0.3, -3.0, 3.0), FINE, "it is too close to a limit for more documents to settle"),
    ],
)
def test_so_many_more_documents_would_settle_it(delta_ce: Interval, kl: Interval, said: str) -> None:
    """Widths shrink with the root of their number: four times as many halve them. One metric that fails is enough."""
    assert said in verdict(delta_ce, kl=kl).why


def test_a_verdict_names_the_limits_that_are_passed() -> None:
    """And those that may be: a reader sees what it hangs on."""
    assert "ΔCE is beyond 0.3" in verdict(Interval(0.4, 0.35, 0.45)).why
    assert "ΔCE and KL are beyond 0.05" in verdict(Interval(0.1, 0.09, 0.11), kl=Interval(0.1, 0.09, 0.11)).why
    assert "KL may be beyond 0.05" in verdict(FINE, kl=Interval(0.03, 0.01, 0.051)).why
    unsure = verdict(FINE, explained_variance=Interval(-0.3, -0.6, -0.09))
    assert unsure.verdict == TRANSFERS
    assert "explained variance -0.300 [-0.600, -0.090] may be beyond 0.1" in unsure.why


def test_numbers_without_documents_are_not_judged() -> None:
    """The published tables have no interval; a published difference is told as it is, and nothing is concluded."""
    path = SHARED / "golden" / "published.json"
    if not path.exists():
        pytest.skip("needs the golden numbers of ../shared")
    rows = [row for row in json.loads(path.read_text())["alpaca"] if "Base->Chat SAE loss" in row]
    assert rows
    for row in rows:
        more = row["Base->Chat SAE loss"] - row["Chat->Chat SAE loss"]
        found = verdict(Interval(more, math.nan, math.nan), Circumstances(documents=None))
        assert found.verdict is None
        assert f"ΔCE {more:+.3f} nats" in found.why
        assert "without documents there is no verdict" in found.why


def test_a_verdict_without_a_reference_says_so() -> None:
    """Then the metric itself is held against fixed limits."""
    found = judge({"delta_ce": Interval(0.02, 0.01, 0.03), "kl": Interval(0.03, 0.02, 0.04)}, None, AT, ALONE)
    assert found.verdict == TRANSFERS
    assert "no reference to compare with, so against fixed limits, 0.1 and 0.5" in found.why


def test_metrics_that_disagree_are_told() -> None:
    """Better variance and worse loss, as in the published Qwen rows; CE recovered above 1; a reference that is bad itself."""
    worse, better = Interval(0.04, 0.03, 0.05), Interval(0.05, 0.04, 0.06)
    assert "explained variance is better and ΔCE worse" in verdict(worse, explained_variance=better).why
    assert "disagree" not in verdict(worse, explained_variance=Interval(-0.05, -0.06, -0.04)).why
    assert "CE recovered is above 1" in verdict(FINE, replace(AT, ce_recovered=1.01)).why
    assert "the reference itself costs 1.00 nats" in verdict(FINE, replace(AT, reference_delta_ce=Interval(1, 0.9, 1.1))).why


@pytest.mark.parametrize(
    ("change", "at", "advice"),
    [
        (FINE, AT, ": use it"),
        (Interval(0.1, 0.09, 0.11), AT, "use it where that cost does not matter, else fine-tune it on this model"),
        (Interval(1, 0.9, 1.1), AT, "fine-tune it on this model"),
        (Interval(1, 0.9, 1.1), replace(AT, norm_ratio=8.0), "rescale first, its activations are 8 times what it knows"),
        (Interval(1, 0.9, 1.1), replace(AT, outliers_spliced=17), "leave its 17 outliers out (--outlier-threshold auto)"),
        (Interval(9, 8, 10), replace(AT, ce_recovered=0.1), "train a new one"),
    ],
)
def test_a_verdict_says_what_to_do_next(change: Interval, at: Circumstances, advice: str) -> None:
    """The cheapest thing first."""
    assert advice in verdict(change, at).why


def test_users_set_the_limits() -> None:
    """By metric; what is not named stays."""
    strict = criteria(["delta_ce=0.001:0.005", "explained_variance=0.01"])
    assert judge({"delta_ce": FINE, "kl": FINE}, "b", AT, strict).verdict == NOT_ENOUGH
    assert [one.fine for one in strict] == [0.001, 0.05, 0.01, 1.5, 0.05]
    assert criteria([]) == CRITERIA
    none = criteria(["delta_ce=0", "kl=1e-3:0.4"])
    assert [(one.fine, one.broken) for one in none[:2]] == [(0.0, 0.3), (0.001, 0.4)]
    assert judge({"delta_ce": Interval(0.01, -0.01, 0.03)}, "b", AT, none).verdict == NOT_ENOUGH


@pytest.mark.parametrize(
    "text", ["mse=1", "delta_ce", "delta_ce=0.3:0.1", "l0=0.5", "explained_variance=0.1:0.2", "kl=-1", "kl=x"]
)
def test_limits_that_make_no_sense_are_refused(text: str) -> None:
    """In one line that names them."""
    with pytest.raises(UserError, match="--criterion"):
        criteria([text])


def test_there_are_four_verdicts() -> None:
    """Scripts parse these words."""
    assert VERDICTS == ("transfers", "transfers with care", "does not transfer", "not enough data")
