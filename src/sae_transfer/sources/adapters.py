"""adapter_config.json -> whether peft may read it: its kind, its sizes and its patterns, held against its weights.

peft builds an adapter by its config before it looks at the weights, and matches patterns of the config with the names of the
model's modules. So a kind is let through whose every size is known here, and a pattern that can't keep peft busy.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_transfer.errors import UserError
from sae_transfer.sources.configs import refuse_code
from sae_transfer.sources.local import read_json

KINDS: dict[str, tuple[str, ...]] = {
    "LORA": ("r", "rank_pattern"),
    "LOHA": ("r", "rank_pattern"),
    "VERA": ("r",),
    "IA3": (),
    "LN_TUNING": (),
    "OFT": (),
}
"""The sizes of each kind that are not the model's own."""
MOST_RANK = 2**14
"""VERA's projections are as wide as the model, and lie in no file."""
PROMPT_LEARNING = re.compile(r"PROMPT|PREFIX|P_TUNING|CPT|CARTRIDGE", re.IGNORECASE)

PATTERNED = (
    *("target_modules", "exclude_modules", "layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("feedforward_modules", "target_parameters"),
)
"""What peft takes for regular expressions, or puts into one."""
LONGEST_PATTERN = 2000
ALTERNATIVES = re.compile(r"\((?:\?:)?([\w.|\\-]*)\)")
REPEAT = re.compile(r"(?:\.|\\d|\\w|\[0-9\]|\[\\d\])[*+]\??")
PLAIN = re.compile(r"\^?[\w.|\\-]*\$?")
NAME = 64
"""Places that one repeat tries in a module's name."""
MOST_TRIES = 100_000


def check_adapter(folder: Path) -> None:
    """Refuse adapters that change the input, not the weights: their positions are not the tokens' positions.

    And those that are more than weights: XLORA names other adapters to load, POLY and activated LoRA (aLoRA) choose by what
    peft reads off the whole input, and would do nothing in a model that is cut. And those whose sizes or patterns have no
    bound that is known here. Raises: UserError E-MODEL.
    """
    config = read_json(folder / "adapter_config.json", "E-MODEL")
    refuse_code(config, str(folder / "adapter_config.json"), "E-MODEL")
    kind = str(config.get("peft_type", ""))
    if kind in ("XLORA", "POLY", "SHADOW") or config.get("alora_invocation_tokens") is not None:
        what = "an activated LoRA" if kind == "LORA" else kind
        raise UserError("E-MODEL", f"adapter {folder} is {what}, which is more than weights", "use a LoRA-like adapter")
    if PROMPT_LEARNING.search(kind):
        raise UserError("E-MODEL", f"adapter {folder} is {kind:.100}, which adds virtual tokens", "use a LoRA-like adapter")
    if kind not in KINDS:
        what = f"adapter {folder} is {kind!r:.100}, whose sizes can't be checked before it is built"
        raise UserError("E-MODEL", what, f"merge it into its model, or use {', '.join(KINDS)}")
    for key, why in (("megatron_config", "names a module to import"), ("layer_replication", "changes the model's layers")):
        if config.get(key):
            raise UserError("E-MODEL", f"adapter {folder} has {key}, which {why}", "use a LoRA-like adapter")
    for key in PATTERNED:
        for pattern in _strings(config.get(key)):
            if not _bounded(pattern):
                what = f"adapter {folder}: {key} holds {pattern!r:.150}, which may take for ever to match"
                raise UserError("E-MODEL", what, "name the modules in a list")


def check_rank(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A rank is the smaller dimension of one of the weights; a larger one would be allocated before it is missed."""
    config = read_json(folder / "adapter_config.json", "E-MODEL")
    most = min(max((min(shape) for shape in shapes.values() if shape), default=0), MOST_RANK)
    for key in KINDS.get(str(config.get("peft_type")), ()):
        value = config.get(key)
        for rank in value.values() if isinstance(value, dict) else [value]:
            if isinstance(rank, int | float) and not rank <= most:
                what = f"adapter {folder} says rank {rank!r:.50}, its weights have none above {most}"
                raise UserError("E-MODEL", what, "mend adapter_config.json")


def _strings(value: Any) -> Iterator[str]:
    """The value, its entries or its keys."""
    yield from (entry for entry in (value if isinstance(value, list | dict) else [value]) if isinstance(entry, str))


def _bounded(pattern: str) -> bool:
    """Whether it is a name, or alternatives and a few repeats of single characters, none within another."""
    tries = 1
    for match in ALTERNATIVES.finditer(pattern):
        tries *= 1 + match[1].count("|")
    rest = ALTERNATIVES.sub("", pattern)
    tries *= NAME ** len(REPEAT.findall(rest))
    return len(pattern) <= LONGEST_PATTERN and tries <= MOST_TRIES and bool(PLAIN.fullmatch(REPEAT.sub("", rest)))
