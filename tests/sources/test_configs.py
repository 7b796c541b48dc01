"""What configs and headers say, before any weight is read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sae_transfer.errors import UserError
from sae_transfer.sources import resolve
from sae_transfer.sources.adapters import KINDS, check_adapter, check_rank
from sae_transfer.sources.configs import (
    ModelFacts,
    check_ends,
    check_fits,
    check_layers,
    gguf_facts,
    model_facts,
)
from sae_transfer.sources.formats import sae_facts
from sae_transfer.sources.tokenizer import check_growth, check_tokenizer
from sae_transfer.specs import HookPoint, ModelRef, SaeRef
from tests.conftest import D_MODEL, D_SAE, N_LAYERS, VOCAB, Pair, write_jsonl

LLAMA = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 3, "vocab_size": 50, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (LLAMA, ModelFacts("llama", 8, 3, 50, 64)),
        (
            {"model_type": "gpt2", "n_embd": 8, "n_layer": 3, "vocab_size": 50, "n_positions": 64},
            ModelFacts("gpt2", 8, 3, 50, 64),
        ),
        ({"model_type": "mpt", "d_model": 8, "num_layers": 3, "seq_length": 64}, ModelFacts("mpt", 8, 3, None, 64)),
        ({"model_type": "gemma3", "vocab_size": 9, "text_config": LLAMA}, ModelFacts("llama", 8, 3, 50, 64)),
        ({"model_type": "gemma3", "hidden_size": 8, "text_config": None}, ModelFacts("gemma3", 8, None, None, None)),
        ({}, ModelFacts("unknown", None, None, None, None)),
    ],
)
def test_a_config_gives_the_facts_that_it_states(config: dict[str, Any], facts: ModelFacts) -> None:
    """Under any family's names, nested or not; what is not stated stays unknown."""
    assert model_facts(config, "config.json") == facts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"hidden_size": "8"}, "hidden_size is '8'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": 1.5}, r"vocab_size is 1\.5"),
        ({"hidden_size": [8]}, r"hidden_size is \[8\]"),
        ({"hidden_size": float("nan")}, "hidden_size is nan"),
        ({"vocab_size": 10**4000}, "vocab_size is 1"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Llama"}}, "asks for code of its own .*modeling.Llama"),
        ({"text_config": {"auto_map": {"AutoConfig": "org/other--config.Llama"}}}, "asks for code of its own .*other--config"),
        ({"layers": [{"_attn_implementation": "org/kernel:run"}]}, "asks for code off the Hub .*org/kernel:run"),
    ],
)
@pytest.mark.parametrize("where", ["config.json", "/tmp/cfg_models/config.json"])
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, Any], said: str, where: str) -> None:
    """By the file, the key and the value, as a model's mistake wherever the folder lies."""
    with pytest.raises(UserError, match=rf"{where}:? ?.*{said}.*E-MODEL"):
        model_facts(LLAMA | change, where)


def test_facts_are_those_of_the_saved_pair(pair: Pair) -> None:
    """What transformers and sae-lens write is read back."""
    model, sae = resolve.model(ModelRef("base", str(pair.base))).facts, sae_facts(pair.sae_base)
    assert model == ModelFacts("llama", D_MODEL, N_LAYERS, VOCAB, 256)
    assert (sae.format, sae.architecture, sae.d_in, sae.d_sae) == ("saelens", "standard", D_MODEL, D_SAE)
    assert (str(sae.hook_point), sae.prepend_bos, sae.context_size) == ("blocks.1.hook_resid_pre", True, 16)
    assert (sae.wants_scaling, sae.trained_on) == (True, "tiny")


@pytest.mark.parametrize(
    ("config", "dataset"),
    [
        ({"dataset_path": "lab/old"}, "lab/old"),
        ({"dataset_path": "lab/old", "metadata": {"dataset_path": "lab/new"}}, "lab/new"),
        ({"dataset_path": ""}, None),
        ({"dataset_path": ["lab/a"]}, "['lab/a']"),
        ({}, None),
    ],
)
def test_an_sae_says_what_it_was_trained_on(pair: Pair, tmp_path: Path, config: dict[str, Any], dataset: str | None) -> None:
    """SAELens 3 wrote it beside the shape, 6 into the metadata; what is no name is kept as such, and refused by who uses it."""
    shutil.copytree(pair.sae_base, tmp_path / "sae")
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    old = {key: value for key, value in (cfg | cfg["metadata"]).items() if key != "metadata"}
    write_jsonl(tmp_path / "sae" / "cfg.json", [old | config])
    assert sae_facts(tmp_path / "sae").dataset == dataset


@pytest.mark.parametrize(("layer", "fits"), [(0, True), (N_LAYERS - 1, True), (N_LAYERS, False), (99, False)])
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_an_sae_fits_a_model_that_has_its_layer(pair: Pair, layer: int, fits: bool, site: Any) -> None:
    """The last layer has both hook points, and no layer behind it has any."""
    shape = resolve.model(ModelRef("base", str(pair.base))).facts
    facts = replace(sae_facts(pair.sae_base), hook_point=HookPoint(layer, site))
    if fits:
        check_fits("sae", facts, "base", shape)
    else:
        with pytest.raises(UserError, match=r"SAE sae sits at .*, base has layers 0 to 2.*E-LAYER"):
            check_fits("sae", facts, "base", shape)


def test_an_sae_of_another_width_does_not_fit(pair: Pair) -> None:
    """Both widths are named, and the one to look for."""
    facts = replace(sae_facts(pair.sae_base), d_in=24)
    with pytest.raises(UserError, match=r"takes width 24, base has 16 at blocks\.1.*trained at width 16 \[E-WIDTH\]"):
        check_fits("sae", facts, "base", ModelFacts("llama", D_MODEL, N_LAYERS, VOCAB, 256))


def test_what_a_config_does_not_state_stops_nothing(pair: Pair) -> None:
    """An unknown width or depth is left to the loaded model."""
    check_fits("sae", sae_facts(pair.sae_base), "base", ModelFacts("unknown", None, None, None, None))


def test_smollm2_says_what_it_is(smollm2: Path) -> None:
    """Facts of a real GGUF file."""
    facts = gguf_facts(smollm2)
    assert (facts.model_type, facts.d_model, facts.n_layers, facts.vocab_size) == ("llama", 576, 30, 49152)


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"garbage" * 99, b"GGUF" + b"\xff" * 200, b"GGUF\x03\0\0\0" + b"\0" * 16, b"GGUF\x03\0\0\0" + b"\xff" * 16],
)
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, garbage, a header that promises what is not there, or one without an architecture."""
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"truncated or no GGUF file.*E-MODEL"):
        resolve.model(ModelRef("x", str(tmp_path / "model.gguf")))


@pytest.mark.parametrize("kept", [100, 5000, 1_000_000, -1000])
def test_a_truncated_gguf_is_refused(smollm2: Path, tmp_path: Path, kept: int) -> None:
    """Cut in its header, in its vocabulary or among its weights."""
    (tmp_path / "model.gguf").write_bytes(smollm2.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"truncated or no GGUF file.*E-MODEL"):
        gguf_facts(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT"]
)
def test_adapters_that_add_tokens_are_refused(tmp_path: Path, kind: str) -> None:
    """Every kind of prompt learning, before its weights are looked for."""
    write_jsonl(tmp_path / "adapter_config.json", [{"peft_type": kind}])
    with pytest.raises(UserError, match=rf"is {kind}, which adds virtual tokens.*E-MODEL"):
        check_adapter(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_the_weights_are_let_through(tmp_path: Path, kind: str) -> None:
    """They leave every token at its position."""
    write_jsonl(tmp_path / "adapter_config.json", [{"peft_type": kind}])
    check_adapter(tmp_path)


@pytest.mark.parametrize("what", ["model", "sae"])
@pytest.mark.parametrize(("name", "said"), [("none", "does not exist"), ("text.txt", "is (a file|no folder)")])
def test_a_path_that_is_no_folder_is_refused(pair: Pair, what: str, name: str, said: str) -> None:
    """Nothing there, or a file where a folder is needed."""
    path = str(pair.root / name)
    with pytest.raises(UserError, match=rf"{said}.*E-PATH"):
        resolve.model(ModelRef("x", path)) if what == "model" else resolve.sae(SaeRef("x", path))


def test_a_located_folder_has_a_hash_for_each_file(pair: Pair) -> None:
    """What a run was computed from can be told apart by its bytes."""
    base, chat = (resolve.model(ModelRef("x", str(path))).base for path in (pair.base, pair.chat))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(base.files)
    assert base.files["config.json"] == chat.files["config.json"]
    assert base.files["model.safetensors"] != chat.files["model.safetensors"]
    assert {len(digest) for digest in base.files.values()} == {64}


@pytest.mark.parametrize(
    "config", [{"peft_type": "XLORA", "adapters": {"0": "org/other"}}, {"peft_type": "LORA", "alora_invocation_tokens": [1]}]
)
def test_adapters_that_are_more_than_weights_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    """One would download others, one would do nothing where the model is cut."""
    write_jsonl(tmp_path / "adapter_config.json", [config])
    with pytest.raises(UserError, match="more than weights.*E-MODEL"):
        check_adapter(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"auto_map": {"AutoConfig": "x.Y"}}, "asks for code of its own"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "names a module to import"),
        ({"layer_replication": [[0, 10**9]]}, "changes the model's layers"),
    ],
)
def test_adapters_that_bring_more_than_weights_are_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    """Code, a module's name, layers without number."""
    write_jsonl(tmp_path / "adapter_config.json", [{"peft_type": "LORA"} | config])
    with pytest.raises(UserError, match=f"{said}.*E-MODEL"):
        check_adapter(tmp_path)


@pytest.mark.parametrize("config", [{"r": 10**9}, {"r": 2, "rank_pattern": {"q_proj": 10**9}}, {"r": float("nan")}])
def test_a_rank_without_weights_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    """peft would allocate it; a rank that is the smaller dimension of the weights is right."""
    write_jsonl(tmp_path / "adapter_config.json", [{"peft_type": "LORA"} | config])
    with pytest.raises(UserError, match="says rank .*none above 2.*E-MODEL"):
        check_rank(tmp_path, {"lora_A": (2, 16)})
    write_jsonl(tmp_path / "adapter_config.json", [{"peft_type": "LORA", "r": 2}])
    check_rank(tmp_path, {"lora_A": (2, 16)})


@pytest.mark.parametrize("kind", ["VBLORA", "ADALORA", "RANDLORA", "__import__", ""])
def test_an_adapter_whose_sizes_are_not_known_is_refused(tmp_path: Path, kind: str) -> None:
    """By its name, before peft builds what its config asks for."""
    write_jsonl(tmp_path / "adapter_config.json", [{"peft_type": kind, "num_vectors": 10**8}])
    with pytest.raises(UserError, match=f"is '{kind}', whose sizes.*merge it into its model.*E-MODEL"):
        check_adapter(tmp_path)


EVIL = "(([a-z0-9_.])+)+!"


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": EVIL},
        {"target_modules": ".*.*.*.*.*!"},
        {"target_modules": "(m|m)(o|o)(d|d)(e|e)(l|l)" * 4},
        {"target_modules": "(a|aa)+!"},
        {"exclude_modules": EVIL},
        {"layers_pattern": [EVIL]},
        {"modules_to_save": [EVIL]},
        {"rank_pattern": {EVIL: 8}},
        {"alpha_pattern": {EVIL: 8}},
        {"peft_type": "IA3", "feedforward_modules": EVIL},
    ],
)
def test_a_pattern_that_may_not_end_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    """Wherever peft would match it with the names of modules."""
    write_jsonl(tmp_path / "adapter_config.json", [{"peft_type": "LORA"} | config])
    with pytest.raises(UserError, match="may take for ever to match.*E-MODEL"):
        check_adapter(tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        "all-linear",
        r".*\.(q_proj|v_proj)",
        r"^model\.layers\.\d+\.(?:self_attn|mlp)\.(?:[a-z]+_proj)$".replace("[a-z]+_proj", "q_proj|up_proj"),
        "model.layers.1.self_attn.q_proj",
        r".*layers\.(0|1|2|3)\..*proj",
    ],
)
def test_a_pattern_of_names_is_let_through(tmp_path: Path, pattern: str) -> None:
    """Alternatives, and a repeat or two."""
    config = {"peft_type": "LORA", "target_modules": pattern, "rank_pattern": {pattern: 4}}
    write_jsonl(tmp_path / "adapter_config.json", [config])
    check_adapter(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**7},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 2, "n_layers": 10**7},
        {"num_hidden_layers": 2, "decoder_layers": 1e9},
        {"num_hidden_layers": 2, "vision_config": {"depth": 10**7}},
        {"n_layers": 10**7},
        {},
    ],
)
def test_a_depth_without_weights_is_refused(config: dict[str, Any]) -> None:
    """By whatever key an architecture reads it; all the layers would be built before one is missed."""
    tensors = [f"model.layers.{layer}.{name}" for layer in range(2) for name in "abc"]
    with pytest.raises(UserError, match="layers.*E-MODEL|depth.*E-MODEL"):
        check_layers(config, model_facts(config, "config.json"), tensors, "config.json")
    fits = {"num_hidden_layers": 2, "max_window_layers": 28, "layer_types": ["full"] * 2}
    check_layers(fits, model_facts(fits, "config.json"), tensors, "config.json")


@pytest.mark.parametrize("name", ["../tokenizer.1.0.json", "/tmp/tokenizer.1.0.json", "a/tokenizer.1.0.json", 7])
def test_a_tokenizer_that_lies_elsewhere_is_refused(tmp_path: Path, name: Any) -> None:
    """transformers would follow the name out of the folder, past the hashes."""
    write_jsonl(tmp_path / "tokenizer_config.json", [{"fast_tokenizer_files": ["tokenizer.json", name]}])
    with pytest.raises(UserError, match="no file beside it.*E-TOKENIZER"):
        check_tokenizer(tmp_path)


def replacing(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    """One step of a normaliser or decoder."""
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


@pytest.mark.parametrize(
    "bomb",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [replacing("a", "aaaaaaaaaa")] * 7}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [replacing("a", "aa")] * 4}]}},
        {"normalizer": replacing("", "a" * 99, "Regex")},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 20}},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
        {"decoder": {"type": "Sequence", "decoders": [replacing("a", "aaaaaaaaaa")] * 7}},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 99}},
    ],
)
def test_a_tokenizer_that_makes_text_grow_is_refused(tmp_path: Path, bomb: dict[str, Any]) -> None:
    """Step by step ten times as long; what real ones replace is let through."""
    with pytest.raises(UserError, match="may make text 8 times as long.*E-TOKENIZER"):
        check_growth(bomb, "tokenizer.json")
    steps = [{"type": "Prepend", "prepend": "▁"}, replacing(" ", "▁"), replacing(" {2,}", "▁", "Regex"), {"type": "NFKC"}]
    check_growth({"normalizer": {"type": "Sequence", "normalizers": steps}, "decoder": None}, "tokenizer.json")


def test_a_tokenizer_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """Nor are the files beside it."""
    for name in ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**33)  # no disk is used
        with pytest.raises(UserError, match=f"{name} has more than .*E-TOKENIZER"):
            check_tokenizer(tmp_path)


@pytest.mark.parametrize("ends", ["x", [[1]], [1, "x"], 1.5, True, {"a": 1}])
def test_end_tokens_are_ids(ends: Any) -> None:
    """Others would be missed when the model is loaded and asked."""
    with pytest.raises(UserError, match="generation_config.json: eos_token_id is .*E-MODEL"):
        check_ends({"eos_token_id": ends}, "generation_config.json")
    for fine in (None, 7, [1, 2]):
        check_ends({"eos_token_id": fine}, "config.json")


def test_an_sae_that_asks_for_code_is_refused(pair: Pair, tmp_path: Path) -> None:
    """No loader here would run it; a config that asks is not what it seems."""
    write_jsonl(tmp_path / "cfg.json", [{"d_in": D_MODEL, "auto_map": {"SAE": "evil.SAE"}}])
    with pytest.raises(UserError, match="asks for code of its own.*E-SAE"):
        sae_facts(tmp_path)
