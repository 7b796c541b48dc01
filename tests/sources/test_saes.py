"""SAEs by release, by Hub repository: against a real server that speaks the Hub's protocol, from fresh processes."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_transfer.errors import UserError
from sae_transfer.sources import resolve, saelens
from sae_transfer.specs import SaeRef
from tests.conftest import save_sae
from tests.running import fresh
from tests.saes.publishing import dictionary_learning, gemma_scope, llama_scope, sparsify
from tests.sources.serving import COMMIT, Hub, serve

LEARNT = "sae_bench_pythia70m_sweep_standard_ctx128_0712:blocks.3.hook_resid_post__trainer_10"
RELEASED = {
    "gpt2": "gpt2-small-res-jb:blocks.1.hook_resid_pre",
    "scaled": "gemma-2b-res-jb:blocks.0.hook_resid_post",
    "llama": "llama_scope_lxr_8x:l1r_8x",
    "learnt": LEARNT,
}
GEMMA = "gemma-scope-2b-pt-res:layer_1/width_16k/average_l0_102"
RESOLVE = """
import json, sys
from sae_transfer.errors import UserError
from sae_transfer.sources import resolve
from sae_transfer.specs import SaeRef
found = {}
for text in sys.argv[2:]:
    try:
        sae = resolve.sae(SaeRef.parse(text), sys.argv[1] == "allow")
        found[text] = {"facts": str(sae.facts), "path": str(sae.at.path), "revision": sae.at.revision, "name": sae.ref.name}
    except UserError as error:
        found[text] = {"error": str(error)}
assert "torch" not in sys.modules and "sae_lens" not in sys.modules
print(json.dumps(found))
"""
COMPARE = """
import sys, warnings, torch
warnings.simplefilter("ignore")
from sae_lens import SAE
from sae_transfer import saes
from sae_transfer.sources import resolve
from sae_transfer.specs import SaeRef
x = 3 * torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
for text in sys.argv[1:]:
    ours = saes.load(resolve.sae(SaeRef.parse(text), True), "cpu")
    theirs = SAE.from_pretrained(*text.split(":"))
    y, active = ours.reconstruct(x)
    assert ours.module.cfg.normalize_activations == theirs.cfg.normalize_activations, text
    torch.testing.assert_close(y, theirs.decode(theirs.encode(x)), atol=1e-5, rtol=1e-5)
    assert torch.equal(active, (theirs.encode(x) > 0).sum(-1).float()) and 0 < active.mean() < 32, text
"""
Asked = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Repositories of the releases above, each with an SAE where SAELens's table says, and one with SAEs at its root."""
    root, repos = tmp_path_factory.mktemp("hub"), dict[str, Path]()
    made = {
        "gpt2": save_sae(root / "made" / "gpt2", 0, normalize_activations="none"),
        "scaled": save_sae(root / "made" / "scaled", 1, "blocks.0.hook_resid_post"),
        "llama": llama_scope(root / "made" / "llama")[0],
        "learnt": dictionary_learning(root / "made" / "learnt", layer=3, submodule_name="resid_post_layer_3")[0],
    }
    for name, text in (RELEASED | {"gemma": GEMMA}).items():
        release = saelens.release(text)
        repos[release.repo] = root / "repos" / name
        shutil.copytree(made.get(name) or gemma_scope(root / "made")[0], repos[release.repo] / release.folder)
    repos["lab/root"] = made["gpt2"]
    folder, _ = sparsify(root / "made" / "sparsify")
    (folder.parent / "config.json").write_text(json.dumps({"model": "lab/pythia", "ctx_len": 77, "dataset": "lab/texts"}))
    (folder / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    repos["lab/pythia"] = folder.parent
    with serve(repos) as server:
        yield server


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Callable[..., str]:
    """A script in a fresh process with an empty cache of its own."""

    def ran(script: str, *args: str, endpoint: str = hub.endpoint) -> str:
        done = fresh("-c", script, *args, env=hub.environment(tmp_path, HF_ENDPOINT=endpoint))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return ran


@pytest.fixture
def ask(run: Callable[..., str]) -> Asked:
    """Resolve SAEs without torch; what is found, or the error's line."""

    def asked(*texts: str, allow: str = "", **settings: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run(RESOLVE, allow, *texts, **settings))
        return found

    return asked


def test_a_release_is_what_sae_lens_loads_by_that_name(run: Callable[..., str]) -> None:
    """Reconstruction, features, and the release's factor folded into the weights where SAELens folds it."""
    run(COMPARE, *RELEASED.values())


def test_a_release_has_what_the_table_says_in_place_of_its_config(ask: Asked) -> None:
    """GPT-2's SAEs are centred, factors are folded, Gemma Scope's path tells the hook point; the commit is kept."""
    texts = [*RELEASED.values(), GEMMA]
    found = ask(*texts, allow="allow")
    facts = {text: found[text].get("facts", str(found[text])) for text in texts}
    assert "centred=True" in facts[RELEASED["gpt2"]]
    assert "folded=" in facts[RELEASED["llama"]]
    assert "normalize_activations='none', prepend_bos=True, context_size=1024" in facts[RELEASED["llama"]]
    assert "trained_on='gemma-2-2b'" in facts[GEMMA]
    assert {found[text]["revision"] for text in texts} == {COMMIT}


@pytest.mark.parametrize(
    ("text", "name"),
    [("hf:lab/root", "root"), ("x=hf:lab/root@v1", "x"), (f"hf:lab/pythia/layers.1@{COMMIT}", "layers.1")],
)
def test_a_folder_of_a_repository_is_the_folder_it_serves(hub: Hub, ask: Asked, text: str, name: str) -> None:
    """At its root or below, at any name of a revision; nothing but what a format reads is asked for."""
    hub.requests.clear()
    found = ask(text)[text]
    assert (found["revision"], found["name"]) == (COMMIT, name)
    asked = {path.rpartition("/")[2] for path in hub.requests if "/resolve/" in path}
    assert asked <= {"cfg.json", "sae_weights.safetensors", "sae.safetensors", "config.json"}
    assert ("context_size=77" in found["facts"]) is ("dataset='lab/texts'" in found["facts"]) is ("pythia" in text)


def test_a_pickle_on_the_hub_is_not_even_downloaded(hub: Hub, ask: Asked) -> None:
    """Unless it is allowed, and then it is."""
    hub.requests.clear()
    assert "can run code when it is opened: give --allow-pickle" in ask(LEARNT)[LEARNT]["error"]
    folder = Path(next(iter(ask(LEARNT, allow="allow").values()))["path"])
    assert (folder / "ae.pt").exists()


def test_an_sae_once_downloaded_needs_no_network(ask: Asked) -> None:
    """Its cache serves it when the Hub can't be reached."""
    first = ask("hf:lab/root", GEMMA)
    assert ask("hf:lab/root", GEMMA, endpoint="http://127.0.0.1:9") == first


def test_what_can_not_be_had_is_one_line(ask: Asked) -> None:
    """An unknown repository, revision, folder or source, by what was asked."""
    said = {
        "hf:lab/none": "lab/none is not on the Hub, or is private",
        "hf:lab/root@v2": "lab/root has no revision 'v2'",
        "hf:lab/root/below": "hf:lab/root/below at c0ffeec holds no SAE that can be read: check the path",
        "hf:lab/pythia": "hf:lab/pythia at c0ffeec holds no SAE that can be read",
        "hf:lab": "'lab' is no place on the Hub",
        "hf:lab/root/../x": "'lab/root/../x' is no place on the Hub",
    }
    for text, found in ask(*said).items():
        assert said[text] in found["error"]
        assert "\n" not in found["error"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpt2-small-res-jp:x", "has no release 'gpt2-small-res-jp': give gpt2-small-res-jb"),
        ("zzz:x", "has no release 'zzz': give release:sae_id of SAELens's table"),
        ("gpt2-small-res-jb:blocks.77.hook_resid_pre", "no SAE 'blocks.77.hook_resid_pre' among its 13: give blocks."),
        ("gemma-scope-2b-pt-transcoders:layer_0/width_16k/average_l0_76", "is in format 'gemma_2_transcoder'"),
        ("temporal-sae-gemma-2-2b:blocks.12.hook_resid_post", "is in format 'temporal'"),
    ],
)
def test_a_release_that_is_not_there_is_refused(text: str, said: str) -> None:
    """With names that are near; before any network is used."""
    with pytest.raises(UserError, match="E-SAE") as error:
        resolve.sae(SaeRef("x", text))
    assert said in str(error.value)


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    """Where it exists, or begins like one."""
    folder = save_sae(tmp_path / "a:b", 0)
    assert resolve.sae(SaeRef("x", str(folder))).at.revision is None
    with pytest.raises(UserError, match="E-PATH"):
        resolve.sae(SaeRef("x", "./a:c"))
