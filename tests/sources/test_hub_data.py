"""Data sets on the Hub, through `datasets` and a real server, from a fresh process: the client reads its settings once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import TEXTS, Pair, save_sae, write_jsonl
from tests.running import fresh
from tests.sources.serving import COMMIT, Hub, serve

READ = """
import json, sys
from sae_transfer.data import chat, prompts, text
from sae_transfer.errors import UserError
from sae_transfer.sources import resolve
from sae_transfer.specs import DataRef
kind, source, limit = sys.argv[1:]
try:
    found = resolve.data(DataRef.parse(kind, source))
    limit = int(limit) or None
    if kind == "text":
        read = list(text.documents(found.source, limit))
    elif kind == "chats":
        read = [[message.content for message in messages] for messages in chat.read(found.source, limit)]
    else:
        read = prompts.instructions(found.source, limit)[0]
    print(json.dumps({"read": read, "revision": found.at.revision, "path": str(found.at.path)}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""
EVALUATE = """
import json, sys, sae_transfer
try:
    model, sae, text, limit, out = sys.argv[1:]
    run = sae_transfer.evaluate(model, sae, text=text, max_documents=int(limit) or None, out=out)
    print(json.dumps({"sources": {name: vars(at) for name, at in run.manifest.sources.items()}, "records": run.records()}))
except sae_transfer.UserError as error:
    print(json.dumps({"error": str(error)}))
"""
OWN = """
import json, sys, sae_transfer
model, sae, out = sys.argv[1:]
try:
    first, again = (sae_transfer.evaluate(model, sae, out=out) for _ in range(2))
    named = sae_transfer.evaluate(model, sae, text="lab/plain", max_documents=1000, out=out)
    runs = [(str(run.manifest.spec.data), run.manifest.sessions[0].started.isoformat()) for run in (first, again, named)]
    print(json.dumps({"runs": runs, "about": first.manifest.sources["sae:sae"].about, "notes": first.footnotes()}))
except sae_transfer.UserError as error:
    print(json.dumps({"error": str(error), "torch": "torch" in sys.modules}))
"""
ALPACA = [{"instruction": f"Do {i}", "input": "on this" if i % 5 == 0 else "", "output": f"Done {i}"} for i in range(40)]

Asked = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with a data set of texts (two configurations, or one), of answers, of another column, and one that runs code."""
    root = tmp_path_factory.mktemp("data_sets")
    repos = {f"lab/{name}": root / name for name in ("texts", "plain", "alpaca", "odd", "script", "empty")}
    for folder in repos.values():
        folder.mkdir()
    for name, texts in (("whole", TEXTS), ("few", TEXTS[:3])):
        (root / "texts" / name).mkdir()
        pq.write_table(pa.table({"text": texts}), root / "texts" / name / "train.parquet")
    paths = "\n".join(f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in ("whole", "few"))
    (root / "texts" / "README.md").write_text(f"---\nconfigs:\n{paths}\n---\n")
    write_jsonl(root / "plain" / "train.jsonl", [{"text": text} for text in TEXTS])
    write_jsonl(root / "alpaca" / "train.jsonl", ALPACA)
    write_jsonl(root / "odd" / "test.jsonl", [{"content": "text"}])
    (root / "script" / "script.py").write_text("raise SystemExit")
    with serve(repos) as server:
        yield server


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Asked:
    """Run code in a fresh process with an empty cache of its own, its one line of output read as JSON."""

    def asked(code: str, *args: str, **settings: str) -> dict[str, Any]:
        done = fresh("-c", code, *args, env=hub.environment(tmp_path / "home", **settings))
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return asked


@pytest.mark.parametrize(
    ("source", "texts"), [("lab/texts:whole", TEXTS), ("a=lab/texts:few@v1", TEXTS[:3]), ("lab/texts:few:train", TEXTS[:3])]
)
def test_text_is_the_first_documents_of_a_stream(ask: Asked, source: str, texts: list[str]) -> None:
    """In the data set's own order, of the configuration, split and revision that are named; the commit is kept."""
    found = ask(READ, "text", source, "5")
    assert (found["read"], found["revision"]) == (texts[:5], COMMIT)


@pytest.mark.parametrize("kind", ["chats", "instructions"])
def test_chats_are_filtered_and_shuffled_as_published(ask: Asked, kind: str) -> None:
    """Alpaca's records in the order that seed 42 gives them all, and of those the ones without an input."""
    shuffled = [ALPACA[row] for row in np.random.default_rng(42).permutation(len(ALPACA))]
    expected = [[record["instruction"], record["output"]] for record in shuffled if not record["input"]]
    found = ask(READ, kind, "lab/alpaca", "7")["read"]
    assert found == [chat if kind == "chats" else chat[0] for chat in expected][:7]


@pytest.mark.parametrize(
    ("kind", "source", "said"),
    [
        ("text", "lab/none", "lab/none is not on the Hub, or is private"),
        ("text", "lab/texts:few@v2", "lab/texts has no revision 'v2'"),
        ("text", "lab/texts:many", "can't be read (BuilderConfig 'many' not found"),
        ("text", "lab/texts", "can't be read (Config name is missing"),
        ("text", "lab/texts:few:test", "can't be read (Bad split: test"),
        ("text", "lab/odd::test", "record 0 has no 'text' that is a string"),
        ("chats", "lab/odd::test", "record 0 has neither instruction and completion nor messages"),
        ("instructions", "lab/odd::test", "record 0 has no instruction that is a string"),
        ("text", "lab/script", "can't be read (Dataset scripts are no longer supported"),
        ("chats", "lab/empty", "can't be read ("),
        ("text", "lab/missing.jsonl", "does not exist"),
        ("rows", "lab/texts", "does not exist"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_one_line(ask: Asked, kind: str, source: str, said: str) -> None:
    """A name, revision, configuration, split or column that is not there; code is never run."""
    error = ask(READ, kind, source, "5")["error"]
    assert said in error
    assert "\n" not in error


@pytest.mark.parametrize("settings", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}], ids=str)
def test_a_hub_that_is_down_is_one_line(ask: Asked, settings: dict[str, str]) -> None:
    """No connection, or none allowed."""
    assert ask(READ, "text", "lab/texts:few", "5", **settings)["error"].endswith(
        "the Hub can't be reached: check the network [E-HUB]"
    )


def test_a_streamed_data_set_needs_an_end(ask: Asked, pair: Pair, tmp_path: Path) -> None:
    """--max-documents says where; run.json then keeps the commit, and the numbers are those of the same text in a file."""
    found = ask(EVALUATE, str(pair.base), str(pair.sae_base), "lab/texts:whole", "0", str(tmp_path / "none"))
    assert "give --max-documents N [E-SPEC]" in found["error"]
    found = ask(EVALUATE, str(pair.base), str(pair.sae_base), "lab/texts:whole", "40", str(tmp_path / "hub"))
    local = ask(EVALUATE, str(pair.base), str(pair.sae_base), str(pair.text), "40", str(tmp_path / "local"))
    assert found["sources"]["data:text"]["revision"] == COMMIT
    assert found["records"] == local["records"]


def test_without_data_the_text_is_what_the_sae_records(ask: Asked, pair: Pair, tmp_path: Path) -> None:
    """The same command finds the run again, and so does one that names the data set; a footnote says whose it is."""
    sae = save_sae(tmp_path / "sae", 0, metadata={"dataset_path": "lab/plain"})
    found = ask(OWN, str(pair.base), str(sae), str(tmp_path / "run"))
    assert len({tuple(run) for run in found["runs"]}) == 1, found
    assert "source='lab/plain'" in found["runs"][0][0]
    assert found["about"]["dataset"] == "lab/plain"
    assert f"text: the first {len(TEXTS)} documents of lab/plain, the training data by the config of sae." in found["notes"]


@pytest.mark.parametrize(("name", "settings"), [("lab/none", {}), ("lab/plain", {"HF_HUB_OFFLINE": "1"})])
def test_a_recorded_text_that_cannot_be_had_is_one_line(
    ask: Asked, pair: Pair, tmp_path: Path, name: str, settings: dict[str, str]
) -> None:
    """Before a tensor library is loaded; the user, who named no data set, is told to."""
    sae = save_sae(tmp_path / "sae", 0, metadata={"dataset_path": name})
    found = ask(OWN, str(pair.base), str(sae), str(tmp_path / "run"), **settings)
    assert found["error"].startswith(f"no data given, and {name} is not ")
    assert (": give --text, or " in found["error"], found["torch"]) == (True, False)
