"""config.json, cfg.json, a GGUF header -> the few facts that can stop a run before any weight is read."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from sae_transfer.errors import UserError
from sae_transfer.sources import gguf
from sae_transfer.sources.local import read_json, tensor_shapes
from sae_transfer.specs import HookPoint

D_MODEL = ("hidden_size", "n_embd", "d_model")
N_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
MAX_POSITIONS = ("max_position_embeddings", "n_positions", "seq_length")
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
BY_BATCH = ("batchtopk", "matryoshka_batchtopk")
"""SAELens's training checkpoints that are no SAEs yet: `save_inference_model` turns their threshold into JumpReLU's."""
NORMALIZATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
FLAGS = ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm")
"""What SAELens believes of a config as it stands: "false" is true."""
LARGEST = 2**31
"""Above any size that a config can mean."""
DEPTH = re.compile(r"(?!max_|feature_)(.*_)?(layers?|blocks|depth|stages)")
"""Keys by which one architecture or another says how many layers to build: any of them may be the one that is read."""
LAYER = re.compile(r"(?:^|\.)(\d{1,9})\.")
"""The number of a layer in the name of a tensor: the first that stands in it."""


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config says of its shape; None where the config does not say."""

    model_type: str
    d_model: int | None
    n_layers: int | None
    vocab_size: int | None
    max_positions: int | None


@dataclass(frozen=True)
class SaeFacts:
    """What an SAE's config says it is."""

    format: str
    architecture: str
    d_in: int
    d_sae: int
    hook_point: HookPoint
    normalize_activations: str
    prepend_bos: bool
    context_size: int | None
    trained_on: str | None
    dataset: str | None = None
    """What the SAE was trained on, as its trainer named it: a data set of the Hub, or anything else."""
    folded: float | None = None
    """A norm scaling factor that SAELens's release table says and its weights don't hold yet."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """What SAELens's release table says in place of the config."""

    @property
    def wants_scaling(self) -> bool:
        """Whether activations must be multiplied by a norm scaling factor outside the SAE."""
        return self.normalize_activations == "expected_average_only_in"


def model_facts(config: Mapping[str, Any], where: str) -> ModelFacts:
    """Facts of a Hugging Face config.json. Raises UserError E-MODEL for a model that is no decoder, or needs its own code."""
    refuse_code(config, where, "E-MODEL")
    if config.get("is_encoder_decoder"):
        raise UserError("E-MODEL", f"{where} is an encoder-decoder", "choose a causal language model")
    nested = config.get("text_config")
    text = {**config, **nested} if isinstance(nested, dict) else config
    return ModelFacts(
        model_type=str(text.get("model_type", "unknown")),
        d_model=first_int(text, D_MODEL, where, "E-MODEL"),
        n_layers=first_int(text, N_LAYERS, where, "E-MODEL"),
        vocab_size=first_int(text, ("vocab_size",), where, "E-MODEL"),
        max_positions=first_int(text, MAX_POSITIONS, where, "E-MODEL"),
    )


def gguf_facts(path: Path) -> ModelFacts:
    """Facts of a GGUF file's header, which is checked whole. Raises UserError E-MODEL where it can't be read."""
    header = gguf.header(path)
    kind = header.values.get("general.architecture")
    if not isinstance(kind, str) or not re.fullmatch(r"[\w.-]{1,100}", kind):
        what = f"general.architecture is {kind!r:.100}"
        raise UserError("E-MODEL", f"{path} is truncated or no GGUF file ({what})", "download it again")

    def number(name: str) -> int | None:
        return first_int(header.values, (f"{kind}.{name}",), str(path), "E-MODEL")

    facts = ModelFacts(
        model_type=kind,
        d_model=number("embedding_length"),
        n_layers=number("block_count"),
        vocab_size=number("vocab_size") or header.lengths.get("tokenizer.ggml.tokens"),
        max_positions=number("context_length"),
    )
    check_depth(facts, len(header.shapes), str(path))
    return facts


def check_depth(facts: ModelFacts, n_tensors: int, where: str) -> None:
    """A layer has a tensor at least; a config that claims more would have them all built before one is missed."""
    if facts.n_layers is not None and facts.n_layers > n_tensors:
        _refuse_depth(where, f"{facts.n_layers} layers", f"{n_tensors} tensors")


def check_layers(config: Mapping[str, Any], facts: ModelFacts, tensors: Collection[str], where: str) -> None:
    """The depth that a config claims, under any key at any level, against its weights. Raises UserError E-MODEL."""
    if facts.n_layers is None:
        raise UserError("E-MODEL", f"{where} does not say how many layers the model has", f"give it {N_LAYERS[0]}")
    check_depth(facts, len(tensors), where)
    named = 1 + max((int(match[1]) for name in tensors if (match := LAYER.search(name))), default=facts.n_layers)
    if facts.n_layers > named:
        _refuse_depth(where, f"{facts.n_layers} layers", f"{named}")
    for value in _objects(config):
        for key, number in value.items():
            if DEPTH.fullmatch(str(key)) and isinstance(number, int | float) and not number <= len(tensors):
                _refuse_depth(where, f"{key} {number!r:.50}", f"{len(tensors)} tensors")


def _refuse_depth(where: str, said: str, there: str) -> NoReturn:
    raise UserError("E-MODEL", f"{where} says {said}, the weights have {there}", "mend the config, or save the model whole")


def _objects(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in a config, at any depth."""
    left: list[Any] = [config]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, Mapping):
            left += value.values()
            yield value


def refuse_code(config: Mapping[str, Any], where: str, code: str) -> None:
    """Refuse a config that names code to run, at any depth: Python files of its own, or an attention kernel off the Hub.

    Many such configs are of architectures that transformers has too. They are refused all the same, and told what to do.
    Raises: UserError with `code`.
    """
    for value in _objects(config):
        if value.get("auto_map"):
            what = f"{where} asks for code of its own (auto_map {value['auto_map']!r:.150}), and none is ever run"
            raise UserError(code, what, "where the library itself has this architecture, remove auto_map")
        for key in ("attn_implementation", "_attn_implementation"):
            if "/" in str(value.get(key)):
                what = f"{where} asks for code off the Hub ({key} {value[key]!r:.150}), and none is ever run"
                raise UserError(code, what, f"remove {key}")


def check_ends(config: Mapping[str, Any], where: str) -> None:
    """The end tokens of a config.json or generation_config.json: an id, several or none. Raises UserError E-MODEL."""
    for part in (config, config.get("text_config")):
        named = part.get("eos_token_id") if isinstance(part, Mapping) else None
        if not all(type(token) is int for token in (named if isinstance(named, list) else [] if named is None else [named])):
            raise UserError("E-MODEL", f"{where}: eos_token_id is {named!r:.100}, no token ids", "mend it")


def saelens_facts(folder: Path, overrides: Mapping[str, Any]) -> SaeFacts:
    """Facts of a SAELens folder (3.x to 6.x), its weights' shapes checked against them.

    Raises: UserError E-SAE, E-HOOK.
    """
    config = read_json(folder / "cfg.json", "E-SAE")
    refuse_code(config, str(folder / "cfg.json"), "E-SAE")
    metadata = config.get("metadata")
    cfg = {**config, **(metadata if isinstance(metadata, dict) else {}), **overrides}
    where = str(folder / "cfg.json")
    facts = SaeFacts(
        format="saelens",
        architecture=_architecture(cfg, where),
        d_in=required_int(cfg, "d_in", where),
        d_sae=required_int(cfg, "d_sae", where),
        hook_point=_hook_point(cfg, where),
        normalize_activations=_normalization(cfg, where),
        prepend_bos=_flag(cfg, "prepend_bos", True, where),
        context_size=first_int(cfg, ("context_size",), where, "E-SAE"),
        trained_on=None if cfg.get("model_name") is None else str(cfg["model_name"]),
        dataset=recorded(cfg.get("dataset_path")),
    )
    for part in (config, cfg):  # SAELens itself reads the first
        for key in FLAGS:
            _flag(part, key, False, where)
        kwargs = part.get("activation_fn_kwargs")
        for k in (part.get("k"), kwargs.get("k") if isinstance(kwargs, dict) else None):
            check_k(k, facts.d_sae, where)
    wanted = {"W_enc": (facts.d_in, facts.d_sae), "W_dec": (facts.d_sae, facts.d_in)}
    check_shapes(wanted, tensor_shapes(folder / "sae_weights.safetensors", "E-SAE"), where)
    return facts


def check_k(k: Any, d_sae: int, where: str) -> None:
    """A TopK SAE's k is a number of its features. Raises UserError E-SAE."""
    if k is not None and (type(k) is not int or not 1 <= k <= d_sae):
        raise UserError("E-SAE", f"{where}: k is {k!r:.100}, of {d_sae} features", "mend the config")


def check_shapes(wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """A config's shapes against the weights'. Raises UserError E-SAE."""
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            raise UserError("E-SAE", f"{where} says {name} {shape}, the weights have {shapes.get(name)}", "mend the config")


def check_fits(sae: str, facts: SaeFacts, model: str, shape: ModelFacts) -> None:
    """Width and depth of an SAE against a model's. Raises UserError E-WIDTH, E-LAYER."""
    hook = facts.hook_point
    if shape.d_model is not None and facts.d_in != shape.d_model:
        raise UserError(
            "E-WIDTH",
            f"SAE {sae} takes width {facts.d_in}, {model} has {shape.d_model} at {hook}",
            f"choose an SAE trained at width {shape.d_model}",
        )
    if shape.n_layers is not None and hook.layer >= shape.n_layers:
        raise UserError(
            "E-LAYER",
            f"SAE {sae} sits at {hook}, {model} has layers 0 to {shape.n_layers - 1}",
            "choose an SAE of this model or of one as deep",
        )


def check_alike(first: str, facts: ModelFacts, other: str, others: ModelFacts) -> None:
    """Whether two models have one width. Raises UserError E-WIDTH."""
    if None not in (facts.d_model, others.d_model) and facts.d_model != others.d_model:
        what = f"model {first} has width {facts.d_model}, {other} has {others.d_model}"
        raise UserError("E-WIDTH", what, "compare a model with what it was made of")


def check_layer(layer: int, model: str, facts: ModelFacts) -> None:
    """Whether a model has a place after so many layers. Raises UserError E-LAYER."""
    if facts.n_layers is not None and layer > facts.n_layers:
        what = f"--layer {layer}: model {model} has layers 0 to {facts.n_layers - 1}"
        raise UserError("E-LAYER", what, f"give one of them, or {facts.n_layers} for the end of the last")


def _architecture(cfg: Mapping[str, Any], where: str) -> str:
    name = str(cfg.get("architecture", "standard"))
    activation = str(cfg.get("activation_fn", cfg.get("activation_fn_str", "relu")))
    if name == "standard" and activation == "topk":
        name = "topk"
    if name in BY_BATCH:
        what = f"{where}: a {name} SAE as it is trained chooses its features over a whole batch"
        raise UserError("E-SAE", what, "save it with SAELens's save_inference_model, as a JumpReLU SAE with its threshold")
    if name not in ARCHITECTURES:
        raise UserError("E-SAE", f"{where}: architecture {name!r:.100} is not supported", f"use {', '.join(ARCHITECTURES)}")
    if name == "topk":
        kwargs = cfg.get("activation_fn_kwargs")
        required_int({**(kwargs if isinstance(kwargs, dict) else {}), **cfg}, "k", where)  # sae-lens would take 100
    elif activation != "relu":
        raise UserError(
            "E-SAE", f"{where}: a {name} SAE with activation {activation!r:.100} can't be loaded exactly", "use relu"
        )
    return name


def _normalization(cfg: Mapping[str, Any], where: str) -> str:
    value = cfg.get("normalize_activations")
    if isinstance(value, bool) or value is None:  # SAELens before 3.0 wrote true or false
        value = "expected_average_only_in" if value else "none"
    if value not in NORMALIZATIONS:
        raise UserError("E-SAE", f"{where}: normalize_activations {value!r:.100} is not supported", f"use {NORMALIZATIONS}")
    return str(value)


def _hook_point(cfg: Mapping[str, Any], where: str) -> HookPoint:
    name = str(cfg.get("hook_name", cfg.get("hook_point", "")))
    hook = HookPoint.parse(name)
    layer = cfg.get("hook_layer", cfg.get("hook_point_layer"))
    if layer is not None and layer != hook.layer:
        raise UserError("E-HOOK", f"{where}: hook_name {name:.100} and hook_layer {layer!r:.100} disagree", "mend the config")
    kwargs = cfg.get("model_from_pretrained_kwargs")
    return replace(hook, centred=bool(isinstance(kwargs, dict) and kwargs.get("center_writing_weights")))


def _flag(cfg: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = cfg.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise UserError("E-SAE", f"{where}: {key} is {value!r:.100}, neither true nor false", "mend the config")
    return bool(value)


def recorded(name: Any) -> str | None:
    """A data set's name as a config has it; SAELens writes an empty one for none."""
    return None if name is None or name == "" else str(name)


def required_int(cfg: Mapping[str, Any], key: str, where: str) -> int:
    value = first_int(cfg, (key,), where, "E-SAE")
    if value is None:
        raise UserError("E-SAE", f"{where} has no {key}", "give a SAELens SAE")
    return value


def first_int(cfg: Mapping[str, Any], keys: tuple[str, ...], where: str, code: str) -> int | None:
    for key in keys:
        value = cfg.get(key)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < LARGEST:
                raise UserError(code, f"{where}: {key} is {value!r:.100}", "mend the config")
            return value
    return None
