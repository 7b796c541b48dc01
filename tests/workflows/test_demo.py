"""The demo: the pair that ships, its run, and what it says of it."""

import json
import re
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

import pytest

from sae_transfer import Run
from sae_transfer.metrics import cells
from sae_transfer.metrics.answers import answered
from sae_transfer.metrics.cells import Record
from sae_transfer.metrics.documents import by_document
from sae_transfer.report.findings import Place, record, repair
from sae_transfer.workflows.demo import ROLLOUTS, TEXT, found, pair, transfers
from tests.running import run

ROOT = Path(__file__).parents[2]
MOST = 20_000_000
"""Bytes of weights in the package."""


@pytest.fixture(scope="module")
def records(demo_run: Run) -> list[Record]:
    """The cells of the demo's run."""
    return demo_run.records()


def test_the_pair_is_what_its_manifest_says() -> None:
    """Every file by its hash, none more and none less, under 20 MB together."""
    hashes = json.loads((pair() / "manifest.json").read_text())["sha256"]
    there = {p.relative_to(pair()).as_posix(): p for p in pair().rglob("*") if p.is_file() and p.name != "manifest.json"}
    assert {name: sha256(path.read_bytes()).hexdigest() for name, path in there.items()} == hashes
    assert sum(path.stat().st_size for path in there.values()) < MOST


def test_the_pair_is_in_the_wheel() -> None:
    """Package data name every file of it."""
    package = ROOT / "src" / "sae_transfer"
    patterns = ["assets/**/*"]
    assert f'"{patterns[0]}"' in (ROOT / "pyproject.toml").read_text()
    for path in pair().rglob("*"):
        assert fnmatch(path.relative_to(package).as_posix(), patterns[0])


def test_the_base_sae_transfers_to_chat(records: list[Record]) -> None:
    """On held-out text: CE recovered within 5 points, delta CE at most 0.05 nats higher, explained variance 3 points lower."""
    here, there = record(records, "chat", "base", TEXT), record(records, "base", "base", TEXT)
    assert abs(here["ce_recovered"] - there["ce_recovered"]) <= 0.05
    assert here["delta_ce"] <= there["delta_ce"] + 0.05
    assert here["explained_variance"] >= there["explained_variance"] - 0.03


def test_it_fails_on_drifted_which_still_works(records: list[Record]) -> None:
    """Explained variance at least 25 points lower and delta CE 0.3 nats higher, on a model that loses at most 0.6 nats."""
    here, there = record(records, "drifted", "base", TEXT), record(records, "base", "base", TEXT)
    assert here["ce_clean"] <= there["ce_clean"] + 0.6
    assert here["explained_variance"] <= there["explained_variance"] - 0.25
    assert here["delta_ce"] >= there["delta_ce"] + 0.3


def test_fine_tuning_repairs_it(records: list[Record]) -> None:
    """At least half of the gap on drifted; of the rollout gap on chat, too, where there is one."""
    costs = {
        cell: record(records, *cell, TEXT)["delta_ce"]
        for cell in (("base", "base"), ("drifted", "base"), ("drifted", "tuned-on-drifted"))
    }
    gap = costs["drifted", "base"] - costs["base", "base"]
    assert costs["drifted", "base"] - costs["drifted", "tuned-on-drifted"] >= gap / 2
    base, tuned, chat = (record(records, "chat", sae, ROLLOUTS)["delta_ce"] for sae in ("base", "tuned-on-chat", "chat"))
    assert base - chat < 0.02 or base - tuned >= (base - chat) / 2


def test_the_matrix_has_every_cell(demo_run: Run, records: list[Record]) -> None:
    """Five models, four SAEs, text and three token kinds: the control cells of the base model among them."""
    assert len(records) == 5 * 4 * 4
    assert all(one["delta_ce"] is not None for one in records)
    assert {one["token_kind"] for one in records} == {"all", "user_prompt", "rollout", "control_tokens"}
    assert {one["documents"] for one in records if one["token_kind"] == "all"} == {200}


def test_the_program_says_what_was_found(demo_run: Run) -> None:
    """A table, a sentence a finding, the run directory, the next command; a second time nothing is run."""
    code, out, err = run("demo", "-o", str(demo_run.path))
    assert code == 0, err
    for sentence in found(demo_run):
        assert f"- {sentence}\n" in out
    assert out.rstrip().splitlines()[-2].endswith(": use it")
    assert re.search(r"^does not transfer +SAE base on drifted, text; chats", out, re.MULTILINE)
    assert str(demo_run.path) in err
    assert "nothing was run" in err
    assert "Next: sae-transfer show" in err


def cell(model: str, sae: str, delta_ce: float, ev: float = 0.9, recovered: float = 0.99) -> Record:
    """A record with what a sentence needs."""
    metrics = {"delta_ce": delta_ce, "explained_variance": ev, "ce_recovered": recovered}
    return {"model": model, "sae": sae, "data": "d", "token_kind": "all", **metrics}


HERE = Place("d", "all", "text")


def test_the_verdicts_are_right(demo_run: Run) -> None:
    """At 200 documents the base SAE transfers to chat, LoRA and the quantised model, at most with care on one kind of
    tokens, and nowhere to the drifted one."""
    by_model: dict[str, list[str]] = {}
    for one in transfers(demo_run):
        by_model.setdefault(one["model"], []).append(one["verdict"])
    assert by_model.pop("drifted") == ["does not transfer"] * 4
    assert set(by_model.pop("quantised")) == set(by_model.pop("lora")) == {"transfers"}
    assert sorted(by_model.pop("chat")) == ["transfers", "transfers", "transfers", "transfers with care"]
    assert not by_model


def test_at_five_documents_nothing_is_judged(demo_run: Run) -> None:
    """Not even what seems plain."""
    rows = demo_run.rows()
    few = by_document({name: values[rows["document"] < 5] for name, values in rows.items()})
    calibration, spec = demo_run.manifest.calibration, demo_run.manifest.spec
    own = {sae.name: spec.own_model(sae) for sae in spec.saes}
    answers = answered(cells.records(few, demo_run.cells, calibration, {}), few, own, calibration, {})
    assert len(answers) == 80
    for one in answers:
        assert one["verdict"] == (None if own[one["sae"]] == one["model"] else "not enough data")


def test_a_repair_is_told_with_its_control() -> None:
    """The share of the gap; that the fine-tuned SAE is better on its old model, too; no gap, nothing to repair."""
    records = [cell("b", "s", 0.02), cell("m", "s", 0.52), cell("m", "t", 0.12), cell("b", "t", 0.3)]
    told = repair(records, "s", "t", "b", "m", HERE, goal=("b", "s"))
    assert "80% of the gap is closed" in told
    assert "the gain is the new model's" in told
    better = [*records[:3], cell("b", "t", 0.01)]
    assert "some of the gain is more training" in repair(better, "s", "t", "b", "m", HERE, goal=("b", "s"))
    assert "nothing to repair" in repair(
        [cell("m", "s", 0.03), cell("m", "t", 0.02), cell("b", "s", 0.02)], "s", "t", "b", "m", HERE, goal=("b", "s")
    )
