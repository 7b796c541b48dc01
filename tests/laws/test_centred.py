"""SAEs trained on centred weights: TransformerLens, built from the same weights and processed, is the other way to run them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformer_lens.loading_from_pretrained as tl
from sae_lens import SAE
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_transfer import Run, evaluate
from sae_transfer.errors import UserError
from sae_transfer.models.split import SplitModel
from sae_transfer.workflows.prepare import resolved
from sae_transfer.workflows.tokenise import tokenised
from tests.conftest import save_sae, write_jsonl
from tests.laws.test_plain_loop import Plain, by_the_definitions
from tests.models.tiny import FAMILIES, N_LAYERS, VOCAB, WIDTH, tiny

pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*This SAE has non-empty model_from_pretrained_kwargs:UserWarning",
    "ignore:HookedTransformer is deprecated:DeprecationWarning",
)
HOOKS = {"first": "blocks.0.hook_resid_pre", "middle": "blocks.1.hook_resid_post", "last": "blocks.3.hook_resid_post"}
CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


class Processed(Plain):
    """The same, in a HookedTransformer: its residual stream is centred, its norms folded, its unembedding centred."""

    def run(self, tokens: Tensor, change: Any = None) -> tuple[Tensor, Tensor]:
        """Residual at the hook point and log-probabilities, the residual changed if asked."""
        seen: list[Tensor] = []

        def hook(resid: Tensor, hook: Any) -> Tensor:
            seen.append(resid[0])
            return resid if change is None else change(resid[0]).unsqueeze(0)

        logits = self.model.run_with_hooks(tokens.unsqueeze(0), fwd_hooks=[(self.sae.cfg.metadata.hook_name, hook)])
        return seen[0], logits[0].log_softmax(-1)


def processed(lm: Any, folder: Path) -> HookedTransformer:
    """A HookedTransformer of the model's weights, processed as TransformerLens does by default."""
    lm.config.update({"architectures": [type(lm).__name__], "n_ctx": lm.config.n_positions})  # what TransformerLens asks for
    lm.config.save_pretrained(folder)  # TransformerLens takes a config by path where it has no name
    cfg = tl.get_pretrained_model_config(str(folder), hf_cfg=lm.config.to_dict(), fold_ln=True, device="cpu")
    weights = tl.get_pretrained_state_dict(str(folder), cfg, lm)
    cfg.tokenizer_name = None
    model = HookedTransformer(cfg, move_to_device=False)
    model.load_and_process_state_dict(weights, fold_ln=True, center_writing_weights=True, center_unembed=True)
    return model


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, str], HookedTransformer]:
    """A random GPT-2 whose residual has a large mean, SAEs of centred weights at three hook points, and one of others."""
    root, lm = tmp_path_factory.mktemp("gpt2"), tiny("gpt2")
    with torch.no_grad():
        lm.transformer.wpe.weight.add_(0.7)
        lm.transformer.h[1].mlp.c_proj.bias.sub_(1.5)
    lm.save_pretrained(root / "model")
    saes = {n: str(save_sae(root / n, 3, hook, d_in=WIDTH, metadata=CENTRED)) for n, hook in HOOKS.items()}
    saes["plain"] = str(save_sae(root / "plain", 3, HOOKS["middle"], d_in=WIDTH))
    tokens = torch.randint(0, VOCAB, (6, 15), generator=torch.Generator().manual_seed(2)).tolist()
    whole: list[dict[str, Any]] = [{"tokens": row[: 9 + index]} for index, row in enumerate(tokens)]
    masked = [row | {"mask": [0, 1, 1] + [0] * (len(row["tokens"]) - 3)} for row in whole]
    rows = {name: str(write_jsonl(root / f"{name}.jsonl", made)) for name, made in (("whole", whole), ("masked", masked))}
    run = evaluate({"gpt2": str(root / "model")}, saes, rows=rows, batch_size=4, out=root / "run")
    return run, saes, processed(lm, root / "config")


@pytest.mark.parametrize("name", HOOKS)
def test_a_centred_sae_is_measured_as_transformer_lens_does(gpt2: Any, name: str) -> None:
    """Every metric, norm and factor of an SAE that saw centred activations, on whole and on masked rows."""
    run, saes, model = gpt2
    found = tokenised(run.manifest.spec, resolved(run.manifest.spec))
    scale = run.manifest.calibration.scale("gpt2", name)
    plain = Processed(model, SAE.load_from_disk(saes[name]), 0, scale.factor, scale.threshold or float("inf"))
    with torch.no_grad():
        rows = [torch.tensor(row.tokens.astype("int64")) for row in found.data["whole"].rows]
        norms = torch.cat([plain.run(row)[0].norm(dim=-1) for row in rows])
    assert scale.factor == pytest.approx(WIDTH**0.5 / float(norms.mean()), rel=1e-4)
    for record in [record for record in run.records() if record["sae"] == name]:
        expected = by_the_definitions(plain, found.data[record["data"]], "all")
        assert {key: record[key] for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_centred_and_other_saes_at_one_hook_point_have_their_own_calibration(gpt2: Any) -> None:
    """The residual's mean is in the norms that one sees, and not in the other's; run.json tells them apart."""
    run, _, _ = gpt2
    middle, plain = (run.manifest.calibration.scale("gpt2", name) for name in ("middle", "plain"))
    assert middle.hook_point == f"{plain.hook_point} (centred)"
    assert middle.factor > 1.05 * plain.factor


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shift_is_felt_where_a_norm_is_no_layer_norm(family: str) -> None:
    """Found on the real weights: GPT-2 and GPT-NeoX take the mean out themselves, the RMSNorm families don't."""
    split = SplitModel(tiny(family), family)
    assert {split.feels_shift(boundary) for boundary in (0, 2, N_LAYERS)} == {family not in ("gpt2", "gpt_neox")}


def test_a_centred_sae_on_a_model_that_feels_the_mean_is_refused(tmp_path: Path) -> None:
    """By both names, before anything is measured."""
    tiny("llama").save_pretrained(tmp_path / "model")
    sae = str(save_sae(tmp_path / "sae", 3, d_in=WIDTH, metadata=CENTRED))
    rows = str(write_jsonl(tmp_path / "rows.jsonl", [{"tokens": list(range(9))}]))
    with pytest.raises(UserError, match=r"SAE sae was trained on centred weights .*, and tiny can't be centred: .*E-SAE"):
        evaluate({"tiny": str(tmp_path / "model")}, {"sae": sae}, rows=rows, out=tmp_path / "run")


def test_a_perfect_centred_sae_costs_nothing_in_bfloat16_either(tmp_path: Path) -> None:
    """The mean goes back in before the cast, so the very residual that was taken out is spliced in."""
    tiny("gpt2").save_pretrained(tmp_path / "model")
    sae = save_sae(tmp_path / "sae", 3, d_in=WIDTH, d_sae=2 * WIDTH, normalize_activations="none", metadata=CENTRED)
    eye, none = torch.eye(WIDTH), {"b_enc": torch.zeros(2 * WIDTH), "b_dec": torch.zeros(WIDTH)}
    save_file({"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye])} | none, sae / "sae_weights.safetensors")
    rows = str(write_jsonl(tmp_path / "rows.jsonl", [{"tokens": list(range(3 * row, 3 * row + 12))} for row in range(8)]))
    run = evaluate(str(tmp_path / "model"), str(sae), rows=rows, dtype="bfloat16", out=tmp_path / "run")
    (record,) = run.records()
    assert record["outliers"] == 0
    assert abs(record["kl"]) < 1e-6
