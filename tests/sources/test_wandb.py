"""W&B artifacts against a real server that speaks the client's protocol, from fresh processes with a home of their own."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_transfer.errors import UserError
from sae_transfer.sources import resolve
from sae_transfer.specs import SaeRef
from tests.conftest import save_sae
from tests.running import fresh
from tests.sources.serving_wandb import DIGEST, Server, serve

RESOLVE = """
import json, sys
from sae_transfer.errors import UserError
from sae_transfer.sources import resolve
from sae_transfer.specs import SaeRef
try:
    sae = resolve.sae(SaeRef.parse(sys.argv[1]))
    print(json.dumps({"path": str(sae.at.path), "revision": sae.at.revision, "name": sae.ref.name, "facts": str(sae.facts)}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""
TEXT = "wandb:lab/transfer/sae:v3"
Asked = Callable[..., dict[str, Any]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One artifact with more files than an SAE needs."""
    folder = save_sae(tmp_path / "sae", 0)
    (folder / "sparsity.safetensors").write_bytes(b"not needed")
    with serve({"lab/transfer/sae:v3": folder, "lab/transfer/sae:latest": folder}) as running:
        yield running


@pytest.fixture
def ask(server: Server, tmp_path: Path) -> Asked:
    """Resolve an SAE in a fresh process; nothing may be printed but its one line."""

    def asked(text: str, key: str = "0" * 40, endpoint: str = server.endpoint) -> dict[str, Any]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and "proxy" not in k.lower()}
        home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "NO_PROXY": "*"}
        login = {"WANDB_API_KEY": key} if key else {}
        done = fresh("-c", RESOLVE, text, env=kept | home | login | {"WANDB_BASE_URL": endpoint})
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return asked


@pytest.mark.parametrize("version", ["v3", "latest"])
def test_an_artifact_is_the_folder_it_holds(server: Server, ask: Asked, version: str) -> None:
    """Its facts and bytes, under its version and digest; only what a format reads is downloaded."""
    found = ask(f"wandb:lab/transfer/sae:{version}")
    assert "error" not in found, found
    folder, own = Path(found["path"]), server.artifacts["lab/transfer/sae:v3"]
    assert found["revision"] == f"v3-{DIGEST}"
    assert found["facts"] == str(resolve.sae(SaeRef("x", str(own))).facts)
    assert {path.name for path in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    assert all(path.read_bytes() == (own / path.name).read_bytes() for path in folder.iterdir())


def test_a_numbered_version_once_downloaded_needs_no_network(server: Server, ask: Asked) -> None:
    """Nor a login."""
    first = ask(TEXT)
    assert ask(TEXT, key="", endpoint="http://127.0.0.1:9") == first


def test_a_download_in_part_is_not_kept(server: Server, ask: Asked) -> None:
    """It is refused, and the next try gets the whole."""
    server.halved.add("sae_weights.safetensors")
    assert "wandb:lab/transfer/sae:v3 could not be had" in ask(TEXT)["error"]
    server.halved.clear()
    assert ask(TEXT)["revision"] == f"v3-{DIGEST}"


def test_without_a_login_nothing_is_asked(server: Server, ask: Asked) -> None:
    """Neither the user nor the server."""
    assert ask(TEXT, key="")["error"] == "wandb:lab/transfer/sae:v3 needs a login: run: wandb login [E-WANDB]"
    assert server.requests == []


def test_a_server_that_is_down_is_one_line(ask: Asked) -> None:
    """After seconds, not hours."""
    error = ask(TEXT, endpoint="http://127.0.0.1:9")["error"]
    assert "wandb:lab/transfer/sae:v3 could not be had (" in error
    assert error.endswith("check the name, the login and the network [E-WANDB]")


def test_an_artifact_that_is_not_there_is_one_line(ask: Asked) -> None:
    """By its name."""
    error = ask("wandb:lab/transfer/other:v3")["error"]
    assert error.startswith("wandb:lab/transfer/other:v3 could not be had (")
    assert error.endswith("[E-WANDB]")


@pytest.mark.parametrize("text", ["wandb:", "wandb:sae", "wandb:lab/sae:v1", "wandb:lab/p/sae", "wandb:lab/../sae:v1/x"])
def test_what_is_no_artifact_is_refused(text: str) -> None:
    """Before wandb is imported."""
    with pytest.raises(UserError, match=r"is no artifact: give wandb:entity/project/artifact:version \[E-WANDB\]"):
        resolve.sae(SaeRef("x", text))


def test_a_cache_is_a_copy(server: Server, ask: Asked) -> None:
    """What is in it stays when the server has another thing."""
    first = ask(TEXT)
    shutil.rmtree(server.artifacts["lab/transfer/sae:v3"])
    assert ask(TEXT) == first
