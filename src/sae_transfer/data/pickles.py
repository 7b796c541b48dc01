"""Published rollouts (`generated_data_*.pkl`) -> records, without ever unpickling: nothing is imported, nothing is called.

A pickle is a program. Its opcodes are read here one by one, by a machine that knows lists, tuples, dicts with string keys,
strings, numbers and None, and refuses any other. It makes at most one value an opcode and hashes strings only, so what it
costs is bounded by the size of the file; and so is the text that it gives.
"""

import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_transfer.errors import UserError

MOST_BYTES = 32 * 2**20
MOST_OPCODES = 1_000_000
"""The published files have 20 kB and 233 opcodes."""

INSTRUCTION = ("instructions", "instruction", "prompts", "prompt")
COMPLETION = ("completions", "completion", "responses", "response", "generations", "generation", "outputs", "output")
ENDS = ("<|im_end|>", "</s>", "<eos>")
"""End tokens as text: the published completions go on behind them to their full 64 tokens."""

SURROGATE = re.compile("[\ud800-\udfff]")
STRINGS = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT")
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")


Cut = Callable[[str], str]
"""Where a completion as it was generated ends."""


def cut(completion: str) -> str:
    """Before the first end token; whole where there is none."""
    return completion[: min((at for end in ENDS if (at := completion.find(end)) >= 0), default=None)]


def published(path: Path, cut: Cut = cut) -> list[dict[str, str]]:
    """Records of `instruction` and `completion`: out of a dict of two lists, as published, or a list of dicts.

    Completions are cut: by default before the first end token. Raises: UserError E-DATA for a file that holds anything else.
    """
    value = _plain(path)
    if isinstance(value, dict):
        columns = [_field(value, names) for names in (INSTRUCTION, COMPLETION)]
        if not all(isinstance(column, list | tuple) for column in columns) or len({len(column) for column in columns}) > 1:
            raise UserError("E-DATA", f"{path} holds no two lists of one length", "give instructions and completions")
        pairs = list(zip(*columns, strict=True))
    else:
        entries = value if isinstance(value, list | tuple) else [value]
        pairs = [(_field(entry, INSTRUCTION), _field(entry, COMPLETION)) for entry in entries]
    total, checked = 0, set()
    for number, pair in enumerate(pairs):
        if not all(isinstance(text, str) for text in pair):
            what = f"{path} record {number} has no instruction and completion that are strings"
            raise UserError("E-DATA", what, "give a published generated_data_*.pkl, or a .jsonl")
        total += sum(map(len, pair))
        if total > MOST_BYTES:  # one text may be spelled once and stand in every record
            raise UserError("E-DATA", f"{path} holds more than {MOST_BYTES} characters", "give its records as a .jsonl")
        for text in pair:
            if id(text) not in checked and SURROGATE.search(text):
                raise UserError("E-DATA", f"{path} record {number} holds half a surrogate pair", "save it as UTF-8")
            checked.add(id(text))
    return [{"instruction": instruction, "completion": cut(completion)} for instruction, completion in pairs]


def _field(record: Any, names: tuple[str, ...]) -> Any:
    found = [record[name] for name in names if name in record] if isinstance(record, Mapping) else []
    return found[0] if found else None


def _plain(path: Path) -> Any:
    """The value that a pickle of plain values spells."""
    if path.stat().st_size > MOST_BYTES:
        raise UserError("E-DATA", f"{path} has more than {MOST_BYTES // 2**20} MiB", "give its records as a .jsonl")
    try:
        return _run(path.read_bytes())
    except _RefusedError as error:
        raise UserError("E-DATA", f"{path} {error}", "it was not opened; give a .jsonl of instruction and completion") from None
    except (ValueError, LookupError, TypeError, OSError, OverflowError) as error:
        raise UserError("E-DATA", f"{path} is no whole pickle ({error!r:.100})", "copy it again") from None


class _RefusedError(Exception):
    """What a pickle of plain values has no need of."""


def _run(program: bytes) -> Any:
    stack: list[Any] = []
    marked: list[list[Any]] = []
    memo: dict[int, Any] = {}
    for count, (opcode, argument, at) in enumerate(pickletools.genops(program)):
        name = opcode.name
        if count >= MOST_OPCODES:
            raise _RefusedError(f"has more than {MOST_OPCODES} opcodes")
        if name in STRINGS or name in NUMBERS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            marked.append(stack)
            stack = []
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in ("LIST", "TUPLE", "DICT"):
            items, stack = stack, marked.pop()
            stack.append(_dict({}, items) if name == "DICT" else tuple(items) if name == "TUPLE" else items)
        elif name in TUPLES:
            size = len(stack) - TUPLES[name]
            stack[size:] = [tuple(stack[size:])]
        elif name in ("APPENDS", "SETITEMS"):
            items, stack = stack, marked.pop()
            _put(stack[-1], items)
        elif name in ("APPEND", "SETITEM"):
            size = len(stack) - (1 if name == "APPEND" else 2)
            items, stack = stack[size:], stack[:size]
            _put(stack[-1], items)
        elif name in PUTS:
            memo[int(str(argument))] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in GETS:
            stack.append(memo[int(str(argument))])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise _RefusedError(f"holds more than plain values ({name} at byte {at})")
    raise ValueError("it does not stop")


def _put(into: Any, items: list[Any]) -> None:
    if isinstance(into, dict):
        _dict(into, items)
    elif isinstance(into, list):
        into.extend(items)
    else:
        raise TypeError("items for what holds none")


def _dict(into: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            raise _RefusedError("has a key that is no string")
        into[key] = value
    return into
