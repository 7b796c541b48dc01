"""Two cells over the positions that both keep, against a plain loop; and the outliers of a run, by name."""

from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM

from sae_transfer import Run, evaluate
from sae_transfer.metrics.kept import kept_in_both, of_cell, outliers_of
from sae_transfer.specs import TOKEN_KINDS, Cell
from sae_transfer.workflows.prepare import resolved
from sae_transfer.workflows.tokenise import tokenised
from tests.conftest import Pair
from tests.laws.test_plain_loop import Plain

MODELS, SAES = ("base", "chat"), ("base", "chat")


@pytest.fixture(scope="module")
def run(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two models, whose norms differ, two SAEs, and a threshold that sets some positions of each apart."""
    models, saes = {n: str(getattr(pair, n)) for n in MODELS}, {n: str(getattr(pair, f"sae_{n}")) for n in SAES}
    data: dict[str, Any] = {"rows": str(pair.rows), "chats": str(pair.chats)}
    return evaluate(models, saes, **data, outlier_threshold=4.5, out=tmp_path_factory.mktemp("kept") / "run")


@torch.no_grad()
def activations(run: Run, pair: Pair, model: str, data: str, kind: str) -> list[tuple[int, int, int, int, torch.Tensor]]:
    """Document, row, position, token id and unscaled residual of every position under test, one full pass a row."""
    plain = Plain(AutoModelForCausalLM.from_pretrained(getattr(pair, model)), None, 1, 1.0, 1.0)
    found = []
    for row in tokenised(run.manifest.spec, resolved(run.manifest.spec)).data[data].rows:
        resid, _ = plain.run(torch.tensor(row.tokens.astype("int64")))
        under = np.flatnonzero(row.kinds == TOKEN_KINDS.index(kind))
        found += [(int(row.documents[p]), row.index, int(p), int(row.tokens[p]), resid[p]) for p in under]
    return found


@pytest.mark.parametrize(("data", "kind"), [("rows", "all"), ("chats", "rollout")])
def test_outliers_are_named_as_a_plain_loop_finds_them(run: Run, pair: Pair, data: str, kind: str) -> None:
    """Document, token row, position, token and norm of each, once a threshold."""
    outlying = run.outlying()
    for model in MODELS:
        scale = run.manifest.calibration.scale(model, "base")
        own = outliers_of(outlying, Cell(model, "base", data, kind), scale)
        norms = [(*at[:4], float(at[4].norm())) for at in activations(run, pair, model, data, kind)]
        expected = [at for at in norms if at[4] * scale.factor > 4.5]
        names = ("document", "row", "position", "token")
        assert list(zip(*(own[name].tolist() for name in names), strict=True)) == [at[:4] for at in expected]
        assert own["norm"] == pytest.approx([at[4] for at in expected], rel=1e-4)
        assert all(isinstance(text, str) for text in own["text"])
        assert expected


@pytest.mark.parametrize(("data", "kind"), [("rows", "all"), ("chats", "rollout")])
@pytest.mark.parametrize("sae", SAES)
def test_sums_over_what_both_keep_are_those_of_a_plain_loop(run: Run, pair: Pair, data: str, kind: str, sae: str) -> None:
    """Positions that either leaves out are in neither's sums; deviations are from the cell's own mean."""
    cells = [Cell(model, sae, data, kind) for model in MODELS]
    scales = [run.manifest.calibration.scale(model, sae) for model in MODELS]
    each = [activations(run, pair, model, data, kind) for model in MODELS]
    kept = [[float(a[4].norm()) * s.factor <= 4.5 for a in at] for at, s in zip(each, scales, strict=True)]
    assert kept[0] != kept[1]
    module = SAE.load_from_disk(getattr(pair, f"sae_{sae}"))
    for here, there in ((0, 1), (1, 0)):
        x = torch.stack([a[4] for a in each[here]]) * scales[here].factor
        mean = x[torch.tensor(kept[here])].double().mean(0).float()
        both = torch.tensor(kept[0]) & torch.tensor(kept[1])
        with torch.no_grad():
            active = module.encode(x)
            error, deviation = (module.decode(active) - x).pow(2).sum(-1), (x - mean).pow(2).sum(-1)
        columns = {"kept": torch.ones(len(x)), "squared_error": error, "squared_deviation": deviation}
        columns |= {"error_ratio": error / deviation, "active_features": (active > 0).sum(-1).float()}
        owner = np.asarray([a[0] for a in each[here]])
        outliers = outliers_of(run.outlying(), cells[there], scales[there])
        found = kept_in_both(of_cell(run.rows(), cells[here]), of_cell(run.apart(), cells[here]), outliers)
        assert found["document"].tolist() == sorted(set(owner.tolist()))
        for name, values in columns.items():
            expected = [float(values[both & torch.from_numpy(owner == d)].sum()) for d in found["document"]]
            assert found[name] == pytest.approx(expected, rel=1e-4, abs=1e-5)
