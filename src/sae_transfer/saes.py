"""Local path -> a checked SAE, through sae-lens; encode and decode. Activations go in already scaled."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from safetensors import SafetensorError
from torch import Tensor

from sae_transfer.errors import UserError
from sae_transfer.sources.configs import SaeFacts
from sae_transfer.sources.resolve import ResolvedSae

FEATURE_BYTES = 2**28
"""Feature activations held at once."""


@dataclass(frozen=True)
class LoadedSae:
    """An SAE in float32, and what its config says it is."""

    name: str
    facts: SaeFacts
    module: Any

    def reconstruct(self, x: Float[Tensor, "pos d_in"]) -> tuple[Float[Tensor, "pos d_in"], Float[Tensor, " pos"]]:
        """Reconstruction y of the scaled activations x, and the number of active features of each position.

        Feature activations are never held for more positions than fit into FEATURE_BYTES.
        """
        parts = [self._reconstruct(part) for part in torch.split(x, max(1, FEATURE_BYTES // (4 * self.facts.d_sae)))]
        return torch.cat([y for y, _ in parts]), torch.cat([active for _, active in parts])

    def _reconstruct(self, x: Float[Tensor, "pos d_in"]) -> tuple[Tensor, Tensor]:
        features = self.module.encode(x)
        return self.module.decode(features), (features > 0).sum(-1).to(x.dtype)


def _saelens(folder: Path, device: str) -> Any:
    """Folders of SAELens 3.x to 6.x: cfg.json and sae_weights.safetensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SAELens warns of its own deprecated keys
        return SAE.load_from_disk(folder, device=device, dtype="float32")


FORMATS: dict[str, Callable[[Path, str], Any]] = {"saelens": _saelens}
"""One loader per format that `sources.configs.sae_facts` recognises."""


def load(sae: ResolvedSae, device: str) -> LoadedSae:
    """The SAE on `device`, what it is compared with what its config says.

    Raises: UserError E-SAE where it is something else or can't be read, E-NAN where weights are not finite.
    """
    name, facts = sae.ref.name, sae.facts
    try:
        module = FORMATS[facts.format](sae.at.path, device)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError("E-SAE", f"SAE {name} can't be loaded ({line})", "check cfg.json against its weights") from None
    for key, weight in module.state_dict().items():
        if not bool(weight.isfinite().all()):
            raise UserError("E-NAN", f"SAE {name}: {key} holds values that are not finite", "download or train it again")
    if module.cfg.architecture() != facts.architecture:
        raise UserError("E-SAE", f"SAE {name} loads as {module.cfg.architecture()}, not {facts.architecture}", "mend cfg.json")
    if module.cfg.normalize_activations != facts.normalize_activations:
        raise UserError("E-SAE", f"SAE {name}: normalisation {facts.normalize_activations} was lost", "mend cfg.json")
    loaded = LoadedSae(name, facts, module.eval().requires_grad_(False))
    _check_activation(loaded, torch.device(device))
    return loaded


def _check_activation(sae: LoadedSae, device: torch.device) -> None:
    """Run a few random vectors: features must be what the activation function can give."""
    x = torch.randn(4, sae.facts.d_in, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        features = sae.module.encode(x)
        y, active = sae.reconstruct(x)
    limit = getattr(sae.module.cfg, "k", sae.facts.d_sae)
    if features.shape != (4, sae.facts.d_sae) or y.shape != x.shape or not bool(y.isfinite().all()):
        raise UserError("E-SAE", f"SAE {sae.name} gives no finite reconstruction of its own width", "check its weights")
    if bool((features < 0).any()) or bool((active > limit).any()):
        raise UserError("E-SAE", f"SAE {sae.name}: its features are not those of {sae.facts.architecture}", "mend cfg.json")
