"""Published pickles are read without being run; anything but plain values is refused, fast and in one line."""

import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from sae_transfer.data.pickles import MOST_BYTES, MOST_OPCODES, published
from sae_transfer.errors import UserError
from tests.conftest import Pair
from tests.running import run

PAIRS = [{"instruction": "Name a fox.", "completion": "Zorro — 🦊."}, {"instruction": "And\nnow?", "completion": ""}]
COLUMNS = {f"{key}s": [pair[key] for pair in PAIRS] for key in ("instruction", "completion")}


class Hostile:
    """What a pickle may ask to be called."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def written(path: Path, value: Any, protocol: int = 4) -> Path:
    """The value, pickled, or bytes as they are."""
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        COLUMNS,
        PAIRS,
        tuple(PAIRS),
        [{"prompt": pair["instruction"], "response": pair["completion"], "n": 2**40, "x": (1.5, None, True)} for pair in PAIRS],
    ],
)
def test_the_published_forms_are_read_in_every_protocol(tmp_path: Path, value: Any, protocol: int) -> None:
    """Two lists, or a list of dicts with more in them and keys of another name."""
    assert published(written(tmp_path / "a.pkl", value, protocol)) == PAIRS


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>", "<eos>"])
def test_a_completion_ends_before_its_first_end_token(tmp_path: Path, end: str) -> None:
    """Published completions go on behind it; one without it keeps its last character."""
    value = [{"instruction": "a", "completion": text} for text in (f"yes{end}{end} no<eos>", "yes")]
    assert [record["completion"] for record in published(written(tmp_path / "a.pkl", value))] == ["yes", "yes"]


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    """A value within a value, as deep as asked."""
    return b"\x80\x04" + opening * depth + closing * depth + b"."


BOMB = b"\x80\x04" + b"".join(b"]\x94(" + b"h" + bytes([index]) + b"h" + bytes([index]) + b"e" for index in range(200)) + b"."
KEYS = b"\x80\x04}(" + b")\x94" + b"".join(b"h" + bytes([n]) * 1 + b"h" + bytes([n]) + b"\x86\x94" for n in range(200)) + b"Nu."
TEXT = b"X" + struct.pack("<I", 500_000) + b"a" * 500_000
REFERENCES = b"\x80\x04}(X\x0c\0\0\0instructions](" + TEXT + b"q\0" + b"h\0" * 99_999 + b"eX\x0b\0\0\0completions]("
CASES: dict[str, tuple[Any, str]] = {
    "a text in every record": (REFERENCES + b"h\0" * 100_000 + b"eu.", f"more than {MOST_BYTES} characters"),
    "os.system": ([Hostile(os.system, "touch touched")], "holds more than plain values"),
    "os.system in protocol 0": (
        b"cposix\nsystem\n(S'touch touched'\ntR.",
        r"holds more than plain values \(GLOBAL at byte 0\)",
    ),
    "eval": (Hostile(eval, "open('touched', 'w')"), "holds more than plain values"),
    "a billion elements of a range": (Hostile(list, range(10**9)), "holds more than plain values"),
    "bytearray of a terabyte": (b"\x80\x05\x96" + struct.pack("<Q", 10**12) + b".", "E-DATA"),
    "string of a terabyte": (b"\x80\x04\x8d" + struct.pack("<Q", 10**12) + b".", "is no whole pickle"),
    "memo of 2**31 places": (b"\x80\x04Nr" + struct.pack("<I", 2**31 - 1) + b".", "record 0 has no instruction"),
    "number of a megabyte": (b"L" + b"9" * 10**6 + b"L\n.", "is no whole pickle"),
    "doubled references": (BOMB, "record 0 has no instruction"),
    "doubled tuples as a key": (KEYS, "has a key that is no string"),
    "lists in lists": (nested(b"(", b"l", 400_000), "record 0 has no instruction"),
    "tuples in tuples": (b"\x80\x04)" + b"\x85" * 900_000 + b".", "record 0 has no instruction"),
    "too many opcodes": (nested(b"(", b"l", MOST_OPCODES), f"has more than {MOST_OPCODES} opcodes"),
    "too large": (b"\x80\x04]" + b"0" * MOST_BYTES, "has more than 32 MiB"),
    "a persistent id": (b"Pid\n.", "holds more than plain values"),
    "bytes": ({"instructions": [b"a"], "completions": ["b"]}, "holds more than plain values"),
    "no pickle": (b"\xff\xfe{}", "is no whole pickle"),
    "cut off": (pickle.dumps(COLUMNS)[:-9], "is no whole pickle"),
    "empty": (b"", "is no whole pickle"),
    "items for a string": (b"\x80\x04\x8c\x01aNa.", "is no whole pickle"),
    "lists of two lengths": ({"instructions": ["a"], "completions": []}, "holds no two lists of one length"),
    "one list": ({"instructions": ["a"]}, "holds no two lists of one length"),
    "numbers": ({"instructions": ["a"], "completions": [1]}, "record 0 has no instruction and completion"),
    "half a surrogate pair": (b"(lp0\n(dVinstruction\nV\\ud83e\nsVcompletion\nV\nsa.", "half a surrogate pair"),
}


@pytest.mark.parametrize("name", CASES)
def test_anything_else_is_refused_fast_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """One line, within seconds on a busy machine, whatever the program in the file says."""
    value, says = CASES[name]
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "a.pkl", value)
    began = time.process_time()
    with pytest.raises(UserError, match=says) as refused:
        published(path)
    assert time.process_time() - began < 10
    assert (refused.value.code, str(refused.value).count("\n")) == ("E-DATA", 0)
    assert list(tmp_path.iterdir()) == [path]


def test_evaluate_takes_published_chats_and_refuses_a_hostile_file(pair: Pair, tmp_path: Path) -> None:
    """The same records as from a .jsonl; exit code 2 and one line for a program."""
    arguments = ["evaluate", "--model", str(pair.base), "--sae", str(pair.sae_base), "-o", str(tmp_path / "run"), "--chats"]
    hostile = written(tmp_path / "hostile.pkl", [Hostile(os.system, f"touch {tmp_path / 'touched'}")])
    status, _, err = run(*arguments, str(hostile))
    assert (status, err.count("\n"), (tmp_path / "touched").exists()) == (2, 1, False), err
    assert err.endswith("[E-DATA]\n")
    chats = [{"instruction": "the quick fox", "completion": "jumps over lazy dogs<|im_end|>"}]
    status, out, err = run(*arguments, str(written(tmp_path / "chats.pkl", chats)))
    assert status == 0, err
    assert "rollout" in out
