"""Hub ids against a real server that speaks the Hub's protocol, from a fresh process: the client reads its settings once."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_transfer.sources import resolve
from sae_transfer.specs import ModelRef
from tests.conftest import Pair, chat_tokenizer, save_model
from tests.running import fresh
from tests.sources.serving import COMMIT, Hub, serve

RESOLVE = """
import dataclasses, json, sys
from sae_transfer.errors import UserError
from sae_transfer.sources import resolve
from sae_transfer.specs import ModelRef
try:
    found = resolve.model(ModelRef.parse(sys.argv[1]))
    base, adapter = found.base, found.adapter
    print(json.dumps({"facts": dataclasses.asdict(found.facts), "path": str(base.path), "revision": base.revision,
                      "adapter": adapter and adapter.revision}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""

Asked = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with a whole model (and the pickles that lie beside many), a gated one, a failing one and one without weights."""
    root = tmp_path_factory.mktemp("hub")
    model = save_model(root / "model", 0, chat_tokenizer())
    for pickle in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "original/consolidated.00.pth", "code.py"):
        (model / pickle).parent.mkdir(exist_ok=True)
        (model / pickle).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    bare = root / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((model / "config.json").read_text())
    whole = ("tiny", "gated", "failing", "short", "torn")
    with serve({"lab/bare": bare} | {f"lab/{name}": model for name in whole}) as server:
        server.refused |= {"lab/gated": (403, "GatedRepo"), "lab/failing": (403, "")}
        server.halved |= {"lab/short": True, "lab/torn": False}
        yield server


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Asked:
    """Resolve a model in a fresh process with an empty cache of its own, its one line of output read as JSON."""

    def asked(text: str, endpoint: str = hub.endpoint, **settings: str) -> dict[str, Any]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
        env = kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"} | settings
        done = fresh("-c", RESOLVE, text, env=env)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return asked


@pytest.mark.parametrize("text", ["lab/tiny", "x=lab/tiny@v1", f"lab/tiny@{COMMIT}"])
def test_a_hub_id_is_the_folder_it_serves(hub: Hub, ask: Asked, text: str) -> None:
    """At any name of a revision: the facts of the local folder, the commit, and the same bytes of the weights."""
    found, local = ask(text), hub.repos["lab/tiny"]
    assert found["facts"] == vars(resolve.model(ModelRef.parse(f"x={local}")).facts)
    assert found["revision"] == COMMIT
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert (Path(found["path"]) / name).read_bytes() == (local / name).read_bytes()


def test_no_pickle_and_no_code_is_asked_for(hub: Hub, ask: Asked) -> None:
    """Only configs, safetensors and tokenizer files leave the server."""
    hub.requests.clear()
    found = ask("lab/tiny")
    asked = {path.rpartition("/")[2] for path in hub.requests if "/resolve/" in path}
    assert "model.safetensors" in asked
    assert {Path(name).suffix for name in asked} <= {".json", ".safetensors", ".jinja"}
    assert {path.name for path in Path(found["path"]).rglob("*")} == asked


def test_a_model_once_downloaded_needs_no_network(ask: Asked) -> None:
    """The cache serves a model when the Hub can't be reached, and when the user says that it shall not be."""
    first = ask("lab/tiny")
    assert ask("lab/tiny", endpoint="http://127.0.0.1:9") == first
    assert ask("lab/tiny", HF_HUB_OFFLINE="1") == first


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lab/none", "lab/none is not on the Hub, or is private"),
        ("lab/tiny@v2", "lab/tiny has no revision 'v2'"),
        ("lab/gated", "lab/gated is gated"),
        ("lab/failing", "lab/failing could not be downloaded (403 Forbidden"),
        ("lab/short", "lab/short could not be downloaded (Consistency check failed"),
        ("lab/torn", "lab/torn could not be downloaded (peer closed connection"),
        ("lab/-tiny-", "lab/-tiny- is no Hub id"),
    ],
)
def test_what_the_hub_refuses_is_one_line(ask: Asked, text: str, said: str) -> None:
    """What was asked for, why it can't be had and what to do, under E-HUB."""
    error = ask(text)["error"]
    assert error.startswith(said)
    assert error.endswith("[E-HUB]")
    assert "\n" not in error


@pytest.mark.parametrize("settings", [{"endpoint": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}], ids=str)
def test_a_hub_that_is_down_is_one_line(ask: Asked, settings: dict[str, str]) -> None:
    """No connection, or none allowed, and nothing in the cache."""
    said = "lab/tiny is not in the cache and the Hub can't be reached: check the network [E-HUB]"
    assert ask("lab/tiny", **settings)["error"] == said


def test_a_repository_without_safetensors_is_refused(ask: Asked) -> None:
    """A repository with a config and no weights is E-MODEL, as a local folder is."""
    assert "holds no *.safetensors" in ask("lab/bare")["error"]


def test_a_path_is_never_looked_up(hub: Hub, ask: Asked, pair: Pair) -> None:
    """A folder that exists, or a source that begins like a path, sends no request."""
    hub.requests.clear()
    assert ask(f"x={pair.base}")["revision"] is None
    assert "[E-PATH]" in ask("./lab/tiny")["error"]
    assert hub.requests == []
