"""A name -> a local path, its revision, its hashes and what its config says. Every source of a run passes through here."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sae_transfer.errors import UserError
from sae_transfer.sources import hub, local
from sae_transfer.sources.configs import ModelFacts, SaeFacts, check_adapter, gguf_facts, model_facts
from sae_transfer.sources.formats import FORMATS, sae_facts
from sae_transfer.specs import TEMPLATES, DataRef, ModelRef, SaeRef

HUB_ID = re.compile(r"([\w.\-]+/[\w.\-]+)(?:@([\w.\-/]+))?")
DATA_SUFFIXES = {"text": (".txt", ".jsonl", ".parquet"), "chats": (".jsonl",), "rows": (".jsonl", ".parquet")}


@dataclass(frozen=True)
class Located:
    """Where a source lies on this machine: a folder or file, its Hub commit, and the sha256 of each local file."""

    path: Path
    revision: str | None
    files: dict[str, str]


@dataclass(frozen=True)
class ResolvedModel:
    """A model's weights, its adapter's, and the shape that its config states."""

    ref: ModelRef
    base: Located
    adapter: Located | None
    facts: ModelFacts


@dataclass(frozen=True)
class ResolvedSae:
    """An SAE's folder and what its config states."""

    ref: SaeRef
    at: Located
    facts: SaeFacts


@dataclass(frozen=True)
class ResolvedData:
    """A data set's file."""

    ref: DataRef
    at: Located


def model(ref: ModelRef) -> ResolvedModel:
    """Find a model (folder, .gguf file or Hub id) and its adapter. Raises UserError E-PATH, E-HUB, E-MODEL."""
    base = _folder_or_hub(ref.source, "model", gguf=True)
    if base.path.is_file():
        facts = gguf_facts(base.path)
    else:
        config = base.path / "config.json"
        facts = model_facts(local.read_json(config, "E-MODEL"), str(config))
        _check_weights(base.path, "*.safetensors")
        _check_index(base.path / "model.safetensors.index.json")
        if (base.path / "adapter_config.json").exists():  # transformers would put it on top of the weights
            raise UserError("E-MODEL", f"{base.path} holds an adapter beside a model", "part them, then give MODEL+ADAPTER")
    adapter = None
    if ref.adapter is not None:
        adapter = _folder_or_hub(ref.adapter, "adapter", gguf=False)
        check_adapter(adapter.path)
        _check_weights(adapter.path, "adapter_model.safetensors")
    return ResolvedModel(ref, base, adapter, facts)


def sae(ref: SaeRef, allow_pickle: bool = False) -> ResolvedSae:
    """Find an SAE's folder. Raises UserError E-PATH, E-SAE, E-HOOK; E-PICKLE for a pickled one that is not allowed."""
    path = local.existing(ref.source, "SAE")
    if not path.is_dir():
        raise UserError("E-PATH", f"SAE {ref.source!r} is no folder", "give the folder that holds cfg.json")
    facts = sae_facts(path, allow_pickle)
    files = local.hashes([path / name for name in FORMATS[facts.format].files], path)
    return ResolvedSae(ref, Located(path, None, files), facts)


def data(ref: DataRef) -> ResolvedData:
    """Find a data file. Raises UserError E-PATH, E-DATA."""
    path = local.existing(ref.source, f"{ref.kind} file")
    suffixes = DATA_SUFFIXES[ref.kind]
    if not path.is_file() or path.suffix.lower() not in suffixes:
        raise UserError("E-DATA", f"--{ref.kind} {ref.source!r} is no {' or '.join(suffixes)} file", "give such a file")
    return ResolvedData(ref, Located(path, None, local.hashes([path], path.parent)))


def template(name: str) -> Located | None:
    """Find a chat template that is a file; None for one that has a name. Raises UserError E-TEMPLATE."""
    if name in TEMPLATES:
        return None
    try:
        path = local.existing(name, "chat template")
        return Located(path, None, local.hashes([path], path.parent))
    except (UserError, OSError):
        raise UserError(
            "E-TEMPLATE", f"--chat-template {name[:200]!r} is no file", f"give {', '.join(TEMPLATES)} or a file"
        ) from None


def _folder_or_hub(source: str, what: str, gguf: bool) -> Located:
    hub_id = HUB_ID.fullmatch(source)
    if hub_id and source[0] not in "./~" and not os.path.exists(source):  # noqa: PTH110  # no error for a name too long
        folder, commit = hub.download(hub_id[1], hub_id[2])
        return Located(folder, commit, {})
    path = local.existing(source, what)
    if path.is_file() and not (gguf and path.suffix == ".gguf"):
        raise UserError("E-PATH", f"{what} {source!r} is a file", "give a folder" + (" or a .gguf file" if gguf else ""))
    if path.is_file():
        return Located(path, None, local.hashes([path], path.parent))
    return Located(path, None, local.hashes([file for file in path.iterdir() if _matters(file)], path))


def _matters(file: Path) -> bool:
    return file.is_file() and file.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt")


def _check_index(path: Path) -> None:
    """The files that an index names must lie beside it and be safetensors: others are neither checked nor hashed."""
    if not path.exists():
        return
    named = local.read_json(path, "E-MODEL").get("weight_map")
    for name in sorted({str(name) for name in named.values()}) if isinstance(named, dict) else [""]:
        if not name.endswith(".safetensors") or Path(name).name != name or not (path.parent / name).is_file():
            raise UserError("E-MODEL", f"{path} names {name!r}, no safetensors file beside it", "save it whole, as safetensors")


def _check_weights(folder: Path, pattern: str) -> None:
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError("E-MODEL", f"{folder} holds no {pattern}", "save it as safetensors: pickled weights are not opened")
    for file in found:
        local.tensor_shapes(file, "E-MODEL")
