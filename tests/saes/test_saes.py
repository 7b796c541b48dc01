"""SAE folders made by sae-lens itself: loaded exactly, or refused with what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_transfer import saes
from sae_transfer.errors import UserError
from sae_transfer.sources import resolve
from sae_transfer.specs import SaeRef
from tests.conftest import D_MODEL, D_SAE
from tests.saes.making import ARCHITECTURES, TRAINED, X, save, train


def load(folder: Path) -> saes.LoadedSae:
    """What `--sae FOLDER` gives."""
    return saes.load(resolve.sae(SaeRef.parse(f"x={folder}")), "cpu")


def flat(folder: Path, **changes: Any) -> Path:
    """The folder's cfg.json as SAELens 3.x wrote it: no metadata, other names; a change to None drops a key."""
    new = json.loads((folder / "cfg.json").read_text())
    old = {
        "architecture": new["architecture"],
        "d_in": new["d_in"],
        "d_sae": new["d_sae"],
        "dtype": "float32",
        "device": "cpu",
        "model_name": "tiny",
        "hook_name": "blocks.1.hook_resid_pre",
        "hook_layer": 1,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "apply_b_dec_to_input": new["apply_b_dec_to_input"],
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": "3.13.0",
        "prepend_bos": True,
        "dataset_path": "",
        "context_size": 16,
        "normalize_activations": new["normalize_activations"],
    }
    return rewrite(folder, old | changes)


def rewrite(folder: Path, config: dict[str, Any]) -> Path:
    """Another cfg.json."""
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def change(folder: Path, **changes: Any) -> Path:
    """Other values in cfg.json; None drops a key."""
    return rewrite(folder, json.loads((folder / "cfg.json").read_text()) | changes)


def put(folder: Path, name: str, weight: Tensor | None) -> Path:
    """Another tensor among the weights, or one less."""
    weights = load_file(folder / "sae_weights.safetensors")
    weights.pop(name, None)
    save_file(weights | ({} if weight is None else {name: weight}), folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("changes", [{}, {"normalize_activations": "layer_norm"}, {"apply_b_dec_to_input": False}], ids=str)
@pytest.mark.parametrize("architecture", ["standard", *ARCHITECTURES])
def test_an_sae_reconstructs_as_sae_lens_does(tmp_path: Path, architecture: str, changes: dict[str, Any]) -> None:
    """Reconstruction and active features are those of sae-lens's own class, forward and all."""
    folder = save(tmp_path, architecture, **changes)
    loaded, own = load(folder), SAE.load_from_disk(folder)
    y, active = loaded.reconstruct(X)
    torch.testing.assert_close(y, own(X), atol=0, rtol=0)
    assert torch.equal(active, (own.encode(X) > 0).sum(-1).float())
    assert 0 < active.mean() < D_SAE
    assert loaded.facts.architecture == architecture


@pytest.mark.parametrize("architecture", TRAINED)
def test_a_trained_sae_is_what_sae_lens_saves_for_inference(tmp_path: Path, architecture: str) -> None:
    """Encoded, decoded as by SAELens; BatchTopK and Matryoshka SAEs are JumpReLU SAEs by their threshold."""
    train(architecture).save_inference_model(tmp_path)
    loaded, own = load(tmp_path), SAE.load_from_disk(tmp_path)
    y, active = loaded.reconstruct(X)
    torch.testing.assert_close(y, own.decode(own.encode(X)), atol=0, rtol=0)
    assert torch.equal(active, (own.encode(X) > 0).sum(-1).float())
    assert loaded.facts.architecture == ("jumprelu" if "batchtopk" in architecture else architecture)


@pytest.mark.parametrize("architecture", TRAINED)
def test_a_position_is_encoded_alike_in_every_batch(tmp_path: Path, architecture: str) -> None:
    """Alone, or beside others: no architecture chooses its features by the batch."""
    train(architecture).save_inference_model(tmp_path)
    loaded = load(tmp_path)
    y, active = loaded.reconstruct(X)
    for at in (0, 17):
        torch.testing.assert_close(loaded.reconstruct(X[at : at + 1])[0], y[at : at + 1])
        assert torch.equal(loaded.reconstruct(10 * X[: at + 1])[1][at], loaded.reconstruct(10 * X[at : at + 1])[1][0])
    assert 0 < active.mean() < D_SAE


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_checkpoint_that_chooses_by_the_batch_is_refused(tmp_path: Path, architecture: str) -> None:
    """As it is saved for going on with training, with what to do."""
    train(architecture).save_model(tmp_path)
    with pytest.raises(UserError, match=rf"a {architecture} SAE .* over a whole batch: .*save_inference_model.*E-SAE"):
        load(tmp_path)


OTHERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder", "crosscoder")


@pytest.mark.parametrize("architecture", [*OTHERS, "temporal", "matching_pursuit", "abstopk"])
def test_what_is_no_autoencoder_of_one_position_is_refused(tmp_path: Path, architecture: str) -> None:
    """What maps one place to another, looks at other positions, or has features of either sign: one line, by its name."""
    with pytest.raises(UserError, match=rf"architecture '{architecture}' is not supported: use standard, .*E-SAE"):
        load(change(save(tmp_path, "standard"), architecture=architecture))


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_positions_in_chunks_are_positions_together(tmp_path: Path, architecture: str) -> None:
    """A wide SAE takes a few positions at a time and gives each its own reconstruction, in order."""
    wide = load(save(tmp_path, architecture, d_in=4, d_sae=2**16, normalize_activations="layer_norm"))
    x = torch.randn(saes.FEATURE_BYTES // 2**18 + 3, 4, generator=torch.Generator().manual_seed(0))
    y, active = wide.reconstruct(x)
    for rows in (slice(0, 3), slice(-6, None)):
        features = wide.module.encode(x[rows])
        torch.testing.assert_close(y[rows], wide.module.decode(features), atol=1e-4, rtol=1e-4)
        assert torch.equal(active[rows], (features > 0).sum(-1).float())
    assert (y.shape, active.shape) == (x.shape, x.shape[:1])


def test_no_positions_are_no_reconstructions(tmp_path: Path) -> None:
    """An empty batch goes through."""
    y, active = load(save(tmp_path, "standard")).reconstruct(X[:0])
    assert (y.shape, active.shape) == ((0, D_MODEL), (0,))


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
@pytest.mark.parametrize("biased", [True, False])
def test_the_3x_layout_gives_the_numbers_of_the_6x_one(tmp_path: Path, architecture: str, biased: bool) -> None:
    """The same weights under a flat cfg.json are the same SAE with the same facts."""
    folder = save(tmp_path, architecture, apply_b_dec_to_input=biased)
    new = load(folder)
    old = load(flat(folder))
    assert old.facts == new.facts
    for found, expected in zip(old.reconstruct(X), new.reconstruct(X), strict=True):
        assert torch.equal(found, expected)


def test_the_3x_layout_of_topk_is_a_standard_sae_with_another_activation(tmp_path: Path) -> None:
    """SAELens 3.x wrote topk as activation_fn_str, its k among the kwargs."""
    folder = save(tmp_path, "topk")
    new = load(folder)
    old = load(flat(folder, architecture="standard", activation_fn_str="topk", activation_fn_kwargs={"k": 5}))
    assert old.facts == new.facts
    assert torch.equal(old.reconstruct(X)[0], new.reconstruct(X)[0])


@pytest.mark.parametrize(("written", "meant"), [(True, "expected_average_only_in"), (False, "none"), (None, "none")])
def test_the_oldest_layouts_say_normalisation_by_yes_or_no(tmp_path: Path, written: bool | None, meant: str) -> None:
    """And call the hook point by another name."""
    folder = save(tmp_path, "standard")
    names = {"hook_name": None, "hook_point": "blocks.1.hook_resid_pre", "hook_layer": None, "hook_point_layer": 1}
    loaded = load(flat(folder, normalize_activations=written, **names))
    assert (loaded.facts.normalize_activations, loaded.module.cfg.normalize_activations) == (meant, meant)
    assert loaded.facts.wants_scaling is (meant != "none")
    assert str(loaded.facts.hook_point) == "blocks.1.hook_resid_pre"


@pytest.mark.parametrize("k", [1, 7, D_SAE])
@pytest.mark.parametrize("rescaled", [True, False])
def test_topk_keeps_k_features(tmp_path: Path, k: int, rescaled: bool) -> None:
    """No position has more than k active features, and every one has k while enough are positive."""
    loaded = load(save(tmp_path, "topk", k=k, rescale_acts_by_decoder_norm=rescaled))
    _, active = loaded.reconstruct(X)
    assert active.max() <= k
    assert (active == k).all() or k > 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_dtype_are_computed_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """What the file holds is widened or narrowed once, at load."""
    folder = save(tmp_path, "standard")
    for name, weight in load_file(folder / "sae_weights.safetensors").items():
        put(folder, name, weight.to(dtype))
    loaded = load(change(folder, dtype=str(dtype).removeprefix("torch.")))
    assert {weight.dtype for weight in loaded.module.state_dict().values()} == {torch.float32}
    assert loaded.reconstruct(X)[0].dtype == torch.float32


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
@pytest.mark.parametrize("activation", ["tanh-relu", "gelu"])
def test_an_activation_that_would_be_lost_is_refused(tmp_path: Path, architecture: str, activation: str) -> None:
    """SAELens 6.x computes ReLU whatever an old config says."""
    with pytest.raises(UserError, match=rf"activation '{activation}' can't be loaded exactly.*E-SAE"):
        load(flat(save(tmp_path, architecture), activation_fn_str=activation))


@pytest.mark.parametrize("layout", ["3.x", "6.x"])
def test_topk_without_k_is_refused(tmp_path: Path, layout: str) -> None:
    """A k that the config lacks is not made up, though sae-lens has a default for it."""
    folder = save(tmp_path, "topk", d_sae=128)
    if layout == "3.x":
        flat(folder, architecture="standard", activation_fn_str="topk")
    else:
        change(folder, k=None)
    with pytest.raises(UserError, match=r"E-SAE"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["W_enc", "b_dec", "threshold"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    """One NaN or infinity in any tensor is E-NAN, by the tensor's name."""
    folder = save(tmp_path, "jumprelu")
    weight = load_file(folder / "sae_weights.safetensors")[name]
    weight.view(-1)[3] = value
    with pytest.raises(UserError, match=rf"SAE x: {name} holds values that are not finite.*E-NAN"):
        load(put(folder, name, weight))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_in": 24}, r"says W_enc \(24, 32\), the weights have \(16, 32\).*E-SAE"),
        ({"d_sae": 64}, r"says W_enc \(16, 64\), the weights have \(16, 32\).*E-SAE"),
        ({"d_in": None}, r"has no d_in.*E-SAE"),
        ({"d_sae": "32"}, r"d_sae is '32'.*E-SAE"),
        ({"d_in": True}, r"E-SAE"),
        ({"apply_b_dec_to_input": "false"}, r"apply_b_dec_to_input is 'false', neither true nor false.*E-SAE"),
        ({"rescale_acts_by_decoder_norm": "false"}, r"decoder_norm is 'false', neither true nor false.*E-SAE"),
        ({"k": 33}, r"k is 33, of 32 features.*E-SAE"),
        ({"activation_fn_kwargs": {"k": "2"}}, r"k is '2', of 32 features.*E-SAE"),
        ({"reshape_activations": "hook_z"}, r"E-SAE"),
        ({"architecture": "transcoder"}, r"architecture 'transcoder' is not supported.*E-SAE"),
        ({"architecture": "jumprelu"}, r"E-SAE"),
        ({"architecture": "gated"}, r"E-SAE"),
        ({"normalize_activations": "covariance_whitening"}, r"'covariance_whitening' is not supported.*E-SAE"),
        ({"metadata": {"hook_name": "blocks.1.hook_resid_pre", "hook_layer": 2}}, r"hook_layer 2 disagree.*E-HOOK"),
        ({"metadata": {"hook_name": "blocks.1.hook_mlp_out"}}, r"no.* residual-stream hook point.*E-HOOK"),
        ({"metadata": {}}, r"E-HOOK"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """What a config says is compared with the weights, with itself and with what can be computed."""
    with pytest.raises(UserError, match=said):
        load(change(save(tmp_path, "standard"), **changes))


@pytest.mark.parametrize(
    ("name", "weight"), [("b_enc", None), ("W_dec", None), ("extra", torch.ones(2)), ("b_dec", torch.ones(3))]
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, name: str, weight: Tensor | None) -> None:
    """A tensor too few, one too many, or one of another shape."""
    with pytest.raises(UserError, match=r"E-SAE"):
        load(put(save(tmp_path, "standard"), name, weight))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever else lies in cfg.json."""
    (save(tmp_path, "standard") / "cfg.json").write_bytes(content)
    with pytest.raises(UserError, match=r"cfg\.json (is no JSON|holds no JSON object).*E-SAE"):
        load(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    """Cut anywhere, in its header or one byte before its end."""
    file = save(tmp_path, "standard") / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"truncated or no safetensors file.*E-SAE"):
        load(tmp_path)


@pytest.mark.parametrize("lost", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file_is_refused(tmp_path: Path, lost: str) -> None:
    """By its name."""
    (save(tmp_path, "standard") / lost).unlink()
    with pytest.raises(UserError, match=rf"{lost} does not exist.*E-SAE"):
        load(tmp_path)
