"""Docs are executed: every command and every Python block of the README and docs/python.md runs on the demo pair."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from recipes.demo_pair.page import PAGE, filled, tables
from sae_transfer import Run
from sae_transfer.workflows import demo
from tests.reference import PATH, reference
from tests.running import run, run_script

ROOT = Path(__file__).parents[1]
NAMES = {
    "base": "models/base",
    "chat": "models/chat",
    "drifted": "models/drifted",
    "sae-base": "saes/base",
    "sae-chat": "saes/chat",
}


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds what the docs name: the demo's models and SAEs, and some of its data."""
    for name, source in NAMES.items():
        shutil.copytree(demo.pair() / source, tmp_path / name)
    text, chats = ((demo.pair() / name).read_text(encoding="utf-8").splitlines()[:20] for name in ("text.jsonl", "chats.jsonl"))
    (tmp_path / "text.txt").write_text("\n\n".join(json.loads(line)["text"] for line in text), encoding="utf-8")
    (tmp_path / "chats.jsonl").write_text("\n".join(chats), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_commands_run(here: Path, demo_run: Run) -> None:
    """Every `sae-transfer` and script line, in order; `make` and `pip` lines are what CI runs around this test. The demo's run
    is there already: it was measured by the same call."""
    shutil.copytree(demo_run.path, here / "runs" / "demo")
    lines = [line for block in blocks("README.md", "sh") for line in block.replace("\\\n", " ").splitlines()]
    ours = [shlex.split(line) for line in lines if line.startswith(("sae-transfer ", "python "))]
    assert len(ours) >= 2
    assert {line.split()[0] for line in lines} == {"sae-transfer", "python", "pip", "make"}
    assert {words[1] for words in ours if words[0] == "python"} == {path.name for path in ROOT.glob("*.py")}
    for program, *args in ours:
        status, out, err = run(*args) if program == "sae-transfer" else run_script(*args)
        assert status == 0, err
        assert out


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_blocks_run(here: Path, page: str) -> None:
    """As they stand."""
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), {})


def test_the_readme_shows_what_the_demo_prints(demo_run: Run) -> None:
    """Each line of the table and each finding: the same words, and numbers that differ by the rounding of machines."""
    printed: dict[str, list[list[float]]] = {}
    for line in run("demo", "-o", str(demo_run.path))[1].splitlines():
        words, numbers = words_and_numbers(line)
        printed.setdefault(words, []).append(numbers)
    shown = [words_and_numbers(line) for line in blocks("README.md", "text")[0].splitlines() if line]
    assert len(shown) > 25
    for words, numbers in shown:
        assert any(numbers == pytest.approx(there, rel=0.02, abs=0.003) for there in printed[words]), words


def test_the_readme_shows_where_the_demo_breaks(demo_run: Run) -> None:
    """What the two commands above it print."""
    (block,) = [block for block in blocks("README.md", "sh") if "--worst" in block]
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    printed = [run(*(str(demo_run.path) if word == "runs/demo" else word for word in words))[1] for words in commands]
    lines = dict(words_and_numbers(line) for text in printed for line in text.splitlines())
    (shown,) = [block for block in blocks("README.md", "text") if "token kind" in block]
    for words, numbers in (words_and_numbers(line) for line in shown.splitlines() if line):
        assert numbers == pytest.approx(lines[words], rel=0.02, abs=0.003), words


def words_and_numbers(line: str) -> tuple[str, list[float]]:
    """A line without its numbers, and the numbers."""
    number = r"-?\d[\d,]*(?:\.\d+)?"
    return " ".join(re.sub(number, "N", line).split()), [float(found.replace(",", "")) for found in re.findall(number, line)]


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


def test_the_page_of_the_demo_pair_has_the_logs_figures() -> None:
    """`python -m recipes.demo_pair.page` writes them anew."""
    text = PAGE.read_text(encoding="utf-8")
    assert filled(text) == text
    assert text.count("<!-- end -->") == len(tables())
