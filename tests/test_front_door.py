"""The front door: few names, opened lazily; commands that start fast because they load no tensor library."""

import inspect
import json
from pathlib import Path

import pytest

import sae_transfer
from sae_transfer import evaluate, rollouts
from sae_transfer.cli import measuring
from tests.conftest import Pair
from tests.running import fresh, run

HEAVY = ("torch", "sae_lens", "transformers", "pandas")


def loaded_by(*args: str) -> str:
    """Which heavy modules a command has loaded when it ends, in a fresh interpreter."""
    code = f"""
import sys
from sae_transfer.cli.app import main
try:
    main({list(args)!r})
except SystemExit as stop:
    assert not stop.code, stop.code
print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)
"""
    done = fresh("-c", code)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1]


def test_public_names_are_those_of_the_map_and_the_docs() -> None:
    """Every public name resolves, is in __all__ and in docs/python.md."""
    docs = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    assert sorted(sae_transfer._HOME) == sae_transfer.__all__
    for name in sae_transfer.__all__:
        assert getattr(sae_transfer, name).__module__ == sae_transfer._HOME[name]
        assert f"`{name}" in docs
        assert name in dir(sae_transfer)
    with pytest.raises(AttributeError, match="nothing"):
        _ = sae_transfer.nothing


@pytest.mark.parametrize(
    "args", [["--help"], ["drift", "--help"], ["evaluate", "--help"], ["rollouts", "--help"], ["show", "--help"]]
)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    """--help is there before a tensor library could be."""
    assert loaded_by(*args) == "[]"


def test_show_loads_nothing_heavy(pair: Pair, tmp_path: Path) -> None:
    """Reading a run needs no tensor library, and no pandas; measuring one does, so this test can fail."""
    evaluate(str(pair.base), str(pair.sae_base), rows=str(pair.rows), out=tmp_path / "run")
    for view in ([], ["--by", "norm"], ["--worst", "3"], ["--outliers"]):
        assert loaded_by("show", str(tmp_path / "run"), "--format", "json", *view) == "[]"
        assert loaded_by("show", str(tmp_path / "run"), *view) == "[]"
    finished = ["evaluate", "--model", str(pair.base), "--sae", str(pair.sae_base), "--rows", str(pair.rows)]
    assert "torch" in loaded_by(*finished, "-o", str(tmp_path / "other"))


def test_a_config_mistake_is_found_before_torch_is_loaded(pair: Pair, tmp_path: Path) -> None:
    """Names and config files are checked first: the answer comes in a second, not in ten."""
    code = f"""
import sys
from sae_transfer.cli.app import main
try:
    main(["evaluate", "--model", {str(pair.base)!r}, "--sae", "./missing", "--rows", {str(pair.rows)!r}])
except SystemExit as stop:
    print(stop.code, sorted(set(sys.modules) & set({HEAVY!r})))
"""
    assert fresh("-c", code).stdout.strip() == "2 []"


def test_python_and_the_command_line_give_the_same_run(pair: Pair, tmp_path: Path) -> None:
    """The same sources, the same records."""
    python = evaluate({"base": str(pair.base)}, {"own@base": str(pair.sae_base)}, text=str(pair.text), out=tmp_path / "python")
    status, _, err = run(
        *("evaluate", "--model", f"base={pair.base}", "--sae", f"own@base={pair.sae_base}"),
        *("--text", str(pair.text), "-o", str(tmp_path / "cli")),
    )
    assert status == 0, err
    _, text, _ = run("show", str(tmp_path / "cli"), "--format", "json")
    assert json.loads(text) == python.records()


def test_the_default_directory_is_found_again_by_the_same_call(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without -o a run lies under runs/, by the hash of what was asked: the same call reads it, another makes its own."""
    monkeypatch.chdir(tmp_path)
    first, again = (evaluate(str(pair.base), str(pair.sae_base), rows=str(pair.rows)) for _ in range(2))
    other = evaluate(str(pair.base), str(pair.sae_base), rows=str(pair.rows), batch_size=3)
    assert first.path == again.path != other.path
    assert first.path.parent == other.path.parent == Path("runs")


def test_the_command_line_has_the_options_and_defaults_of_the_function() -> None:
    """`evaluate` in Python and in the shell take the same names; what is left out is the same on both sides."""
    python = {name: option.default for name, option in inspect.signature(evaluate).parameters.items()}
    shell = {name: option.default for name, option in inspect.signature(measuring.evaluate).parameters.items()}
    assert shell.pop("token_kinds").split(",") == list(python.pop("token_kinds"))
    renamed = {"models": "model", "saes": "sae"}
    assert {renamed.get(name, name): default for name, default in python.items() if name != "progress"} == shell


def test_rollouts_has_the_options_and_defaults_of_its_function() -> None:
    """The same names and defaults on both sides."""
    python, shell = (inspect.signature(function).parameters.values() for function in (rollouts, measuring.rollouts))
    assert {p.name: p.default for p in python if p.name != "progress"} == {p.name: p.default for p in shell}
