"""`sae-transfer drift` as a user has it, on the demo pair."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from sae_transfer import UserError, drift
from sae_transfer.cli import measuring
from sae_transfer.rows import DRIFT_COLUMNS
from sae_transfer.workflows import demo
from tests.conftest import Pair, save_model, write_jsonl
from tests.running import run


def command(*models: str, layers: tuple[int, ...] = (1, 2)) -> list[str]:
    """The demo's models on 40 of its documents."""
    named = demo.models(demo.pair())
    words = [word for name in models for word in ("--model", f"{name}={named[name]}")]
    words += [word for layer in layers for word in ("--layer", str(layer))]
    return ["drift", *words, "--text", str(demo.pair() / "text.jsonl"), "--max-documents", "40"]


def test_two_layers_of_the_demo_pair(tmp_path: Path) -> None:
    """A record for each model and layer; chat is forecast to transfer, drifted not; the folder keeps it, and gives it back."""
    arguments = [*command("base", "chat", "drifted"), "-o", str(tmp_path / "drift")]
    status, out, err = run(*arguments)
    assert status == 0, err
    assert "chat: where it moved most (text all, blocks.2.hook_resid_pre) the stream keeps its direction" in out
    assert "an SAE of base probably does not transfer" in out.splitlines()[-1]
    again, text, said = run(*arguments, "--format", "json")
    records: list[dict[str, Any]] = json.loads(text)
    assert (again, said.startswith("already measured")) == (0, True)
    assert [(r["model"], r["hook_point"][7]) for r in records] == [(m, n) for m in ("chat", "drifted") for n in "12"]
    assert all(list(record) == list(DRIFT_COLUMNS) for record in records)
    assert records[1]["cosine"] > 0.98
    assert records[3]["norm_ratio"] > 100
    kept = json.loads((tmp_path / "drift" / "drift.json").read_text())
    assert kept["drift"] == records
    assert kept["session"]["versions"]["torch"]
    assert kept["sources"]["model:chat"]["files"]


def test_python_gives_the_same_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same names, the same records, an empty folder."""
    monkeypatch.chdir(tmp_path)
    named = demo.models(demo.pair())
    models = {name: named[name] for name in ("base", "lora")}
    found = drift(models, text=str(demo.pair() / "text.jsonl"), max_documents=40, layers=[1, 2])
    printed = json.loads(run(*command("base", "lora"), "--format", "json")[1])
    assert json.loads(json.dumps(found.records())) == printed
    assert found.table()["cosine"].tolist() == [record["cosine"] for record in printed]
    assert not list(tmp_path.iterdir())


def test_other_data_change_the_forecast() -> None:
    """On chats the chat model moves further than on text, and the sentence says where."""
    named = demo.models(demo.pair())
    models = {name: named[name] for name in ("base", "chat")}
    text, chats = str(demo.pair() / "text.jsonl"), str(demo.pair() / "chats.jsonl")
    alone = drift(models, text=text, max_documents=40, layers=2).forecasts()
    both = drift(models, text=text, chats=chats, max_documents=40, layers=2).forecasts()
    assert "text all" in alone[0]
    assert "chats" in both[0]


def test_every_layer_is_the_default_and_ends_behind_the_last(pair: Pair) -> None:
    """Three layers have four places; --layer 3 asks for the last alone, and gives the same numbers."""
    models, rows = {"base": str(pair.base), "chat": str(pair.chat)}, str(pair.rows)
    every = drift(models, rows=rows).records()
    assert [record["hook_point"] for record in every] == [
        *(f"blocks.{layer}.hook_resid_pre" for layer in range(3)),
        "blocks.2.hook_resid_post",
    ]
    (last,) = drift(models, rows=rows, layers=3).records()
    assert last["cosine"] == pytest.approx(every[-1]["cosine"], rel=1e-6)


def test_a_model_that_lacks_a_token_has_no_number(pair: Pair, tmp_path: Path) -> None:
    """Its places are null, and the note and the forecast say why."""
    tokenizer_file = pair.base / "tokenizer.json"
    save_model(tmp_path / "small", 2, vocab_size=100)
    assert tokenizer_file.exists()
    models = {"base": str(pair.base), "small": str(tmp_path / "small")}
    found = drift(models, text=str(pair.text), layers=1)
    (record,) = found.records()
    assert (record["positions"], record["cosine"]) == (None, None)
    assert "outside the vocabulary of small" in found.forecasts()[0]


MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "drift is between two models": ("E-SPEC", {"models": ["base"]}),
    "--layer 9: model base has layers 0 to 2": ("E-LAYER", {"layers": 9}),
    "--layer: a layer stands twice": ("E-SPEC", {"layers": [1, 1]}),
    "--layer -1": ("E-OPTION", {"layers": -1}),
    "nothing given for --text": ("E-SPEC", {"rows": None}),
    "has width 16, wide has 32": ("E-WIDTH", {"models": ["base", "wide"]}),
    "holds something else": ("E-RUN", {"out": "."}),
}


@pytest.mark.parametrize("says", MISTAKES)
def test_a_mistake_is_named(pair: Pair, tmp_path: Path, says: str) -> None:
    """With its code, before anything is measured."""
    code, changes = MISTAKES[says]
    save_model(tmp_path / "wide", 0, hidden_size=32)
    there = {"base": str(pair.base), "chat": str(pair.chat), "wide": str(tmp_path / "wide")}
    asked = {"models": ["base", "chat"], "rows": str(pair.rows)} | changes
    asked["models"] = {name: there[name] for name in asked["models"]}
    if "out" in asked:
        asked["out"] = tmp_path
    with pytest.raises(UserError, match=says) as error:
        drift(**asked)
    assert error.value.code == code


def test_a_folder_of_another_drift_is_refused(pair: Pair, tmp_path: Path) -> None:
    """Another command, or files that have changed since; nothing is overwritten."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": [1, 2, 3, 4]}] * 3)
    models, out = {"base": str(pair.base), "chat": str(pair.chat)}, tmp_path / "drift"
    drift(models, rows=str(rows), layers=1, out=out)
    with pytest.raises(UserError, match="of another command"):
        drift(models, rows=str(rows), layers=2, out=out)
    write_jsonl(rows, [{"tokens": [1, 2, 3]}] * 3)
    with pytest.raises(UserError, match="have changed since"):
        drift(models, rows=str(rows), layers=1, out=out)


def test_a_mistake_leaves_no_folder(pair: Pair, tmp_path: Path) -> None:
    """What was made for the result is removed again."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"tokens": [1, 100_000]}])
    with pytest.raises(UserError, match="outside the vocabulary"):
        drift({"base": str(pair.base), "chat": str(pair.chat)}, rows=str(rows), out=tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_the_command_line_has_the_options_and_defaults_of_the_function() -> None:
    """The same names on both sides; only the shell has a format to print in."""
    python = {name: option.default for name, option in inspect.signature(drift).parameters.items()}
    shell = {name: option.default for name, option in inspect.signature(measuring.drift).parameters.items()}
    assert shell.pop("token_kinds").split(",") == list(python.pop("token_kinds"))
    assert shell.pop("format") == "table"
    renamed = {"models": "model", "layers": "layer"}
    assert {renamed.get(name, name): default for name, default in python.items() if name != "progress"} == shell
