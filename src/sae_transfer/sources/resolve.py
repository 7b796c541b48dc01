"""A name -> a local path, its revision, its hashes and what its config says. Every source of a run passes through here."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_transfer.errors import UserError
from sae_transfer.sources import hub, local, saelens, wandb
from sae_transfer.sources.adapters import check_adapter, check_rank
from sae_transfer.sources.configs import (
    ModelFacts,
    SaeFacts,
    check_ends,
    check_layers,
    gguf_facts,
    model_facts,
)
from sae_transfer.sources.formats import FORMATS, files, recognised, refuse_pickle, sae_facts
from sae_transfer.sources.tokenizer import check_tokenizer
from sae_transfer.specs import TEMPLATES, DataRef, HubData, ModelRef, SaeRef

HUB_ID = re.compile(r"([\w.\-]+/[\w.\-]+)(?:@([\w.\-/]+))?")
HUB_FOLDER = re.compile(r"([\w.\-]+/[\w.\-]+)(?:/([^@]+?)/?)?(?:@([\w.\-/]+))?")
MOST_INDEX = 2**26
"""Bytes of a weight index: those of models with 140,000 tensors have a quarter of it."""
DATA_SUFFIXES = {
    "text": (".txt", ".jsonl", ".parquet"),
    "chats": (".jsonl", ".pkl"),
    "rows": (".jsonl", ".parquet"),
    "instructions": (".jsonl", ".parquet", ".pkl"),
}


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
    """A data set: its file, or what it is on the Hub at which commit."""

    ref: DataRef
    at: Located
    hub: HubData | None = None

    @property
    def source(self) -> Path | HubData:
        """What its records are read from."""
        return self.hub or self.at.path


def model(ref: ModelRef) -> ResolvedModel:
    """Find a model (folder, .gguf file or Hub id) and its adapter. Raises UserError E-PATH, E-HUB, E-MODEL."""
    base = _folder_or_hub(ref.source, "model", gguf=True)
    if base.path.is_file():
        facts = gguf_facts(base.path)
    else:
        config = base.path / "config.json"
        said = local.read_json(config, "E-MODEL")
        facts = model_facts(said, str(config))
        check_layers(said, facts, _checked_weights(base.path, "*.safetensors"), str(config))
        check_ends(said, str(config))
        generation = base.path / "generation_config.json"
        if generation.exists():
            check_ends(local.read_json(generation, "E-MODEL"), str(generation))
        check_tokenizer(base.path)
        _check_index(base.path / "model.safetensors.index.json")
        if (base.path / "adapter_config.json").exists():  # transformers would put it on top of the weights
            raise UserError("E-MODEL", f"{base.path} holds an adapter beside a model", "part them, then give MODEL+ADAPTER")
    adapter = None
    if ref.adapter is not None:
        adapter = _folder_or_hub(ref.adapter, "adapter", gguf=False)
        check_adapter(adapter.path)
        check_rank(adapter.path, _checked_weights(adapter.path, "adapter_model.safetensors"))
    return ResolvedModel(ref, base, adapter, facts)


def sae(ref: SaeRef, allow_pickle: bool = False) -> ResolvedSae:
    """Find an SAE: a folder, `release:sae_id`, `hf:org/repo[/path][@revision]` or `wandb:entity/project/artifact:version`.

    Raises: UserError E-PATH, E-HUB, E-WANDB, E-SAE, E-HOOK; E-PICKLE for a pickled one that is not allowed.
    """
    kind, named, rest = ref.source.partition(":")
    overrides: dict[str, Any] = {}
    if not named or kind[:1] in "./~" or os.path.exists(ref.source):  # noqa: PTH110  # no error for a name too long
        at = _sae_folder(ref.source)
    elif kind == "wandb":
        at = Located(*wandb.download(rest, files(pickled=True)), {})
    elif kind == "hf":
        at = _sae_on_hub(rest, allow_pickle)
    else:
        found = saelens.release(ref.source)
        at, overrides = _sae_on_hub(f"{found.repo}/{found.folder}", allow_pickle), found.overrides
    facts = sae_facts(at.path, allow_pickle, overrides)
    if at.revision is None:
        at = replace(at, files=local.hashes([at.path / name for name in FORMATS[facts.format].files], at.path))
    return ResolvedSae(ref, at, facts)


def _sae_folder(source: str) -> Located:
    path = local.existing(source, "SAE")
    if not path.is_dir():
        raise UserError("E-PATH", f"SAE {source!r} is no folder", "give the folder that holds cfg.json")
    return Located(path, None, {})


def _sae_on_hub(source: str, allow_pickle: bool) -> Located:
    """Only what a format reads is downloaded; a pickle not even that, unless it is allowed."""
    match = HUB_FOLDER.fullmatch(source)
    if match is None or ".." in source.split("/"):
        raise UserError("E-HUB", f"{source!r} is no place on the Hub", "give hf:org/name[/path][@revision]")
    repo, folder, revision = match[1], match[2] or "", match[3]
    path, commit = hub.download_folder(repo, folder, files(allow_pickle), revision)
    if recognised(path) is None:
        for pickle in [form.files[-1] for form in FORMATS.values() if form.pickled and not allow_pickle]:
            if hub.holds(repo, f"{folder}/{pickle}".lstrip("/"), commit):
                refuse_pickle(f"{pickle} of hf:{source}")
        raise UserError("E-HUB", f"hf:{source} at {commit[:7]} holds no SAE that can be read", "check the path")
    return Located(path, commit, {})


def data(ref: DataRef) -> ResolvedData:
    """Find a data file, or a data set's commit on the Hub. Raises UserError E-PATH, E-DATA, E-HUB."""
    if found := HubData.parse(ref):
        commit = hub.data_commit(found.repo, found.revision)
        return ResolvedData(ref, Located(Path(str(found)), commit, {}), replace(found, revision=commit))
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
    named = local.read_json(path, "E-MODEL", MOST_INDEX).get("weight_map")
    for name in sorted({str(name) for name in named.values()}) if isinstance(named, dict) else [""]:
        if not name.endswith(".safetensors") or Path(name).name != name or not (path.parent / name).is_file():
            raise UserError(
                "E-MODEL", f"{path} names {name!r:.200}, no safetensors file beside it", "save it whole, as safetensors"
            )


def _checked_weights(folder: Path, pattern: str) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights in a folder, each file checked against its header."""
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not found:
        raise UserError("E-MODEL", f"{folder} holds no {pattern}", "save it as safetensors: pickled weights are not opened")
    return {name: shape for file in found for name, shape in local.tensor_shapes(file, "E-MODEL").items()}
