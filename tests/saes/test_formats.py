"""SAE folders of others: computed as their authors define them, or refused with what is wrong."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

from sae_transfer import evaluate, saes
from sae_transfer.errors import UserError
from sae_transfer.sources import resolve
from sae_transfer.sources.formats import FORMATS
from sae_transfer.specs import SaeRef
from tests.conftest import D_MODEL, D_SAE, Pair
from tests.saes.making import X
from tests.saes.publishing import dictionary_learning, gemma_scope, llama_scope, sparsify

LEARNT = (
    "AutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
    "GatedAutoEncoder",
)
SAFE: dict[str, Callable[..., Any]] = {"gemma_scope": gemma_scope, "llama_scope": llama_scope, "sparsify": sparsify}


def load(folder: Path, allow_pickle: bool = False) -> saes.LoadedSae:
    """What `--sae FOLDER` gives."""
    return saes.load(resolve.sae(SaeRef.parse(f"x={folder}"), allow_pickle), "cpu")


@pytest.mark.parametrize("name", [*SAFE, *LEARNT])
def test_a_published_sae_computes_what_its_authors_define(tmp_path: Path, name: str) -> None:
    """Features and reconstruction, in float32, and the facts that its files or its path state."""
    folder, plain = SAFE[name](tmp_path) if name in SAFE else dictionary_learning(tmp_path, name)
    loaded = load(folder, allow_pickle=name in LEARNT)
    features, expected = plain(X)
    y, active = loaded.reconstruct(X)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(active, (features > 0).sum(-1).float())
    assert 0 < active.mean() < D_SAE
    assert (loaded.facts.d_in, loaded.facts.d_sae, str(loaded.facts.hook_point)) == (D_MODEL, D_SAE, "blocks.1.hook_resid_post")
    assert loaded.facts.wants_scaling is (name == "llama_scope")


@pytest.mark.parametrize("name", SAFE)
def test_a_published_sae_is_located_by_its_files(tmp_path: Path, name: str) -> None:
    """Each file that its numbers come from has its hash in run.json."""
    folder, _ = SAFE[name](tmp_path)
    assert set(resolve.sae(SaeRef.parse(f"x={folder}")).at.files) == set(FORMATS[name].files)


def test_every_format_has_a_loader() -> None:
    """The two tables have the same keys, and SAELens has the converters that are asked for by name."""
    assert FORMATS.keys() == saes.FORMATS.keys()
    assert {"gemma_2", "llama_scope", "dictionary_learning_1"} <= NAMED_PRETRAINED_SAE_LOADERS.keys()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_opened_unless_allowed(tmp_path: Path) -> None:
    """One line that names the file, the risk and the option."""
    folder, _ = dictionary_learning(tmp_path)
    with pytest.raises(UserError, match=r"ae\.pt is a pickle, which can run code .*: give --allow-pickle .*E-PICKLE"):
        load(folder)


@pytest.mark.parametrize("forced", ["0", "1"])
def test_an_allowed_pickle_still_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    """Even where the environment tells torch to unpickle everything."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    folder, _ = dictionary_learning(tmp_path)
    torch.save({"encoder.weight": Trap(tmp_path / "sprung")}, folder / "ae.pt")
    with pytest.raises(UserError, match=r"SAE x can't be loaded \(Weights only load failed.*E-SAE"):
        load(folder, allow_pickle=True)
    assert not (tmp_path / "sprung").exists()


def test_arrays_of_python_objects_are_refused_by_their_header(tmp_path: Path) -> None:
    """An .npz can hold pickles too."""
    folder, _ = gemma_scope(tmp_path, b_enc=np.array([Trap(tmp_path / "sprung")], dtype=object))
    with pytest.raises(UserError, match=r"b_enc\.npy holds Python objects, which are a pickle.*E-SAE"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kept", [0, 50, 2000, -1])
def test_truncated_arrays_are_refused(tmp_path: Path, kept: int) -> None:
    """Cut anywhere."""
    file = gemma_scope(tmp_path)[0] / "params.npz"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"truncated or no \.npz file.*E-SAE"):
        load(file.parent)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("layer_1/width_16k/average_l0_7", "does not say its layer and site"),
        ("gemma-scope-2b-pt-res/average_l0_7", "does not say its layer and site"),
        ("gemma-scope-2b-pt-res/layer_1/layer_2", "does not say its layer and site"),
        ("gemma-scope-2b-pt-res/embedding/width_4k", "does not say its layer and site"),
        ("gemma-scope-2b-pt-mlp/layer_1/width_16k", r"blocks\.1\.hook_mlp_out' is not a residual-stream"),
        ("gemma-scope-9b-pt-att/layer_1/width_16k", r"blocks\.1\.attn\.hook_z' is not a residual-stream"),
        ("gemma-scope-2b-pt-transcoders/layer_1/width_16k", r"blocks\.1\.hook_mlp_in' is not a residual-stream"),
    ],
)
def test_a_gemma_scope_path_that_does_not_tell_is_refused(tmp_path: Path, path: str, said: str) -> None:
    """Arrays alone don't say where they belong, and nothing is guessed."""
    folder = tmp_path / path
    folder.parent.mkdir(parents=True)
    gemma_scope(tmp_path / "made")[0].rename(folder)
    with pytest.raises(UserError, match=rf"{said}.*E-HOOK"):
        load(folder)


@pytest.mark.parametrize("name", ["models--google--gemma-scope-9b-it-res/snapshots/c0ffee", "gemma-scope-9b-it-res"])
def test_a_gemma_scope_path_tells_its_model(tmp_path: Path, name: str) -> None:
    """In a clone as in the Hub's cache."""
    folder = tmp_path / name / "layer_20" / "width_16k" / "canonical"
    folder.parent.mkdir(parents=True)
    gemma_scope(tmp_path / "made")[0].rename(folder)
    assert str(load(folder).facts.hook_point) == "blocks.20.hook_resid_post"
    assert load(folder).facts.trained_on == "gemma-2-9b-it"


@pytest.mark.parametrize(
    ("make", "changes", "said"),
    [
        (llama_scope, {"hook_point_in": "blocks.1.hook_mlp_out", "hook_point_out": "blocks.1.hook_mlp_out"}, "E-HOOK"),
        (llama_scope, {"hook_point_out": "blocks.1.hook_mlp_out"}, "it is a transcoder.*E-SAE"),
        (llama_scope, {"jump_relu_threshold": None}, "no jump_relu_threshold.*E-SAE"),
        (llama_scope, {"d_sae": 64}, r"says encoder\.weight \(64, 16\), the weights have \(32, 16\).*E-SAE"),
        (sparsify, {"transcode": True}, "transcode is not supported.*E-SAE"),
        (sparsify, {"signed": True}, "signed is not supported.*E-SAE"),
        (sparsify, {"activation": "groupmax"}, "activation 'groupmax' is not supported.*E-SAE"),
        (sparsify, {"k": None}, "has no k.*E-SAE"),
        (sparsify, {"num_latents": 0, "expansion_factor": 3}, "num_latents is 0.*E-SAE"),
        (dictionary_learning, {"dict_class": "CrossCoder"}, "dict_class 'CrossCoder' is not supported.*E-SAE"),
        (dictionary_learning, {"submodule_name": "mlp_out_layer_1"}, "it sits at 'mlp_out_layer_1'.*E-HOOK"),
        (dictionary_learning, {"layer": None}, "layer is None.*E-HOOK"),
        (dictionary_learning, {"dict_size": 64}, "gives no finite reconstruction|can't be loaded.*E-SAE"),
        (dictionary_learning, {"dict_class": "BatchTopKSAE"}, "can't be loaded.*E-SAE"),
    ],
)
def test_published_configs_that_do_not_fit_are_refused(
    tmp_path: Path, make: Callable[..., Any], changes: dict[str, Any], said: str
) -> None:
    """Other places, other kinds, and shapes that are not the weights'."""
    with pytest.raises(UserError, match=said):
        load(make(tmp_path, **changes)[0], allow_pickle=True)


def test_a_batchtopk_dictionary_whose_threshold_was_never_set_is_refused(tmp_path: Path) -> None:
    """Its features would depend on the batch."""
    folder, _ = dictionary_learning(tmp_path, "BatchTopKSAE")
    torch.save(torch.load(folder / "ae.pt") | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    with pytest.raises(UserError, match=r"its threshold was never set.*E-SAE"):
        load(folder, allow_pickle=True)


@pytest.mark.parametrize("name", ["mlp", "layers.1.mlp", "h.1"])
def test_a_sparsify_folder_is_named_after_its_layer(tmp_path: Path, name: str) -> None:
    """Any other name is another place, or none that is known."""
    folder, _ = sparsify(tmp_path)
    with pytest.raises(UserError, match=r"whose hook point is its folder's name.*E-HOOK"):
        load(folder.rename(folder.parent / name))


def test_published_saes_go_through_a_whole_run(pair: Pair, tmp_path: Path) -> None:
    """Side by side with a SAELens folder, pickles allowed."""
    folders = {name: str(make(tmp_path / name)[0]) for name, make in SAFE.items()}
    folders |= {"learnt": str(dictionary_learning(tmp_path / "learnt")[0]), "sae": str(pair.sae_base)}
    asked = {"rows": str(pair.rows), "out": tmp_path / "run", "context_size": 16}
    run = evaluate({"base": str(pair.base)}, folders, allow_pickle=True, **asked)  # type: ignore[arg-type]
    assert {record["sae"] for record in run.records() if record["kl"] > 0} == {*folders}
    assert run.manifest.sources["sae:learnt"].about["format"] == "dictionary_learning"
