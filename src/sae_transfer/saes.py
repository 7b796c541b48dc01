"""Local path -> a checked SAE, through sae-lens; encode and decode. Activations go in already scaled."""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import (
    get_sparsify_config_from_disk,
    load_safetensors_weights,
    sae_lens_disk_loader,
)
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


Converted = tuple[dict[str, Any], dict[str, Tensor]]
"""SAELens's config and weights."""
Converter = Callable[[Path, SaeFacts, str], Converted]


def _saelens(folder: Path, facts: SaeFacts, device: str) -> Converted:
    """SAELens 3.x to 6.x: cfg.json and sae_weights.safetensors. Only the table's normalisation changes what is computed."""
    said = {key: value for key, value in facts.overrides.items() if key == "normalize_activations"}
    found: Converted = sae_lens_disk_loader(folder, device, {"dtype": "float32"} | said)
    return found


def _converted(name: str, repo: str = "", below: str = "") -> Converter:
    """SAELens's own converter `name` of a Hub repository, on a folder that is here already.

    It reads layer and site off the names of the repository and of the folder `below` it, which the facts have settled.
    """

    def convert(folder: Path, facts: SaeFacts, device: str) -> Converted:
        at = below.format(layer=facts.hook_point.layer)
        loaders = _offline(folder, at)
        shape = {"d_in": facts.d_in, "d_sae": facts.d_sae, "dtype": "float32", "hook_name": str(facts.hook_point)}
        cfg, weights, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[name](repo, at, device, False, shape)
        return cfg, weights

    return convert


def _offline(folder: Path, below: str) -> Any:
    """A second copy of SAELens's module of converters in which a download is a file of `folder`, and a pickle gives
    tensors alone, whatever the environment says. The module itself stays as it is."""
    spec = importlib.util.find_spec("sae_lens.loading.pretrained_sae_loaders")
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)

    def here(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:  # noqa: ARG001  # SAELens names it
        path = PurePosixPath(subfolder) / filename
        return str(folder / (path.relative_to(below) if below else path))

    vars(copy).update(hf_hub_download=here, torch=_TensorsAlone("torch"))
    return copy


class _TensorsAlone(ModuleType):
    """torch, but for `load`."""

    load = staticmethod(partial(torch.load, weights_only=True))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _dictionary_learning(folder: Path, facts: SaeFacts, device: str) -> Converted:
    """ae.pt, a pickle. A threshold below 0 was never set: the features would be those of no training step."""
    cfg, weights = _converted("dictionary_learning_1", below="sae")(folder, facts, "cpu")
    threshold = weights.get("threshold")
    if threshold is not None and bool((threshold < 0).all()):
        raise ValueError("its threshold was never set: without it, its features depend on the batch")
    return cfg | {"device": device}, {key: weight.to(device, torch.float32) for key, weight in weights.items()}


def _sparsify(folder: Path, _: SaeFacts, device: str) -> Converted:
    """sae.safetensors. SAELens's converter (6.54) turns W_dec on its side, and leaves b_dec out of the input where the decoder
    is normalised; sparsify always takes it out, so the weights are named here."""
    cfg = get_sparsify_config_from_disk(folder, device, {"dtype": "float32", "apply_b_dec_to_input": True})
    weights = load_safetensors_weights(folder / "sae.safetensors", device, torch.float32)
    return cfg, {
        "W_enc": weights["encoder.weight"].T.contiguous(),
        "b_enc": weights["encoder.bias"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }


FORMATS: dict[str, Converter] = {
    "gemma_scope": _converted("gemma_2", "google/gemma-scope-2b-pt-res", "layer_{layer}"),
    "llama_scope": _converted("llama_scope", below="sae"),
    "dictionary_learning": _dictionary_learning,
    "sparsify": _sparsify,
    "saelens": _saelens,
}
"""One converter per format that `sources.formats` recognises."""


def _module(sae: ResolvedSae, device: str) -> Any:
    """SAELens's SAE, in float32, any norm scaling factor of its release folded into its weights."""

    def converter(path: Path, device: str, **_: Any) -> Converted:
        return FORMATS[sae.facts.format](path, sae.facts, device)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SAELens warns of its own deprecated keys
        module = SAE.load_from_disk(sae.at.path, device=device, dtype="float32", converter=converter)
    if sae.facts.folded is not None:
        module.fold_activation_norm_scaling_factor(sae.facts.folded)
    return module


def load(sae: ResolvedSae, device: str) -> LoadedSae:
    """The SAE on `device`, what it is compared with what its config says.

    Raises: UserError E-SAE where it is something else or can't be read, E-NAN where weights are not finite.
    """
    name, facts = sae.ref.name, sae.facts
    try:
        loaded = LoadedSae(name, facts, _module(sae, device).eval().requires_grad_(False))
        _check_module(loaded)
        _check_activation(loaded, torch.device(device))
    except (UnpicklingError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError("E-SAE", f"SAE {name} can't be loaded ({line})", "check cfg.json against its weights") from None
    return loaded


def _check_module(sae: LoadedSae) -> None:
    """Weights are finite, and what was loaded is what the config says."""
    module, facts = sae.module, sae.facts
    for key, weight in module.state_dict().items():
        if not bool(weight.isfinite().all()):
            raise UserError("E-NAN", f"SAE {sae.name}: {key} holds values that are not finite", "download or train it again")
    if module.cfg.architecture() != facts.architecture:
        what = f"SAE {sae.name} loads as {module.cfg.architecture()}, not {facts.architecture}"
        raise UserError("E-SAE", what, "mend cfg.json")
    if module.cfg.normalize_activations != facts.normalize_activations:
        raise UserError("E-SAE", f"SAE {sae.name}: normalisation {facts.normalize_activations} was lost", "mend cfg.json")


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
