"""`release:sae_id` -> the repository, folder and overrides of SAELens's table of releases. sae_lens itself is not imported."""

import difflib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sae_transfer.errors import UserError

CONVERSIONS = {
    None: "saelens",
    "gemma_2": "gemma_scope",
    "llama_scope": "llama_scope",
    "dictionary_learning_1": "dictionary_learning",
    "sparsify": "sparsify",
}
"""SAELens's names of formats, and ours."""


@dataclass(frozen=True)
class Release:
    """Where an SAE of the table lies on the Hub, and what the table says in place of its config."""

    repo: str
    folder: str
    overrides: dict[str, Any]


def release(name: str) -> Release:
    """The entry of `release:sae_id`. Raises UserError E-SAE for one that is not there, or of a format that can't be read."""
    title, _, sae_id = name.partition(":")
    blocks = _blocks()
    if title not in blocks:
        near = (
            ", ".join(difflib.get_close_matches(title, blocks, 3))
            or "release:sae_id of SAELens's table, a folder, hf: or wandb:"
        )
        raise UserError("E-SAE", f"SAE {name!r}: SAELens has no release {title!r}", f"give {near}")
    entry = yaml.safe_load(blocks[title])[title]
    saes = {str(sae["id"]): sae for sae in entry["saes"]}
    if sae_id not in saes:
        near = ", ".join(difflib.get_close_matches(sae_id, saes, 3, 0.3) or list(saes)[:3])
        raise UserError("E-SAE", f"release {title} has no SAE {sae_id!r} among its {len(saes)}", f"give {near}")
    conversion = entry.get("conversion_func")
    if conversion not in CONVERSIONS:
        what = f"release {title} is in format {conversion!r}, which can't be read"
        raise UserError("E-SAE", what, f"choose one of {', '.join(CONVERSIONS.values())}")
    overrides = dict(entry.get("config_overrides") or {})
    if "norm_scaling_factor" in saes[sae_id]:
        overrides["norm_scaling_factor"] = saes[sae_id]["norm_scaling_factor"]
    return Release(str(entry["repo_id"]), str(saes[sae_id]["path"]), overrides)


@cache
def _blocks() -> dict[str, str]:
    """Each release's own lines, by name: to parse one takes no time, to parse all of them a second."""
    spec = importlib.util.find_spec("sae_lens")  # finds the package, and does not import it
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "pretrained_saes.yaml").read_text(encoding="utf-8")
    parts = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    return {part.partition(":")[0]: part for part in parts if ":" in part}
