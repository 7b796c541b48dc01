"""Run the program as a user does: in this process where that is enough, in a fresh one where it matters."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sae_transfer.cli.app import main

LOCKSTEP = """
import sys, sae_transfer
class Lockstep:
    def stage(self, name, tokens):
        def advance(done):
            print(name, flush=True)
            sys.stdin.readline()
        return advance
"""
"""The head of a program whose every step is told on stdout and waits for a line on stdin, so that it can be killed anywhere."""


def run(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `sae-transfer ARGS`, in this process."""
    return _ended(main, args)


def run_script(name: str, *args: str) -> tuple[int, str, str]:
    """The same of `python NAME ARGS`, a script at the repository's root."""
    return _ended(import_module(name.removesuffix(".py")).main, args)


def _ended(program: Callable[[list[str]], None], args: tuple[str, ...]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            program(list(args))
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def run_json(*args: str, out: Path) -> list[dict[str, Any]]:
    """The records of `sae-transfer evaluate ARGS -o OUT`, as `show --format json` prints them."""
    code, _, err = run("evaluate", *args, "-o", str(out))
    assert code == 0, err
    code, text, _ = run("show", str(out), "--format", "json")
    assert code == 0
    records: list[dict[str, Any]] = json.loads(text)
    return records


def fresh(*args: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """A new Python process."""
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, **options)
