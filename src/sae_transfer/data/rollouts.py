"""Rollouts on disk: a .jsonl of `instruction` and `completion` that grows part by part, and a file beside it with its origin.

FILE.jsonl.origin.json says of which model, template and splice the rollouts are; others are refused. It is written first, then
parts of whole lines are appended and flushed to disk. What a kill leaves of a last part is cut off when the next part comes.
No tensor library is needed here, so that a finished file is found without one.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sae_transfer.errors import ELSEWHERE, UserError
from sae_transfer.runs.directory import write_atomically

ORIGIN_VERSION = 1


def origin_path(path: Path) -> Path:
    """The file beside the rollouts that says where they came from."""
    return path.with_name(f"{path.name}.origin.json")


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the file against other processes; folders made for it go again if it is not written.

    Raises: UserError E-RUN where another process has it, E-PATH where it can't be written.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError("E-RUN", f"{path} is being written by another process", f"wait for it or {ELSEWHERE}") from None
    except OSError as error:
        raise UserError("E-PATH", f"{path} can't be written ({error.strerror})", ELSEWHERE) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        if not path.exists():
            with suppress(OSError):
                for parent in made:
                    parent.rmdir()


def begun(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was noted when these rollouts were begun; None where there are none yet.

    Raises: UserError E-RUN where `path` holds something else, or rollouts of another identity.
    """
    if not path.exists():
        return None
    if not path.is_file() or not origin_path(path).is_file():
        raise UserError("E-RUN", f"{path} was not written by this command", ELSEWHERE)
    try:
        origin = json.loads(origin_path(path).read_text(encoding="utf-8"))
        then, noted, version = origin["identity"], origin["noted"], origin["version"]
        known = {key: then.get(key) for key in identity}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError("E-RUN", f"{origin_path(path)} is damaged", ELSEWHERE) from None
    if version != ORIGIN_VERSION or not isinstance(noted, dict):
        raise UserError("E-RUN", f"{origin_path(path)} is of another version ({version})", ELSEWHERE)
    for key, value in identity.items():
        if known[key] != value:
            plain = all(isinstance(entry, str | int | float) for entry in (known[key], value))
            what = f"{key} {known[key]}, not {value}" if plain else f"another {key}"
            raise UserError("E-RUN", f"{path} holds rollouts of {what}", f"repeat its command or {ELSEWHERE}")
    return noted


def begin(path: Path, identity: Mapping[str, Any], noted: Mapping[str, Any]) -> None:
    """Note where the rollouts come from, then make the file."""
    text = json.dumps({"version": ORIGIN_VERSION, "identity": identity, "noted": noted}, indent=1) + "\n"
    write_atomically(origin_path(path), lambda beside: _write(beside, text))
    path.touch()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def finished(path: Path, asked: Sequence[str]) -> list[int]:
    """Where each whole line ends, in bytes. Raises UserError E-RUN where one is no rollout of the instruction asked."""
    ends: list[int] = []
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            at += len(line)
            if not line.endswith(b"\n"):
                break
            if number >= len(asked):
                what = f"{path} holds more rollouts than the {len(asked)} that are asked for"
                raise UserError("E-RUN", what, f"ask for more or {ELSEWHERE}")
            try:
                record = json.loads(line)
                whole = record["instruction"] == asked[number] and isinstance(record["completion"], str)
            except (ValueError, LookupError, TypeError, RecursionError):
                whole = False
            if not whole:
                raise UserError("E-RUN", f"{path} line {number + 1} is no rollout of instruction {number + 1}", ELSEWHERE)
            ends.append(at)
    return ends


def fingerprint(asked: Iterable[str]) -> str:
    """Hash of instructions in their order."""
    digest = sha256()
    for text in asked:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()


def answered(path: Path) -> list[str]:
    """The instruction of each whole line; of none where one is no rollout."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        records = [json.loads(line) for line in lines]
        return [record["instruction"] for record in records if isinstance(record["completion"], str)]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def append(path: Path, at: int, rollouts: Sequence[tuple[str, str]]) -> int:
    """Write (instruction, completion) pairs from byte `at` on, whatever lies there, and flush them to disk: the new end."""
    lines = [json.dumps({"instruction": asked, "completion": text}, ensure_ascii=False) for asked, text in rollouts]
    with path.open("rb+") as file:
        file.truncate(at)
        file.seek(at)
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
