"""Docs are executed: every command and every Python block of the README and docs/python.md runs on the tiny pair."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import Pair
from tests.reference import PATH, reference
from tests.running import run

ROOT = Path(__file__).parents[1]
NAMES = {"base": "base", "chat": "chat", "sae_base": "sae-base", "sae_chat": "sae-chat"}


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def here(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds what the docs name."""
    for source, name in NAMES.items():
        shutil.copytree(pair.root / source, tmp_path / name)
    for name in ("text.txt", "chats.jsonl"):
        shutil.copy(pair.root / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_commands_run(here: Path) -> None:
    """Every `sae-transfer` line, in order; `make` and `pip` lines are what CI runs around this test."""
    lines = [line for block in blocks("README.md", "sh") for line in block.replace("\\\n", " ").splitlines()]
    ours = [shlex.split(line)[1:] for line in lines if line.startswith("sae-transfer ")]
    assert len(ours) >= 2
    assert {line.split()[0] for line in lines} == {"sae-transfer", "pip", "make"}
    for args in ours:
        status, out, err = run(*args)
        assert status == 0, err
        assert out


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_blocks_run(here: Path, page: str) -> None:
    """As they stand."""
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), {})


def test_the_reference_is_that_of_the_code() -> None:
    """Every command, option, column and error code; `python -m tests.reference` writes it anew."""
    assert PATH.read_text(encoding="utf-8") == reference()


def test_the_tree_in_the_readme_names_every_module() -> None:
    """A stranger finds each file."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "sae_transfer"
    for path in source.rglob("*.py"):
        if path.name != "__init__.py" and "assets" not in path.parts:
            assert path.name in readme, path


def test_links_lead_somewhere() -> None:
    """Every relative link of every page."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page, link)
