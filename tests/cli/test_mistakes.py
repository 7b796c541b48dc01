"""What a hurried person gets wrong: one clear line on stderr, exit code 2, and no run directory."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Pair, chat_tokenizer, save_model, save_sae, write_jsonl
from tests.running import run
from tests.saes.publishing import dictionary_learning

Case = Callable[[Pair, Path], list[str]]
CASES: dict[str, tuple[str, str, Case]] = {}


def case(code: str, says: str) -> Callable[[Case], Case]:
    """Register a mistake: its code, and words that its line must hold."""

    def register(make: Case) -> Case:
        CASES[make.__name__] = (code, says, make)
        return make

    return register


def arguments(pair: Pair, **changes: str) -> list[str]:
    """A right command, with some options changed; a None leaves one out."""
    options = {"model": str(pair.base), "sae": str(pair.sae_base), "rows": str(pair.rows)} | changes
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]


def changed_config(source: Path, folder: Path, file: str, **changes: object) -> Path:
    """A copy of a model or SAE whose config says something else."""
    shutil.copytree(source, folder)
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | changes))
    return folder


def truncated(source: Path, folder: Path, file: str) -> Path:
    """A copy whose weights end early."""
    shutil.copytree(source, folder)
    raw = (folder / file).read_bytes()
    (folder / file).write_bytes(raw[: len(raw) - 100])
    return folder


@case("E-WIDTH", "takes width 24, base has 16")
def wrong_width(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(save_sae(tmp / "sae", 0, d_in=24)))


@case("E-LAYER", "layers 0 to 2")
def wrong_layer(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(save_sae(tmp / "sae", 0, hook="blocks.7.hook_resid_pre")))


@case("E-HOOK", "hook_mlp_out")
def unsupported_hook(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(save_sae(tmp / "sae", 0, hook="blocks.1.hook_mlp_out")))


@case("E-HOOK", "disagree")
def hook_layer_disagrees(pair: Pair, tmp: Path) -> list[str]:
    sae = save_sae(tmp / "sae", 0, metadata={"hook_layer": 2})
    return arguments(pair, sae=str(sae))


@case("E-PATH", "missing")
def missing_model(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, model=str(tmp / "missing"))


@case("E-PATH", "missing")
def missing_sae(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(tmp / "missing"))


@case("E-PATH", "missing.jsonl")
def missing_rows(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, rows=str(tmp / "missing.jsonl"))


@case("E-SAE", "truncated")
def truncated_sae(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(truncated(pair.sae_base, tmp / "sae", "sae_weights.safetensors")))


@case("E-MODEL", "truncated")
def truncated_model(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, model=str(truncated(pair.base, tmp / "model", "model.safetensors")))


@case("E-SAE", "no JSON")
def config_is_no_json(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.sae_base, tmp / "sae")
    (tmp / "sae" / "cfg.json").write_text("{'d_in': 16")
    return arguments(pair, sae=str(tmp / "sae"))


@case("E-SAE", "the weights have")
def config_of_other_weights(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(changed_config(pair.sae_base, tmp / "sae", "cfg.json", d_sae=64)))


@case("E-SAE", "tanh-relu")
def activation_that_would_be_lost(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(changed_config(pair.sae_base, tmp / "sae", "cfg.json", activation_fn="tanh-relu")))


@case("E-SAE", "neither true nor false")
def flag_in_quotes(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(save_sae(tmp / "sae", 0, metadata={"prepend_bos": "false"})))


@case("E-PICKLE", "which can run code")
def pickled_sae(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(dictionary_learning(tmp)[0]))


@case("E-SAE", "centred weights")
def sae_of_centred_weights(pair: Pair, tmp: Path) -> list[str]:
    kwargs = {"center_writing_weights": True}
    return arguments(pair, sae=str(changed_config(pair.sae_base, tmp / "sae", "cfg.json", model_from_pretrained_kwargs=kwargs)))


@case("E-MODEL", "an adapter beside a model")
def adapter_beside_the_model(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.base, tmp / "base")
    (tmp / "base" / "adapter_config.json").write_text("{}")
    return arguments(pair, model=str(tmp / "base"))


@case("E-MODEL", "names 'weights.bin'")
def index_of_pickled_weights(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.base, tmp / "base")
    torch.save(load_file(tmp / "base" / "model.safetensors"), tmp / "base" / "weights.bin")
    index = {"weight_map": {"lm_head.weight": "weights.bin"}}
    (tmp / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    return arguments(pair, model=str(tmp / "base"))


@case("E-MODEL", "names '../base/model.safetensors'")
def index_that_leads_elsewhere(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.base, tmp / "base")
    index = {"weight_map": {"lm_head.weight": "../base/model.safetensors"}}
    (tmp / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    return arguments(pair, model=str(tmp / "base"))


@case("E-MODEL", "claims 4611686018427387904 entries of 'a'")
def gguf_that_promises_more_than_it_holds(pair: Pair, tmp: Path) -> list[str]:
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**62)
    (tmp / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    return arguments(pair, model=str(tmp / "model.gguf"))


@case("E-MODEL", "remove auto_map")
def model_that_brings_its_own_code(pair: Pair, tmp: Path) -> list[str]:
    auto_map = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    model = changed_config(pair.base, tmp / "base", "config.json", auto_map=auto_map)
    (model / "modeling_evil.py").write_text(f"open({str(tmp / 'run')!r}, 'w')")
    return arguments(pair, model=str(model))


@case("E-MODEL", "asks for code of its own")
def unknown_model_that_brings_its_own_code(pair: Pair, tmp: Path) -> list[str]:
    changes = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Evil"}}
    model = changed_config(pair.base, tmp / "base", "config.json", **changes)
    (model / "evil.py").write_text(f"open({str(tmp / 'run')!r}, 'w')")
    return arguments(pair, model=str(model))


@case("E-TOKENIZER", "asks for code of its own")
def tokenizer_that_brings_its_own_code(pair: Pair, tmp: Path) -> list[str]:
    auto_map = {"AutoTokenizer": [None, "tokenization_evil.Evil"]}
    return arguments(pair, model=str(changed_config(pair.base, tmp / "base", "tokenizer_config.json", auto_map=auto_map)))


@case("E-MODEL", "layers, the weights have")
def config_of_a_thousand_million_layers(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, model=str(changed_config(pair.base, tmp / "base", "config.json", num_hidden_layers=10**9)))


@case("E-MODEL", "can't be loaded")
def config_of_layers_too_wide_for_memory(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, model=str(changed_config(pair.base, tmp / "base", "config.json", intermediate_size=2**40)))


@case("E-SAE", "no JSON")
def config_nested_without_end(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.sae_base, tmp / "sae")
    (tmp / "sae" / "cfg.json").write_text("[" * 10**6)
    return arguments(pair, sae=str(tmp / "sae"))


@case("E-TEMPLATE", "more steps or memory")
def a_template_that_does_not_end(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.base, tmp / "base")
    (tmp / "base" / "chat_template.jinja").write_text("{{ 'a' * 10**10 }}")
    return arguments(pair, model=str(tmp / "base"), chats=str(pair.chats))


@case("E-TEMPLATE", "more steps or memory")
def a_template_in_the_config_that_does_not_end(pair: Pair, tmp: Path) -> list[str]:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    model = changed_config(pair.base, tmp / "base", "tokenizer_config.json", chat_template=loops)
    (model / "chat_template.jinja").unlink()
    return arguments(pair, model=str(model), chats=str(pair.chats))


@case("E-TEMPLATE", "'__class__' of 'str' object is unsafe")
def a_template_that_walks_attributes(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.base, tmp / "base")
    (tmp / "base" / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    return arguments(pair, model=str(tmp / "base"), chats=str(pair.chats))


@case("E-SPEC", "context size 1")
def rows_of_one_token(pair: Pair, tmp: Path) -> list[str]:
    sae = save_sae(tmp / "sae", 0, metadata={"context_size": 1})
    return [*arguments(pair, sae=str(sae)), "--text", str(pair.text)]


@case("E-DATA", "half a surrogate pair")
def half_a_character(pair: Pair, tmp: Path) -> list[str]:
    (tmp / "half.jsonl").write_text('{"text": "a \\ud800 b"}')
    return [*arguments(pair), "--text", str(tmp / "half.jsonl")]


@case("E-PATH", "too long")
def path_too_long(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, sae=str(tmp / ("a" * 5000)))


@case("E-PATH", "UnicodeEncodeError")
def path_that_is_no_utf_8(pair: Pair, tmp: Path) -> list[str]:
    shutil.copy(pair.rows, tmp / "rows\udcff.jsonl")
    return arguments(pair, rows=str(tmp / "rows\udcff.jsonl"))


@case("E-OPTION", "makes no sense")
def more_than_can_be_counted(pair: Pair, tmp: Path) -> list[str]:
    return [*arguments(pair), "--max-documents", str(10**30)]


@case("E-NAN", "W_enc")
def nan_in_the_sae(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.sae_base, tmp / "sae")
    weights = load_file(tmp / "sae" / "sae_weights.safetensors")
    weights["W_enc"][0, 0] = torch.nan
    save_file(weights, tmp / "sae" / "sae_weights.safetensors")
    return arguments(pair, sae=str(tmp / "sae"))


@case("E-NAN", "base")
def nan_in_the_model(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.base, tmp / "base")
    weights = load_file(tmp / "base" / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, tmp / "base" / "model.safetensors", {"format": "pt"})
    return arguments(pair, model=str(tmp / "base"))


@case("E-TOKEN", "300")
def token_outside_the_vocabulary(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, rows=str(write_jsonl(tmp / "rows.jsonl", [{"tokens": [1, 300, 2]}])))


@case("E-DATA", "no position")
def empty_rows(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, rows=str(write_jsonl(tmp / "rows.jsonl", [])))


@case("E-DATA", "row 0")
def a_row_of_one_token(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, rows=str(write_jsonl(tmp / "rows.jsonl", [{"tokens": [1]}])))


@case("E-DATA", "last position")
def a_mask_on_the_last_position(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, rows=str(write_jsonl(tmp / "rows.jsonl", [{"tokens": [1, 2, 3], "mask": [0, 1, 1]}])))


@case("E-DATA", "257 tokens")
def rows_longer_than_the_model_takes(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, rows=str(write_jsonl(tmp / "rows.jsonl", [{"tokens": [1] * 257}])))


@case("E-DATA", "line 2 is no JSON")
def rows_that_are_no_json(pair: Pair, tmp: Path) -> list[str]:
    (tmp / "rows.jsonl").write_text('{"tokens": [1, 2, 3]}\n{"tokens": [1,\n')
    return arguments(pair, rows=str(tmp / "rows.jsonl"))


@case("E-DATA", "holds no text")
def empty_text(pair: Pair, tmp: Path) -> list[str]:
    (tmp / "empty.txt").write_text("\n \n")
    return arguments(pair, text=str(tmp / "empty.txt"))


@case("E-DATA", "no row of 200 tokens")
def text_shorter_than_a_row(pair: Pair, tmp: Path) -> list[str]:
    (tmp / "short.txt").write_text("One line.")
    return arguments(pair, text=str(tmp / "short.txt"), context_size="200")


@case("E-DATA", "neither")
def chats_of_another_kind(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, chats=str(write_jsonl(tmp / "chats.jsonl", [{"prompt": "a", "answer": "b"}])))


@case("E-TEMPLATE", "<start_of_turn>")
def a_template_whose_tokens_are_missing(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, chats=str(pair.chats), chat_template="gemma")


@case("E-TEMPLATE", "{instruction}")
def a_template_file_without_its_place(pair: Pair, tmp: Path) -> list[str]:
    (tmp / "template.txt").write_text("User: \nAssistant: ")
    return arguments(pair, chats=str(pair.chats), chat_template=str(tmp / "template.txt"))


@case("E-TOKENIZER", "shares one tokenizer")
def tokenizer_of_another_model(pair: Pair, tmp: Path) -> list[str]:
    other = chat_tokenizer()
    vocabulary = json.loads(other.backend_tokenizer.to_str())
    model = vocabulary["model"]["vocab"]
    letters = [token for token in model if token.isalpha()]
    model.update(zip(letters, [model[token] for token in reversed(letters)], strict=True))
    save_model(tmp / "other", 2, other)
    (tmp / "other" / "tokenizer.json").write_text(json.dumps(vocabulary))
    return [*arguments(pair, text=str(pair.text)), "--model", str(tmp / "other")]


@case("E-TOKENIZER", "none of the models")
def text_without_a_tokenizer(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, model=str(save_model(tmp / "bare", 0)), text=str(pair.text))


@case("E-OPTION", "--modle")
def a_misspelt_option(pair: Pair, tmp: Path) -> list[str]:
    return ["--modle", str(pair.base), "--sae", str(pair.sae_base), "--rows", str(pair.rows)]


@case("E-OPTION", "no number")
def a_value_that_is_no_number(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, norm_scaling_factor="often")


@case("E-OPTION", "eight")
def a_batch_size_that_is_no_number(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, batch_size="eight")


@case("E-OPTION", "from 1 to")
def a_batch_size_of_zero(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, batch_size="0")


@case("E-OPTION", "float64")
def an_unknown_dtype(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, dtype="float64")


@case("E-OPTION", "float64")
def an_unknown_dtype_of_one_model(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, dtype="base=float64")


@case("E-OPTION", "'bass=float16' is for a model that is not there")
def the_dtype_of_a_misspelt_model(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, dtype="bass=float16")


@case("E-OPTION", "answers")
def an_unknown_token_kind(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, token_kinds="answers")


@case("E-SPEC", "stands twice")
def one_name_for_two_models(pair: Pair, tmp: Path) -> list[str]:
    return [*arguments(pair, model=f"m={pair.base}"), "--model", f"m={pair.chat}"]


@case("E-SPEC", "no own model")
def own_scaling_without_an_own_model(pair: Pair, tmp: Path) -> list[str]:
    return arguments(pair, norm_scaling_factor="own")


@case("E-SPEC", "nothing given for --text, --chats or --rows, and no SAE records")
def no_data(pair: Pair, tmp: Path) -> list[str]:
    return ["--model", str(pair.base), "--sae", str(pair.sae_base)]


@case("E-SPEC", "is no ORG/NAME of the Hub")
def training_data_that_a_config_would_have_us_open(pair: Pair, tmp: Path) -> list[str]:
    sae = save_sae(tmp / "sae", 0, metadata={"dataset_path": str(pair.text)})
    return ["--model", str(pair.base), "--sae", str(sae)]


@case("E-SPEC", "a on 'lab/a', b on 'lab/b'")
def saes_of_different_training_data(pair: Pair, tmp: Path) -> list[str]:
    saes = [save_sae(tmp / name, 0, metadata={"dataset_path": f"lab/{name}"}) for name in "ab"]
    return ["--model", str(pair.base), "--sae", str(saes[0]), "--sae", str(saes[1])]


@case("E-SPEC", "published chat template")
def published_quirks_of_another_template(pair: Pair, tmp: Path) -> list[str]:
    return [*arguments(pair, chats=str(pair.chats)), "--published"]


@case("E-SPEC", "prepend_bos")
def saes_that_disagree_on_bos(pair: Pair, tmp: Path) -> list[str]:
    sae = save_sae(tmp / "sae", 0, metadata={"prepend_bos": False})
    return [*arguments(pair, text=str(pair.text)), "--sae", str(sae)]


@case("E-MODEL", "pickled")
def weights_in_a_pickle(pair: Pair, tmp: Path) -> list[str]:
    shutil.copytree(pair.base, tmp / "model")
    (tmp / "model" / "model.safetensors").rename(tmp / "model" / "pytorch_model.bin")
    return arguments(pair, model=str(tmp / "model"))


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_leaves_nothing(pair: Pair, tmp_path: Path, name: str) -> None:
    """The line names what is wrong and its code; the exit code is 2; nothing is written."""
    code, says, make = CASES[name]
    status, out, err = run("evaluate", *make(pair, tmp_path), "-o", str(tmp_path / "run"))
    assert status == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert says in err, err
    assert err.rstrip().endswith(f"[{code}]"), err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_left_alone(pair: Pair, tmp_path: Path) -> None:
    """-o on somebody's folder is refused, and the folder stays as it was."""
    (tmp_path / "thesis.tex").write_text("mine")
    status, _, err = run("evaluate", *arguments(pair), "-o", str(tmp_path))
    assert (status, err.count("\n")) == (2, 1)
    assert "E-RUN" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("damage", ["missing", "text", "schema", "calibration", "part", "outside"])
def test_show_refuses_a_damaged_run_in_one_line(pair: Pair, tmp_path: Path, damage: str) -> None:
    """A run that is not what was written is never shown as if it were."""
    out = tmp_path / "run"
    assert run("evaluate", *arguments(pair), "-o", str(out))[0] == 0
    manifest = json.loads((out / "run.json").read_text())
    if damage == "missing":
        shutil.rmtree(out)
    elif damage == "text":
        (out / "run.json").write_text("{")
    elif damage == "part":
        part = next((out / "rows").iterdir())
        part.write_bytes(part.read_bytes()[:-1] + b"\0")
    else:
        if damage == "schema":
            manifest["schema_version"] = 99
        elif damage == "calibration":
            manifest["calibration"]["norms"][0]["factor_auto"] = 1.0
        else:
            manifest["parts"][0]["file"] = "../run.json"
        (out / "run.json").write_text(json.dumps(manifest))
    status, text, err = run("show", str(out))
    assert (status, text, err.count("\n")) == (2, "", 1), err
    assert "E-RUN" in err


def test_show_refuses_an_unknown_format(tmp_path: Path) -> None:
    """The formats are named."""
    status, _, err = run("show", str(tmp_path), "--format", "xml")
    assert status == 2
    assert "table, markdown, csv, json" in err
