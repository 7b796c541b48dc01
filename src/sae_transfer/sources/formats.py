"""A folder -> which format of SAE it holds and what that says of it: one entry per format. No weight is read."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from sae_transfer.errors import UserError
from sae_transfer.sources.configs import SaeFacts, check_k, check_shapes, first_int, recorded, required_int, saelens_facts
from sae_transfer.sources.local import array_shapes, read_json, tensor_shapes
from sae_transfer.specs import HookPoint

GEMMA_SCOPE = re.compile(r"(?:models--[\w.\-]+--)?gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")
GEMMA_SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z", "transcoders": "hook_mlp_in"}
LEARNT = {
    "AutoEncoder": "standard",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}
"""dictionary_learning's classes, as what SAELens loads them: those that choose by the batch run by their threshold."""
CONTEXT = 1024
"""What SAELens says that SAEs whose files don't tell were trained at."""


@dataclass(frozen=True)
class Format:
    """The files of a format, the last of which no other has; what they say; whether the weights are a pickle; and files
    that are read where they exist."""

    files: tuple[str, ...]
    facts: Callable[[Path, Mapping[str, Any]], SaeFacts]
    pickled: bool = False
    beside: tuple[str, ...] = ()


def sae_facts(folder: Path, allow_pickle: bool = False, overrides: Mapping[str, Any] | None = None) -> SaeFacts:
    """Facts of an SAE's folder, its weights' shapes checked against them. `overrides`: what stands above its config.

    Raises: UserError E-SAE, E-HOOK; E-PICKLE where the weights are a pickle and that is not allowed.
    """
    found = FORMATS[recognised(folder) or "saelens"]  # whose message says what is missing
    if found.pickled and not allow_pickle:
        refuse_pickle(str(folder / found.files[-1]))
    said = dict(overrides or {})
    factor = said.pop("norm_scaling_factor", None)
    facts = found.facts(folder, said)
    if factor is None or not facts.wants_scaling:
        return facts
    return replace(facts, folded=float(factor), normalize_activations="none")


def recognised(folder: Path) -> str | None:
    """The format that a folder holds, or None."""
    return next((name for name, form in FORMATS.items() if (folder / form.files[-1]).exists()), None)


def refuse_pickle(file: str) -> NoReturn:
    """Raises UserError E-PICKLE."""
    what = f"{file} is a pickle, which can run code when it is opened"
    raise UserError("E-PICKLE", what, "give --allow-pickle if you trust who made it: only tensors are then let through")


def files(pickled: bool) -> set[str]:
    """Every file, below an SAE's folder, that a format reads; those of pickled formats only where asked for."""
    return {file for form in FORMATS.values() if pickled or not form.pickled for file in (*form.files, *form.beside)}


def _gemma_scope(folder: Path, overrides: Mapping[str, Any]) -> SaeFacts:
    """Gemma Scope: arrays alone, so that layer and site are read off the path, which must hold the repository's name."""
    repos = {match.groups() for part in folder.parts if (match := GEMMA_SCOPE.fullmatch(part))}
    layers = {int(match[1]) for part in folder.parts if (match := re.fullmatch(r"layer_(\d{1,3})", part))}
    if len(repos) != 1 or len(layers) != 1:
        what = f"{folder} holds a Gemma Scope SAE, and does not say its layer and site"
        raise UserError("E-HOOK", what, "keep the published path: .../gemma-scope-2b-pt-res/layer_N/width_W/average_l0_L")
    ((size, kind, site),), (layer,) = repos, layers
    hook_point = HookPoint.parse(f"blocks.{layer}.{GEMMA_SITES[site]}")
    shapes = array_shapes(folder / "params.npz", "E-SAE")
    d_in, d_sae = _matrix(shapes, "w_enc", str(folder / "params.npz"))
    wanted = {"w_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,), "threshold": (d_sae,)}
    check_shapes(wanted, shapes, str(folder / "params.npz"))
    trained_on = f"gemma-2-{size}" + ("-it" if kind == "it" else "")
    return _facts("gemma_scope", "jumprelu", d_in, d_sae, hook_point, overrides, trained_on=trained_on)


def _llama_scope(folder: Path, overrides: Mapping[str, Any]) -> SaeFacts:
    """Llama Scope: hyperparams.json says everything; the activations are scaled outside, the threshold with them."""
    where = str(folder / "hyperparams.json")
    cfg = read_json(folder / "hyperparams.json", "E-SAE")
    norm = cfg.get("dataset_average_activation_norm")
    threshold, norm = cfg.get("jump_relu_threshold"), norm.get("in") if isinstance(norm, dict) else None
    if not isinstance(threshold, int | float) or not isinstance(norm, int | float) or not norm > 0:
        raise UserError("E-SAE", f"{where} has no jump_relu_threshold or no norm to scale it by", "give a Llama Scope SAE")
    d_in, d_sae = required_int(cfg, "d_model", where), required_int(cfg, "d_sae", where)
    shapes = tensor_shapes(folder / "checkpoints" / "final.safetensors", "E-SAE")
    check_shapes({"encoder.weight": (d_sae, d_in), "decoder.weight": (d_in, d_sae)}, shapes, where)
    hook_point = _same_place(cfg, where)
    return _facts(
        "llama_scope", "jumprelu", d_in, d_sae, hook_point, overrides, "expected_average_only_in", "meta-llama/Llama-3.1-8B"
    )


def _same_place(cfg: Mapping[str, Any], where: str) -> HookPoint:
    hook_in, hook_out = (str(cfg.get(key, cfg.get("hook_point_in", ""))) for key in ("hook_point_in", "hook_point_out"))
    if hook_in != hook_out:
        raise UserError("E-SAE", f"{where}: from {hook_in} to {hook_out}, it is a transcoder", "choose an SAE of one place")
    return HookPoint.parse(hook_in)


def _dictionary_learning(folder: Path, overrides: Mapping[str, Any]) -> SaeFacts:
    """dictionary_learning: config.json of the trainer and its buffer; SAELens takes them all for resid_post."""
    where = str(folder / "config.json")
    cfg = read_json(folder / "config.json", "E-SAE")
    trainer, buffer = ({} if not isinstance(cfg.get(key), dict) else cfg[key] for key in ("trainer", "buffer"))
    kind = str(trainer.get("dict_class"))
    if kind not in LEARNT:
        raise UserError("E-SAE", f"{where}: dict_class {kind!r} is not supported", f"use {', '.join(LEARNT)}")
    d_sae = required_int(trainer, "dict_size", where)
    if LEARNT[kind] == "topk":
        check_k(required_int(trainer, "k", where), d_sae, where)
    place, layer = trainer.get("submodule_name"), trainer.get("layer")
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise UserError("E-HOOK", f"{where}: layer is {layer!r}", "mend the config")
    if (place is not None and place != f"resid_post_layer_{layer}") or buffer.get("io", "out") != "out":
        raise UserError("E-HOOK", f"{where}: it sits at {place!r}, not at the output of layer {layer}", "choose one that does")
    return _facts(
        "dictionary_learning",
        LEARNT[kind],
        required_int(trainer, "activation_dim", where),
        d_sae,
        HookPoint(layer, "resid_post"),
        overrides,
        trained_on=str(trainer["lm_name"]) if "lm_name" in trainer else None,
        context_size=first_int(buffer, ("ctx_len",), where, "E-SAE"),
    )


def _sparsify(folder: Path, overrides: Mapping[str, Any]) -> SaeFacts:
    """sparsify (once `sae`): a folder named after its module, `layers.N`; the config that all share lies beside it."""
    where = str(folder / "cfg.json")
    cfg = read_json(folder / "cfg.json", "E-SAE")
    if odd := [key for key in ("transcode", "skip_connection", "signed") if cfg.get(key)]:
        raise UserError("E-SAE", f"{where}: {odd[0]} is not supported", "choose an autoencoder of one place")
    if cfg.get("activation", "topk") != "topk":
        raise UserError("E-SAE", f"{where}: activation {cfg['activation']!r} is not supported", "choose a TopK SAE")
    if not re.fullmatch(r"layers[._]\d{1,9}", folder.name):
        what = f"{folder} holds a sparsify SAE, whose hook point is its folder's name"
        raise UserError("E-HOOK", what, "keep that name: layers.N, the output of layer N")
    d_in = required_int(cfg, "d_in", where)
    d_sae = first_int(cfg, ("num_latents",), where, "E-SAE") or d_in * required_int(cfg, "expansion_factor", where)
    check_k(required_int(cfg, "k", where), d_sae, where)
    shapes = tensor_shapes(folder / "sae.safetensors", "E-SAE")
    check_shapes({"encoder.weight": (d_sae, d_in), "W_dec": (d_sae, d_in)}, shapes, where)
    beside = folder.parent / "config.json"
    shared = read_json(beside, "E-SAE") if beside.exists() else {}
    return _facts(
        "sparsify",
        "topk",
        d_in,
        d_sae,
        HookPoint.parse(folder.name.replace("_", ".")),
        overrides,
        trained_on=str(shared["model"]) if "model" in shared else None,
        context_size=first_int(shared, ("ctx_len",), str(beside), "E-SAE") or 2048,
        dataset=recorded(shared.get("dataset")),
    )


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str, where: str) -> tuple[int, int]:
    match shapes.get(name):
        case (rows, columns):
            return rows, columns
        case other:
            raise UserError("E-SAE", f"{where}: {name} is {other}, no matrix", "download it again")


def _facts(
    name: str,
    architecture: str,
    d_in: int,
    d_sae: int,
    hook_point: HookPoint,
    overrides: Mapping[str, Any],
    normalize_activations: str = "none",
    trained_on: str | None = None,
    context_size: int | None = CONTEXT,
    dataset: str | None = None,
) -> SaeFacts:
    """What these formats leave unsaid is as SAELens has it: BOS in front of every row."""
    return SaeFacts(
        format=name,
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        hook_point=hook_point,
        normalize_activations=normalize_activations,
        prepend_bos=True,
        context_size=context_size,
        trained_on=trained_on,
        dataset=dataset,
        overrides=overrides,
    )


FORMATS: dict[str, Format] = {
    "gemma_scope": Format(("params.npz",), _gemma_scope),
    "llama_scope": Format(("hyperparams.json", "checkpoints/final.safetensors"), _llama_scope),
    "dictionary_learning": Format(("config.json", "ae.pt"), _dictionary_learning, pickled=True),
    "sparsify": Format(("cfg.json", "sae.safetensors"), _sparsify, beside=("../config.json",)),
    "saelens": Format(("cfg.json", "sae_weights.safetensors"), saelens_facts),
}
