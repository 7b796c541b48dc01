"""JSON as the recipe writes it: sorted keys, so that the same content has the same hash."""

import json
from collections.abc import Sequence
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    """One value, indented."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_lines(path: Path, records: Sequence[dict[str, str]]) -> None:
    """One record a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
