"""The published scripts without data of this machine, from a fresh process: a local server is the Hub."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_transfer.workflows import published
from tests.conftest import write_jsonl
from tests.running import fresh, run_script
from tests.sources.serving import serve
from tests.workflows.test_scripts import ALPACA, BASE_SAE, KEYS, PAIR, PILE, without

ROOT = Path(__file__).parents[2]
TEXTS = [json.loads(line) for line in (PAIR / "text.jsonl").read_text(encoding="utf-8").splitlines()]
CHATS = [json.loads(line) for line in (PAIR / "chats.jsonl").read_text(encoding="utf-8").splitlines()[:40]]
ANSWERS = [
    {"instruction": chat["instruction"], "input": "on this" * (number % 3 == 0), "output": chat["completion"]}
    for number, chat in enumerate(CHATS)
]
RUN = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from tests.running import run_script
for folder, *args in json.loads(sys.argv[2]):
    os.chdir(folder)
    status, _, err = run_script(*args)
    assert status == 0, err
"""


@dataclass(frozen=True)
class Ran:
    """Where the working directories of the scripts that ran lie, and the paths that they asked the Hub for."""

    root: Path
    requests: list[str]


def records(folder: Path) -> list[dict[str, Any]]:
    """Those of the results file of a working directory."""
    found: list[dict[str, Any]] = json.loads(next((folder / "results").glob("*.json")).read_text())
    return found


def sae_recording(folder: Path, dataset: str) -> Path:
    """The base SAE with another data set in its config."""
    shutil.copytree(BASE_SAE, folder)
    config = json.loads((folder / "cfg.json").read_text())
    write_jsonl(folder / "cfg.json", [config | {"metadata": config["metadata"] | {"dataset_path": dataset}}])
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Each script once, in one process, against a Hub with the demo's text in four files under two names, and Alpaca."""
    root = tmp_path_factory.mktemp("hub")
    for folder in ("texts", "alpaca", "own", "pile", "chats"):
        (root / folder).mkdir()
    for part in range(4):
        write_jsonl(root / "texts" / f"train-0000{part}-of-00004.jsonl", TEXTS[50 * part : 50 * part + 50])
    write_jsonl(root / "alpaca" / "train.jsonl", ANSWERS)
    text = [*without(without(PILE, "--text"), "--sae_path"), "--sae_path"]
    scripts = [
        [str(root / "own"), "sae_transfer_script.py", *text, str(sae_recording(root / "sae_own", "lab/texts"))],
        [str(root / "pile"), "sae_transfer_script.py", *text, str(sae_recording(root / "sae_pile", ""))],
        [str(root / "chats"), "alpaca_transfer_script.py", *ALPACA, "--mask_type", "rollout", "--num_samples", "8"],
    ]
    repos = {"lab/texts": root / "texts", published.PILE: root / "texts", published.ALPACA: root / "alpaca"}
    with serve(repos) as hub:
        env = hub.environment(root / "home", OMP_NUM_THREADS="1")
        done = fresh("-c", RUN, str(ROOT), json.dumps(scripts), env=env)
        assert done.returncode == 0, done.stderr
        return Ran(root, list(hub.requests))


@pytest.mark.parametrize(("name", "asked"), [("own", "lab/texts"), ("pile", published.PILE)])
def test_text_is_what_the_sae_records_else_the_pile(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: str
) -> None:
    """The numbers are those of the same text in a file, and of four files only the first is read: it fills the rows."""
    files = [path.partition("?")[0] for path in ran.requests if path.startswith(f"/datasets/{asked}/resolve/")]
    assert {Path(file).name for file in files if file.endswith(".jsonl")} == {"train-00000-of-00004.jsonl"}
    monkeypatch.chdir(tmp_path)
    assert run_script("sae_transfer_script.py", *PILE)[0] == 0
    (found,), (local,) = records(ran.root / name), records(tmp_path)
    assert list(found) == list(local) == KEYS["pile"]
    assert [found[key] for key in published.TEXT_COLUMNS] == pytest.approx(
        [local[key] for key in published.TEXT_COLUMNS], rel=1e-5
    )


def test_alpaca_is_answered_in_the_published_order(ran: Ran) -> None:
    """Shuffled by seed 42; of the first 8 records those with an input are left out, after they were counted."""
    shuffled = [ANSWERS[row] for row in np.random.default_rng(42).permutation(len(ANSWERS))]
    expected = [record["instruction"] for record in shuffled[:8] if not record["input"]]
    lines = (ran.root / "chats" / "generated_data_qwen.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["instruction"] for line in lines] == expected
    assert 0 < len(expected) < 8
    assert [list(record) for record in records(ran.root / "chats")] == [KEYS["alpaca"]]
