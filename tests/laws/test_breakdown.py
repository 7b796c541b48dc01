"""Sums by bucket and worst tokens against a plain loop over saved activations and logits; and how the work is laid out."""

from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_transfer import Run, evaluate
from sae_transfer.metrics.breakdown import BY, DOCUMENT, KIND
from sae_transfer.rows import AXES, CELL_KEYS, SUMS
from sae_transfer.runs.directory import read_rows
from sae_transfer.specs import TOKEN_KINDS
from sae_transfer.workflows.prepare import resolved
from sae_transfer.workflows.tokenise import tokenised
from tests.conftest import Pair
from tests.laws.test_plain_loop import Plain

CELLS = [("text", "all"), ("chats", "user_prompt"), ("chats", "rollout"), ("chats", "control_tokens"), ("rows", "all")]
THRESHOLD = 4.5


def measured(pair: Pair, out: Path, **options: Any) -> Run:
    """One model and its SAE on text, chats and rows, some positions set apart."""
    data: dict[str, Any] = {name: str(getattr(pair, name)) for name in ("text", "chats", "rows")}
    return evaluate(
        {"base": str(pair.base)}, {"base": str(pair.sae_base)}, **data, outlier_threshold=THRESHOLD, out=out, **options
    )


@pytest.fixture(scope="module")
def run(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that every test reads."""
    return measured(pair, tmp_path_factory.mktemp("breakdown") / "run")


@pytest.fixture(scope="module")
def walk(run: Run, pair: Pair) -> Callable[[str, str], list[dict[str, Any]]]:
    """What a plain loop finds at each position under test of a data set and token kind, one full pass a row."""
    data = tokenised(run.manifest.spec, resolved(run.manifest.spec)).data
    scale = run.manifest.calibration.scale("base", "base")
    model, sae = AutoModelForCausalLM.from_pretrained(pair.base), SAE.load_from_disk(pair.sae_base)
    plain = Plain(model, sae, 1, scale.factor, THRESHOLD)
    classes = {name: token_classes(data[name].rows, AutoTokenizer.from_pretrained(pair.base)) for name in data}

    @torch.no_grad()
    def positions(name: str, kind: str) -> list[dict[str, Any]]:
        found = []
        for row in data[name].rows:
            tokens, under = torch.tensor(row.tokens.astype("int64")), torch.tensor(row.kinds == TOKEN_KINDS.index(kind))
            resid, clean = plain.run(tokens)
            x = resid * plain.factor
            kept = under & (x.norm(dim=-1) <= plain.threshold)
            y = sae.decode(sae.encode(x))
            _, spliced = plain.run(tokens, lambda r, y=y, k=kept: torch.where(k[:, None], y / plain.factor, r))
            for p in under.nonzero().flatten().tolist():
                scored = bool(row.scored[p])
                found.append(
                    {
                        "document": int(row.documents[p]),
                        "row": row.index,
                        "position": p,
                        "class": classes[name][row.index][p],
                        "norm": float(resid[p].norm()),
                        "outlier": not kept[p],
                        "scored": float(scored),
                        "kl": float((clean[p].exp() * (clean[p] - spliced[p])).sum()) if scored else 0.0,
                        "ce_spliced": -float(spliced[p, tokens[p + 1]]) if scored else 0.0,
                        "squared_error": float((y[p] - x[p]).pow(2).sum()) if kept[p] else 0.0,
                        "likeliest": (clean[p].topk(3).indices.tolist(), spliced[p].topk(3).indices.tolist()),
                        "tokens": row.tokens.tolist(),
                    }
                )
        return found

    return positions


def token_classes(rows: Any, tokenizer: Any) -> list[list[str]]:
    """The definition of docs/definitions.md, token by token."""
    special = {0: "bos", 1: "special", 2: "special"}
    own = [
        [special.get(t) or ("newline" if "\n" in tokenizer.decode([t]) else "") for t in row.tokens.tolist()] for row in rows
    ]
    counts = Counter(
        t for row, names in zip(rows, own, strict=True) for t, n in zip(row.tokens.tolist(), names, strict=True) if not n
    )
    total, begun = sum(counts.values()), set[Any]()
    for row, names in zip(rows, own, strict=True):
        for p, token in enumerate(row.tokens.tolist()):
            before = sum(count for count in counts.values() if count > counts[token]) / total
            kind, previous = int(row.kinds[p]), int(row.kinds[p - 1]) if p else 3
            if p and kind > 0 and kind != previous:
                begun.discard((row.index, kind))
            lead = kind == 2 and previous == 3
            part = int(row.documents[p]) if kind == 0 else (row.index, kind)
            if not names[p] and kind in (0, 1, 2, 4) and part not in begun and not lead:
                names[p] = "first"
                begun.add(part)
            names[p] = names[p] or ("common" if before < 0.5 else "middle" if before < 0.9 else "rare")
    return own


def bucket_of(axis: str, at: dict[str, Any], deciles: tuple[float, ...]) -> str:
    """The bucket of a position, by the words of docs/definitions.md."""
    if axis == "token-class":
        return str(at["class"])
    if axis == "norm":
        return "outlier" if at["outlier"] else str(1 + sum(at["norm"] > edge for edge in deciles))
    p = at["position"]
    start = p if p < 8 else 2 ** (p.bit_length() - 1)
    return str(p) if p < 8 else f"{start}-{2 * start - 1}"


@pytest.mark.parametrize("axis", [axis.name for axis in AXES])
@pytest.mark.parametrize(("data", "kind"), CELLS)
def test_every_bucket_is_what_a_plain_loop_adds_up(run: Run, walk: Any, data: str, kind: str, axis: str) -> None:
    """Counts, KL, its square, CE and squared error of each bucket."""
    (norms,) = run.manifest.calibration.norms
    expected: dict[str, Counter[str]] = {}
    for at in walk(data, kind):
        sums = expected.setdefault(bucket_of(axis, at, norms.deciles), Counter())
        sums.update({name: at[name] for name in ("scored", "kl", "ce_spliced", "squared_error")})
        sums.update({"kept": not at["outlier"], "outliers": at["outlier"], "kl_squared": at["kl"] ** 2})
        sums["squared_error_squared"] += at["squared_error"] ** 2
    table = read_rows(run.path, run.manifest, "breakdown").to_pandas()
    own = table[(table["data"] == data) & (table["token_kind"] == kind) & (table["axis"] == axis)]
    found = own.groupby("bucket").sum(numeric_only=True)
    assert set(found.index) == set(expected)
    for bucket, sums in expected.items():
        assert {name: found.loc[bucket, name] for name in sums} == pytest.approx(dict(sums), rel=1e-3, abs=1e-4)


def test_buckets_of_an_axis_add_up_to_the_cells_rows(run: Run) -> None:
    """Every statistic, on every axis: a breakdown loses and doubles nothing."""
    table = read_rows(run.path, run.manifest, "breakdown").to_pandas()
    rows = read_rows(run.path, run.manifest).to_pandas().groupby(list(CELL_KEYS))[list(SUMS)].sum()
    for axis in AXES:
        found = table[table["axis"] == axis.name].groupby(list(CELL_KEYS))[list(SUMS)].sum()
        assert np.allclose(found, rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", BY)
def test_records_of_an_axis_share_out_their_cell(run: Run, axis: str) -> None:
    """Tokens add up to the table's, shares to 1, and the shares' weighted means to the cell's."""
    whole = {(r["data"], r["token_kind"]): r for r in run.records()}
    found = run.by(axis)
    for data, kind in CELLS:
        own = [r for r in found if r["data"] == data and (axis == KIND or r["token_kind"] == kind)]
        kinds = [kind] if axis != KIND else [k for d, k in CELLS if d == data]
        assert sum(r["tokens"] for r in own) == sum(whole[data, k]["tokens"] for k in kinds)
        assert sum(r["token_share"] for r in own) == pytest.approx(1)
        assert sum(r["kl_share"] for r in own) == pytest.approx(1)
        if axis not in (KIND, DOCUMENT):
            assert sum(r["kl"] * r["token_share"] for r in own if r["kl"]) == pytest.approx(whole[data, kind]["kl"])


@pytest.mark.parametrize(("data", "kind"), CELLS)
def test_the_worst_tokens_are_those_of_a_plain_loop(run: Run, walk: Any, data: str, kind: str) -> None:
    """Twenty by falling KL: where they stand, their context, and what both models held likeliest."""
    scored = sorted((at for at in walk(data, kind) if at["scored"]), key=lambda at: -at["kl"])[:20]
    found = [r for r in run.worst() if (r["data"], r["token_kind"]) == (data, kind)]
    assert [r["kl"] for r in found] == pytest.approx([at["kl"] for at in scored], rel=1e-3, abs=1e-5)
    by_place = {(at["row"], at["position"]): at for at in walk(data, kind)}
    for record in found:
        at, p = by_place[record["row"], record["position"]], record["position"]
        tokens = at["tokens"]
        assert record["before"] + [record["token"], record["next"]] + record["after"] == tokens[max(p - 12, 0) : p + 6]
        assert (record["clean"], record["spliced"]) == at["likeliest"]
        assert record["document"] == at["document"]
        assert record["clean_p"] == sorted(record["clean_p"], reverse=True)


def test_the_layout_of_the_work_changes_no_bucket_and_no_worst_token(run: Run, pair: Pair, tmp_path: Path) -> None:
    """Rows in batches of three instead of eight, in other units."""
    other = measured(pair, tmp_path / "run", batch_size=3)
    for axis in BY:
        for found, expected in zip(other.by(axis), run.by(axis), strict=True):
            numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
            assert {name: found[name] for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-5)
            assert {n: v for n, v in found.items() if n not in numbers} == {
                n: expected[n] for n in expected if n not in numbers
            }
    place = itemgetter("data", "token_kind", "row", "position")
    assert {place(r) for r in other.worst(5)} == {place(r) for r in run.worst(5)}
    assert other.outliers() == [
        r | {name: pytest.approx(r[name]) for name in ("norm", "norm_in_medians")} for r in run.outliers()
    ]


def test_deciles_hold_a_tenth_of_the_positions_that_are_no_outliers(run: Run) -> None:
    """Of all data together, to within a position."""
    (norms,) = run.manifest.calibration.norms
    assert norms.auto_threshold is None
    table = read_rows(run.path, run.manifest, "breakdown").to_pandas()
    assert list(norms.deciles) == sorted(norms.deciles)
    assert norms.quantiles["0.1"] == pytest.approx(norms.deciles[0], rel=0.05)
    assert norms.quantiles["0.5"] == pytest.approx(norms.deciles[4], rel=0.05)
    assert not table.isna().any().any()
