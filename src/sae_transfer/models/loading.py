"""Local path (adapter, GGUF) -> a checked SplitModel, and a tokenizer. The one door to transformers and peft."""

import io
import logging
import math
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerFast

from sae_transfer.errors import UserError
from sae_transfer.models.families import family
from sae_transfer.models.split import SplitModel
from sae_transfer.sources import gguf
from sae_transfer.sources.local import tensor_shapes
from sae_transfer.sources.resolve import ResolvedModel
from sae_transfer.specs import QUANTISED

LOAD_ERRORS = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, ImportError, AttributeError, ArithmeticError),
    *(SafetensorError, StrictDataclassError, AssertionError),
)

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at every product that it casts to float16


def load(model: ResolvedModel, dtype: str, device: str, boundaries: set[int]) -> SplitModel:
    """Weights in `dtype` on `device` (`map`: on all there are), the adapter on top, cut at the boundaries and compared with
    the uncut pass.

    Raises: UserError E-MODEL where weights are missing or can't be read, E-NAN where logits are not finite, E-OPTION where
    the model can't be quantised here.
    """
    name = model.ref.name
    attention = family(model.facts.model_type).attention
    placed = _placement(dtype, device)
    where = _from(model.base.path) | placed | ({"attn_implementation": attention} if attention else {})
    try:
        with redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar that can't be turned off
            loaded, info = AutoModelForCausalLM.from_pretrained(
                **where,
                **_format(dtype),
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except LOAD_ERRORS as error:
        if dtype in QUANTISED:
            what = f"--dtype {dtype}: model {name} can't be quantised on this machine ({_first_line(error)})"
            raise UserError("E-OPTION", what, "give bfloat16") from None
        why = _misshapen(model.base.path) if "mismatched" in str(error) else None
        raise UserError("E-MODEL", f"model {name} can't be loaded ({why or _first_line(error)})", "check its folder") from None
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted([*info["missing_keys"], *(str(entry) for entry in info["mismatched_keys"])])
        raise UserError("E-MODEL", f"model {name} lacks or has misshapen weights: {', '.join(wrong[:3])}", "save it whole")
    if model.adapter is not None:
        loaded = _with_adapter(loaded, model.adapter.path, name)
    try:
        split = SplitModel(loaded if placed else loaded.to(device), name)
        _check_whole(split, info["unexpected_keys"])
        if max(boundaries, default=0) > split.n_layers:
            what = f"an SAE sits behind layer {split.n_layers - 1}, the last of model {name}"
            raise UserError("E-LAYER", what, "choose an SAE of this model or of one as deep")
        split.check(boundaries)
    except LOAD_ERRORS as error:
        raise UserError("E-MODEL", f"model {name} can't be cut ({_first_line(error)})", "choose another model") from None
    return split


def tokenizer(model: ResolvedModel) -> PreTrainedTokenizerFast | None:
    """The model's tokenizer, or None where its folder or file has none. Raises UserError E-TOKENIZER where it is a slow one."""
    path = model.base.path
    if path.is_dir() and not any((path / file).exists() for file in ("tokenizer.json", "tokenizer_config.json")):
        return None
    if path.is_file() and "tokenizer.ggml.model" not in gguf.header(path).values:
        return None
    try:
        found = AutoTokenizer.from_pretrained(**_from(path), trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise UserError("E-TOKENIZER", f"tokenizer of {path} can't be loaded ({_first_line(error)})", "mend it") from None
    if not isinstance(found, PreTrainedTokenizerFast):
        raise UserError("E-TOKENIZER", f"tokenizer of {path} gives no offsets", "save it as a fast tokenizer")
    found.model_max_length = math.inf
    return found


def _misshapen(path: Path) -> str:
    """The first weight whose shape is not what the config makes it: transformers only says that there is one."""
    said = "a weight has another shape than its config says"
    if path.is_file():
        return said
    try:
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, trust_remote_code=False))
    except LOAD_ERRORS:
        return said
    meant = {name: tuple(weight.shape) for name, weight in built.state_dict().items()}
    for file in sorted(path.glob("*.safetensors")):
        for name, shape in tensor_shapes(file, "E-MODEL").items():
            if meant.get(name, shape) != shape:
                return f"{name} has shape {shape}, its config says {meant[name]}"
    return said


def _check_whole(split: SplitModel, unused: set[str]) -> None:
    """Weights of layers that the config does not have would be left out without a word."""
    path = next(path for path, module in split.lm.named_modules() if module is split.layers)
    if layers := sorted(key for key in unused if key.startswith(f"{path}.")):
        what = f"model {split.name} has {len(split.layers)} layers by its config, and weights of more ({layers[0]})"
        raise UserError("E-MODEL", what, "mend config.json")


def _with_adapter(loaded: Any, folder: Path, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what it has renamed
            warnings.simplefilter("error", UserWarning)  # peft only warns of adapter weights that fit nothing
            adapted = PeftModel.from_pretrained(loaded, folder, use_safetensors=True)
            unused = adapted.load_adapter(folder, "default", use_safetensors=True).unexpected_keys  # the first load is silent
    except (*LOAD_ERRORS, UserWarning) as error:
        raise UserError("E-MODEL", f"adapter of {name} can't be loaded ({_first_line(error)})", "check its folder") from None
    if unused:
        raise UserError("E-MODEL", f"adapter of {name} can't be loaded ({unused[0]} fits nothing)", "check its folder")
    return adapted


def _format(dtype: str) -> dict[str, Any]:
    """How transformers is told of a number format: LLM.int8, or NF4. What bitsandbytes leaves alone is bfloat16."""
    if dtype not in QUANTISED:
        return {"dtype": getattr(torch, dtype)}
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    asked = BitsAndBytesConfig(**({"load_in_8bit": True} if dtype == "8bit" else nf4))
    return {"dtype": torch.bfloat16, "quantization_config": asked}


def _placement(dtype: str, device: str) -> dict[str, Any]:
    """accelerate's device map, where the model is not simply moved when it is whole."""
    if device == "map":
        return {"device_map": "auto"}
    return {"device_map": {"": device}} if dtype in QUANTISED else {}


def _from(path: Path) -> dict[str, Any]:
    """How transformers is told of a folder or of a GGUF file."""
    if path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": str(path)}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
