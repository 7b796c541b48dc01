"""Documents and records from files (.txt, .jsonl, .parquet, .pkl) and the Hub; and rows of token ids. One record at a time."""

import json
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from sae_transfer.data import parquet, pickles
from sae_transfer.data.packing import ALL, NOT_UNDER_TEST, TokenData, TokenRow, whole_row
from sae_transfer.errors import UserError
from sae_transfer.sources.hub import one_line
from sae_transfer.specs import HubData

SHUFFLE_SEED = 42
"""That of the published evaluation on Alpaca."""
REFUSALS = (ValueError, KeyError, RuntimeError)
"""What `datasets` raises besides its own errors for a configuration, split or file that it can't read."""
SURROGATE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")
"""Escapes that may be half of a character, which no tokenizer takes."""


def documents(path: Path | HubData, limit: int | None) -> Generator[str, None, None]:
    """Non-empty documents, read as they are asked for: blocks between blank lines of a .txt, the `text` of any other record.

    Raises: UserError E-DATA for a source that holds none.
    """
    blocks = isinstance(path, Path) and path.suffix.lower() == ".txt"
    with closing(_blocks(path) if isinstance(path, Path) and blocks else _field(path, "text")) as found:
        kept = 0
        for kept, text in enumerate(islice((text for text in found if text.strip()), limit), start=1):  # noqa: B007
            yield text
    if not kept:
        raise UserError("E-DATA", f"{path} holds no text", "give at least one document")


def has_input(record: Mapping[str, Any]) -> bool:
    """Whether a record of Alpaca's kind has an `input` beside its instruction: such ones are left out, as published."""
    return bool(str(record.get("input") or "").strip())


def token_rows(path: Path, name: str, limit: int | None) -> TokenData:
    """Rows of token ids from a .jsonl or .parquet: `tokens` [pos] and, optionally, `mask` [pos] of 0 and 1.

    With a mask its positions are under test and scored; without one, all are under test, and all but the last scored.
    Raises: UserError E-DATA for a row that is empty, misshapen or masks its last position.
    """
    with closing(records(path)) as found:
        rows = [_token_row(record, index, f"{path} row {index}") for index, record in enumerate(islice(found, limit))]
    if not rows or not any((row.kinds != NOT_UNDER_TEST).any() for row in rows):
        raise UserError("E-DATA", f"{path} has no position under test", "give at least one row")
    return TokenData(name, tuple(rows))


def _token_row(record: dict[str, Any], index: int, where: str) -> TokenRow:
    tokens = _ids(record.get("tokens"), where, "tokens")
    if len(tokens) < 2 or min(tokens) < 0:
        raise UserError("E-DATA", f"{where} has {len(tokens)} tokens, the least {min(tokens, default=0)}", "give ids >= 0")
    owner = np.full(len(tokens), index, dtype=np.int32)
    if record.get("mask") is None:
        return whole_row(index, tokens, owner)
    mask = record["mask"]
    if isinstance(mask, list) and all(isinstance(entry, bool) for entry in mask):
        mask = [int(entry) for entry in mask]
    mask = _ids(mask, where, "mask")
    if len(mask) != len(tokens) or not set(mask) <= {0, 1}:
        raise UserError("E-DATA", f"{where}: mask is no list of {len(tokens)} zeros and ones", "give one per token")
    if mask[-1]:
        raise UserError("E-DATA", f"{where} masks its last position, which predicts nothing", "end the mask with 0")
    scored = np.asarray(mask, dtype=np.bool_)
    kinds = np.where(scored, ALL, NOT_UNDER_TEST).astype(np.int8)
    return TokenRow(index, np.asarray(tokens, dtype=np.int32), kinds, scored, owner)


def records(path: Path | HubData, cut: pickles.Cut = pickles.cut) -> Generator[dict[str, Any], None, None]:
    """The records of a .jsonl, .parquet or published .pkl file, or of a data set on the Hub.

    Raises: UserError E-DATA where one can't be read, E-HUB.
    """
    if isinstance(path, HubData):
        yield from _on_hub(path)
        return
    if path.suffix.lower() == ".pkl":
        yield from pickles.published(path, cut)
        return
    if path.suffix.lower() == ".parquet":
        yield from parquet.records(path)
        return
    with path.open(encoding="utf-8-sig") as file:
        for number, line in _lines(file, path):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError("E-DATA", f"{path} line {number} is no JSON ({error})", "give one object a line") from None
            if not isinstance(record, dict):
                raise UserError("E-DATA", f"{path} line {number} is no object", "give one object a line")
            if SURROGATE.search(line) and re.search("[\ud800-\udfff]", json.dumps(record, ensure_ascii=False)):
                raise UserError("E-DATA", f"{path} line {number} holds half a surrogate pair", "save it as UTF-8")
            yield record


def _on_hub(data: HubData) -> Generator[dict[str, Any], None, None]:
    """Records by the library `datasets`, which runs none of a data set's code.

    Shuffled, as the published evaluation takes Alpaca: all of them, in the order of seed 42; `output` is the completion.
    """
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    where = {"name": data.config, "split": data.split, "revision": data.revision}
    with one_line(data.repo, data.revision):
        try:
            if not data.shuffled:
                yield from datasets.load_dataset(data.repo, **where, streaming=True)
                return
            whole = datasets.load_dataset(data.repo, **where)
            for record in whole.shuffle(seed=SHUFFLE_SEED):
                yield {"completion": record["output"], **record} if "output" in record else record
        except (*REFUSALS, datasets.exceptions.DatasetsError, datasets.data_files.EmptyDatasetError) as error:
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                "E-DATA", f"{data} can't be read ({line:.300})", "give ORG/NAME:CONFIG:SPLIT as it has them"
            ) from None


def _lines(file: Any, path: Path) -> Iterator[tuple[int, str]]:
    try:
        yield from enumerate(file, start=1)
    except UnicodeDecodeError as error:
        raise UserError("E-DATA", f"{path} is not UTF-8 ({error.reason})", "save it as UTF-8") from None


def _blocks(path: Path) -> Generator[str, None, None]:
    block: list[str] = []
    with path.open(encoding="utf-8-sig") as file:
        for _, line in _lines(file, path):
            if line.strip():
                block.append(line)
            elif block:
                yield "".join(block).strip("\n")
                block = []
    if block:
        yield "".join(block).strip("\n")


def _field(path: Path | HubData, key: str) -> Generator[str, None, None]:
    with closing(records(path)) as found:
        for number, record in enumerate(found):
            if not isinstance(record.get(key), str):
                then = f"name the field {key!r}" if isinstance(path, Path) else "give another data set, or a file"
                raise UserError("E-DATA", f"{path} record {number} has no {key!r} that is a string", then)
            yield record[key]


def _ids(value: Any, where: str, key: str) -> list[int]:
    if not isinstance(value, list) or not all(type(entry) is int and abs(entry) < 2**31 for entry in value):
        raise UserError("E-DATA", f"{where}: {key} is no list of whole numbers", "give token ids, not text")
    return value
