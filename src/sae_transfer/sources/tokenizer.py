"""tokenizer.json and tokenizer_config.json -> whether transformers may read them: their size, what they name, what they write.

A normaliser of seven replacements of "a" by ten makes a gigabyte of a hundred characters. Text that comes through here
grows by a small factor at most.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_transfer.errors import UserError
from sae_transfer.sources.configs import refuse_code
from sae_transfer.sources.local import MOST_JSON, read_json

MOST_TOKENIZER = 2**26
"""Bytes of a tokenizer.json: those of vocabularies of 262,144 tokens have half of it."""
MOST_GROWTH = 8
"""Of all replacements together: SentencePiece's put one character in the place of one."""
LONGEST_PREFIX = 16
REPEATED = ("Replace", "Prepend", "Strip", "Sequence")
"""Kinds of steps that real tokenizers have twice. The others write up to eighteen characters for one, which is enough once."""
PARTS = ("normalizers", "decoders", "processors")
MOST_STEPS = 32


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer that names code or a file elsewhere, or whose text would grow. Raises UserError E-TOKENIZER."""
    names = {"tokenizer.json"}
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = read_json(path, "E-TOKENIZER")
        refuse_code(config, str(path), "E-TOKENIZER")
        files = config.get("fast_tokenizer_files") or []
        for name in files if isinstance(files, list) else [files]:
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError("E-TOKENIZER", f"{path} names {name!r:.200}, no file beside it", "remove fast_tokenizer_files")
            names.add(name)
    for name in sorted(names):
        if (folder / name).exists():
            check_growth(read_json(folder / name, "E-TOKENIZER", MOST_TOKENIZER), str(folder / name))
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.json"):
        if (folder / name).exists():
            read_json(folder / name, "E-TOKENIZER", MOST_JSON)


def check_growth(tokenizer: Mapping[str, Any], where: str) -> None:
    """What normaliser, decoder and post-processor may write for a character. Raises UserError E-TOKENIZER."""
    for part in ("normalizer", "decoder", "post_processor"):
        steps = list(_steps(tokenizer.get(part)))
        growth = 1.0
        for step in steps:
            growth *= _growth(step)
        kinds = Counter(str(step.get("type")) for step in steps)
        twice = [kind for kind, count in kinds.items() if count > 1 and kind not in REPEATED]
        if growth > MOST_GROWTH or twice or len(steps) > MOST_STEPS:
            what = f"{where}: its {part} may make text {MOST_GROWTH} times as long or more"
            raise UserError("E-TOKENIZER", what, "take the tokenizer of the base model")


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    left = [part]
    while left:
        step = left.pop()
        if isinstance(step, Mapping):
            yield step
            left += [inner for key in PARTS if isinstance(step.get(key), list) for inner in step[key]]


def _growth(step: Mapping[str, Any]) -> float:
    """By how much a step multiplies a text; without bound where that can't be told."""
    kind, content = step.get("type"), step.get("content")
    if kind == "Replace":
        pattern = step.get("pattern")
        text = pattern.get("String") if isinstance(pattern, Mapping) else None
        if not isinstance(content, str):
            return MOST_GROWTH + 1
        return max(1.0, len(content) / len(text)) if isinstance(text, str) and text else 1.0 + len(content)
    if kind == "Prepend":
        return 1.0 if len(str(step.get("prepend"))) <= LONGEST_PREFIX else MOST_GROWTH + 1
    if kind == "TemplateProcessing":
        single = step.get("single")
        return sum("Sequence" in piece for piece in single) if isinstance(single, list) else MOST_GROWTH + 1
    return 1.0
