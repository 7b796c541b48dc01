"""The engine against a plain loop: one row at a time, full forward passes with hooks, the definitions written out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from sae_lens import SAE
from torch import Tensor
from transformers import AutoModelForCausalLM

from sae_transfer import Run, evaluate
from sae_transfer.data.packing import TokenData
from sae_transfer.models.families import FAMILIES as FAMILY
from sae_transfer.models.families import Family
from sae_transfer.specs import TOKEN_KINDS
from sae_transfer.workflows import demo
from sae_transfer.workflows.prepare import resolved
from sae_transfer.workflows.tokenise import tokenised
from tests.conftest import Pair, save_model, save_sae, write_jsonl
from tests.models.tiny import FAMILIES, WIDTH, tiny
from tests.models.tiny import VOCAB as WORDS
from tests.saes.making import TRAINED, train


@dataclass
class Plain:
    """A model, and an SAE at a boundary; all that the definitions need."""

    model: Any
    sae: Any
    boundary: int
    factor: float
    threshold: float

    def run(self, tokens: Tensor, change: Any = None) -> tuple[Tensor, Tensor]:
        """Residual at the boundary [pos, d_model] and log-probabilities [pos, vocab], the residual changed if asked."""
        seen: list[Tensor] = []

        def hook(_: Any, args: Any, output: Any = None) -> Any:
            resid = args[0] if output is None else output
            seen.append(resid[0])
            new = resid if change is None else change(resid[0]).unsqueeze(0)
            return (new, *args[1:]) if output is None else new

        layers = next(module for module in self.model.modules() if isinstance(module, torch.nn.ModuleList))
        last = self.boundary == len(layers)
        handle = layers[-1].register_forward_hook(hook) if last else layers[self.boundary].register_forward_pre_hook(hook)
        logits = self.model(tokens.unsqueeze(0), use_cache=False).logits[0]
        handle.remove()
        return seen[0], logits.log_softmax(-1)


@torch.no_grad()
def by_the_definitions(plain: Plain, data: TokenData, kind: str) -> dict[str, float]:
    """Every metric of one cell."""
    ce: dict[str, list[Tensor]] = {"clean": [], "spliced": [], "zero": []}
    kl, x, y, active = [], [], [], []
    for row in data.rows:
        tokens = torch.tensor(row.tokens.astype("int64"))
        under = torch.tensor(row.kinds == TOKEN_KINDS.index(kind))
        scored = under & torch.tensor(row.scored)
        resid, clean = plain.run(tokens)
        scaled = resid * plain.factor
        kept = under & (scaled.norm(dim=-1) <= plain.threshold)
        features = plain.sae.encode(scaled)
        recon = plain.sae.decode(features)
        _, spliced = plain.run(tokens, lambda r, y=recon, k=kept: torch.where(k[:, None], y / plain.factor, r))
        _, zero = plain.run(tokens, lambda r, u=under: torch.where(u[:, None], 0.0, r))
        for name, log_probs in (("clean", clean), ("spliced", spliced), ("zero", zero)):
            ce[name].append(-log_probs[:-1].gather(-1, tokens[1:, None])[:, 0][scored[:-1]])
        kl.append((clean.exp() * (clean - spliced)).sum(-1)[scored])
        x.append(scaled[kept])
        y.append(recon[kept])
        active.append((features[kept] > 0).sum(-1).float())
    kept_x, error = torch.cat(x), (torch.cat(x) - torch.cat(y)).pow(2).sum(-1)
    deviation = (kept_x - kept_x.double().mean(0).float()).pow(2).sum(-1)
    mean = {name: float(torch.cat(values).double().mean()) for name, values in ce.items()}
    return {
        "l0": float(torch.cat(active).mean()),
        "mse": float(error.mean()),
        "explained_variance": float(1 - error.sum() / deviation.sum()),
        "explained_variance_legacy": float((1 - error / deviation).mean()),
        "ce_clean": mean["clean"],
        "ce_spliced": mean["spliced"],
        "ce_zero": mean["zero"],
        "kl": float(torch.cat(kl).double().mean()),
        "ce_recovered": (mean["zero"] - mean["spliced"]) / (mean["zero"] - mean["clean"]),
    }


HOOKS = {"first": "blocks.0.hook_resid_pre", "middle": "blocks.1.hook_resid_post", "last": "blocks.2.hook_resid_post"}


@pytest.mark.parametrize("threshold", ["off", 4.5])
def test_every_cell_is_what_the_definitions_give(pair: Pair, tmp_path: Path, threshold: str | float) -> None:
    """SAEs at the first, a middle and the last boundary, in one pass; rows and every kind of chat tokens."""
    saes = {name: str(save_sae(tmp_path / name, 3, hook)) for name, hook in HOOKS.items()}
    data = {"rows": str(pair.rows), "chats": str(pair.chats)}
    run = evaluate({"base": str(pair.base)}, saes, **data, outlier_threshold=threshold, out=tmp_path / "run")  # type: ignore[arg-type]
    assert run.records()
    found = tokenised(run.manifest.spec, resolved(run.manifest.spec))
    model = AutoModelForCausalLM.from_pretrained(pair.base)
    for record in run.records():
        scale = run.manifest.calibration.scale("base", record["sae"])
        boundary = {"first": 0, "middle": 2, "last": 3}[record["sae"]]
        sae = SAE.load_from_disk(saes[record["sae"]])
        plain = Plain(model, sae, boundary, scale.factor, float("inf") if threshold == "off" else float(threshold))
        expected = by_the_definitions(plain, found.data[record["data"]], record["token_kind"])
        assert {name: record[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=2e-5)
        assert (record["outliers"] > 0) is (threshold != "off") or record["token_kind"] != "all"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("model", ["base", "drifted", "lora"])
def test_a_trained_pair_is_measured_by_the_definitions(tmp_path: Path, model: str) -> None:
    """SAEs that explain much and little, on models whose norms differ by orders of magnitude, one of them with an adapter."""
    at, files = demo.pair(), {}
    for name in ("text", "chats"):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text(
            "\n".join((at / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:12]), encoding="utf-8"
        )
    source, sae = demo.models(at)[model], at / "saes" / "base"
    run = evaluate({model: source}, {"sae": str(sae)}, text=str(files["text"]), chats=str(files["chats"]), out=tmp_path / "run")
    found = tokenised(run.manifest.spec, resolved(run.manifest.spec))
    scale = run.manifest.calibration.scale(model, "sae")
    folder, _, adapter = source.partition("+")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        loaded = PeftModel.from_pretrained(loaded, adapter)
    plain = Plain(loaded, SAE.load_from_disk(sae), 2, scale.factor, scale.threshold or float("inf"))
    for record in run.records():
        expected = by_the_definitions(plain, found.data[record["data"]], record["token_kind"])
        assert {name: record[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_is_measured_by_the_definitions(tmp_path: Path, family: str) -> None:
    """Rows longer than the sliding window, whole and masked, of every family of the property test."""
    tiny(family).save_pretrained(tmp_path / "model")
    sae = str(save_sae(tmp_path / "sae", 3, "blocks.2.hook_resid_pre", d_in=WIDTH))
    tokens = torch.randint(0, WORDS, (6, 15), generator=torch.Generator().manual_seed(2)).tolist()
    whole: list[dict[str, Any]] = [{"tokens": row[: 9 + index]} for index, row in enumerate(tokens)]
    masked = [row | {"mask": [0, 1, 1] + [0] * (len(row["tokens"]) - 3)} for row in whole]
    files = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("whole", whole), ("masked", masked))}
    run = evaluate({"tiny": str(tmp_path / "model")}, {"sae": sae}, rows=files, batch_size=4, out=tmp_path / "run")
    found = tokenised(run.manifest.spec, resolved(run.manifest.spec))
    scale = run.manifest.calibration.scale("tiny", "sae")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation=FAMILY.get(family, Family()).attention)
    plain = Plain(model, SAE.load_from_disk(sae), 2, scale.factor, scale.threshold or float("inf"))
    for record in run.records():
        expected = by_the_definitions(plain, found.data[record["data"]], "all")
        assert {name: record[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=2e-5)


@pytest.fixture(scope="module")
def every_sae(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Path]]:
    """One run of an SAE of every architecture that SAELens trains, each as it is saved for inference."""
    root = tmp_path_factory.mktemp("every_sae")
    for name in TRAINED:
        train(name).save_inference_model(root / name)
    saes = {name: str(root / name) for name in TRAINED}
    return evaluate({"base": str(pair.base)}, saes, rows=str(pair.rows), out=root / "run"), {n: root / n for n in TRAINED}


@pytest.mark.parametrize("architecture", TRAINED)
def test_every_kind_of_sae_is_measured_by_the_definitions(
    pair: Pair, every_sae: tuple[Run, dict[str, Path]], architecture: str
) -> None:
    """Full passes with SAELens's own encode and decode, row by row, where the engine has batches of rows."""
    run, folders = every_sae
    (record,) = [record for record in run.records() if record["sae"] == architecture]
    found = tokenised(run.manifest.spec, resolved(run.manifest.spec))
    scale = run.manifest.calibration.scale("base", architecture)
    sae, model = SAE.load_from_disk(folders[architecture]), AutoModelForCausalLM.from_pretrained(pair.base)
    plain = Plain(model, sae, 1, scale.factor, scale.threshold or float("inf"))
    expected = by_the_definitions(plain, found.data["rows"], "all")
    assert {name: record[name] for name in expected} == pytest.approx(expected, rel=2e-4, abs=2e-5)


@pytest.fixture(scope="module")
def factors(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One run for each kind of norm scaling factor, of two models with different norms and an SAE that asks for none."""
    root = tmp_path_factory.mktemp("factors")
    models = {"base": str(pair.base), "chat": str(pair.chat)}
    saes = {"base": str(pair.sae_base), "folded@chat": str(save_sae(root / "folded", 5, normalize_activations="none"))}
    return {
        factor: evaluate(models, saes, rows=str(pair.rows), norm_scaling_factor=factor, out=root / factor)
        for factor in ("auto", "own", "0.5")
    }


def test_factors_are_each_models_own_or_the_saes_own_models(factors: dict[str, Run]) -> None:
    """Several models in one run have different calibrations; `own` gives every model the SAE's own model's."""
    table = {kind: {(r["model"], r["sae"]): r["norm_scaling_factor"] for r in run.records()} for kind, run in factors.items()}
    auto, own, number = table["auto"], table["own"], table["0.5"]
    assert auto["base", "base"] != auto["chat", "base"]
    assert own["base", "base"] == own["chat", "base"] == auto["base", "base"]
    assert number["base", "base"] == number["chat", "base"] == 0.5
    assert {found[model, "folded"] for found in table.values() for model in ("base", "chat")} == {1.0}


def test_footnotes_say_which_saes_ask_for_scaling(factors: dict[str, Run]) -> None:
    """And that one which does not gives own and other models the same scale."""
    notes = factors["auto"].footnotes()
    assert any(note.startswith("Norm scaling is asked for by base: each model's own") for note in notes)
    assert any(note.startswith("Norm scaling is not asked for by folded") and "same scale" in note for note in notes)
    assert any("the factor of the SAE's own model" in note for note in factors["own"].footnotes())
    assert any("the number given" in note for note in factors["0.5"].footnotes())


def test_own_scaling_needs_an_own_model_only_where_scaling_is_asked_for(pair: Pair, tmp_path: Path) -> None:
    """An SAE whose factor was folded in takes part without one."""
    folded = save_sae(tmp_path / "folded", 5, normalize_activations="none")
    run = evaluate({"base": str(pair.base)}, str(folded), rows=str(pair.rows), norm_scaling_factor="own", out=tmp_path / "run")
    assert [record["norm_scaling_factor"] for record in run.records()] == [1.0]


def test_factors_from_different_data_are_said(pair: Pair, tmp_path: Path) -> None:
    """A model that lacks a token of the first text is scaled by the next data set that it can read."""
    small = save_model(tmp_path / "small", 7, vocab_size=40)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": list(range(9))}])
    models, data = {"base": str(pair.base), "small": str(small)}, {"text": str(pair.text), "rows": str(rows)}
    run = evaluate(models, str(pair.sae_base), **data, out=tmp_path / "run")  # type: ignore[arg-type]
    assert any(note.endswith("base by text, small by rows.") for note in run.footnotes())


def test_a_model_that_lacks_a_token_has_empty_cells_with_the_reason(pair: Pair, tmp_path: Path) -> None:
    """The other model's cells are measured all the same."""
    small = save_model(tmp_path / "small", 7, vocab_size=40)
    models = {"base": str(pair.base), "small": str(small)}
    records = evaluate(models, str(pair.sae_base), chats=str(pair.chats), out=tmp_path / "run").records()
    assert {r["model"] for r in records if r["kl"] is None} == {"small"}
    assert {r["model"] for r in records if r["kl"] is not None} == {"base"}
    assert all("outside the vocabulary of small, which has 40" in r["note"] for r in records if r["model"] == "small")
