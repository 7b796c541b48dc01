"""How the program ends: interrupted and resumable, or broken with the path of a log."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from sae_transfer import Run
from sae_transfer.workflows import demo
from tests.conftest import VOCAB, Pair, write_jsonl
from tests.running import fresh, run

PROGRAM = "from sae_transfer.cli.app import main; main()"


def command(pair: Pair, rows: Path | None = None) -> list[str]:
    """The smallest evaluation."""
    return ["evaluate", "--model", str(pair.base), "--sae", str(pair.sae_base), "--rows", str(rows or pair.rows)]


def test_an_interrupted_run_says_that_it_can_be_resumed(pair: Pair, tmp_path: Path) -> None:
    """Ctrl-C while measuring: exit code 130, one line, and the same command finishes the run."""
    tokens = torch.randint(0, VOCAB, (1500, 128), generator=torch.Generator().manual_seed(1)).tolist()
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": row} for row in tokens])
    out = tmp_path / "run"
    arguments = [*command(pair, rows), "-o", str(out)]
    # a shell's background job inherits SIGINT ignored
    program = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {PROGRAM}"
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True) as process:
        while not (out / "run.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        while process.poll() is None:  # once more, as a person would, should a library have swallowed the first
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        assert process.stderr is not None
        err = process.stderr.read()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted: what is finished is kept, and the same command goes on from there"
    assert Run(out).manifest.status == "running"
    assert run(*arguments)[0] == 0
    assert Run(out).manifest.status == "done"
    assert len(Run(out).manifest.sessions) == 2


def test_an_unexpected_failure_is_one_line_and_a_log(pair: Pair, tmp_path: Path) -> None:
    """A full disk under stdout: exit code 1, and the traceback lies where the line says."""
    assert run(*command(pair), "-o", str(tmp_path / "r"))[0] == 0
    with Path(os.devnull).with_name("full").open("w") as full:
        show = [sys.executable, "-c", PROGRAM, "show", str(tmp_path / "r")]
        done = subprocess.run(show, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    log = re.fullmatch(r"error: OSError: \[Errno 28\] .* \(traceback in (.*)\)", line)
    assert log is not None
    assert "Traceback" in Path(log[1]).read_text()
    Path(log[1]).unlink()


def test_a_plain_terminal_gets_plain_lines(pair: Pair, tmp_path: Path) -> None:
    """stderr has lines with tokens, rate and time left; stdout the table alone."""
    done = fresh("-c", PROGRAM, *command(pair), "-o", str(tmp_path / "r"))
    assert done.returncode == 0
    assert re.search(r"^measuring: (\S+) of \1 tokens, \S+ tokens/s, 0 s left$", done.stderr, re.MULTILINE)
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout == run("show", str(tmp_path / "r"))[1]


def test_bfloat16_moves_numbers_by_little(tmp_path: Path) -> None:
    """A trained pair has the same matrix within bfloat16's rounding; the dtype stands in run.json."""
    records = {}
    at = demo.pair()
    sources = ("--model", str(at / "models" / "chat"), "--sae", str(at / "saes" / "base"), "--text", str(at / "text.jsonl"))
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        assert run("evaluate", *sources, "--max-documents", "40", "--dtype", dtype, "-o", str(out))[0] == 0
        (records[dtype],) = json.loads(run("show", str(out), "--format", "json")[1])
        assert json.loads((out / "run.json").read_text())["spec"]["dtype"] == dtype
    for name in ("ce_clean", "ce_spliced", "mse"):
        low, high = sorted((records["float32"][name], records["bfloat16"][name]))
        assert 0 < (high - low) / high < 0.03
