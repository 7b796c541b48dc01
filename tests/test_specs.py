"""What was asked: the grammar of sources, names, hook points and sizes."""

from pathlib import Path

import pytest

from sae_transfer.errors import UserError
from sae_transfer.specs import DataKind, DataRef, HookPoint, HubData, ModelRef, SaeRef, byte_count, in_formats, named_sources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", ModelRef("model", "org/model")),
        ("org/model@v1.0", ModelRef("model", "org/model@v1.0")),
        ("base=org/model@main", ModelRef("base", "org/model@main")),
        ("./models/base", ModelRef("base", "./models/base")),
        ("x/SmolLM2.Q4_1.gguf", ModelRef("SmolLM2.Q4_1.gguf", "x/SmolLM2.Q4_1.gguf")),
        ("lora=./base+./adapter", ModelRef("lora", "./base", "./adapter")),
        ("org/model+org/adapter", ModelRef("adapter", "org/model", "org/adapter")),
        ("./a=b", ModelRef("a-b", "./a=b")),
    ],
)
def test_models_are_named_sources_with_an_adapter(text: str, expected: ModelRef) -> None:
    """[NAME=]SOURCE[+ADAPTER]; the name defaults to the last part of the path."""
    assert ModelRef.parse(text) == expected


def test_a_plus_in_the_name_of_an_existing_path_is_part_of_it(tmp_path: Path) -> None:
    """Only a path that does not exist is taken apart."""
    (tmp_path / "c++").mkdir()
    assert ModelRef.parse(str(tmp_path / "c++")).adapter is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("./sae", SaeRef("sae", "./sae")),
        ("base=./sae", SaeRef("base", "./sae")),
        ("tuned@chat=./sae", SaeRef("tuned", "./sae", "chat")),
    ],
)
def test_saes_may_name_their_own_model(text: str, expected: SaeRef) -> None:
    """[NAME[@MODEL]=]SOURCE."""
    assert SaeRef.parse(text) == expected


def test_data_are_named_after_their_kind() -> None:
    """Unless they are given a name."""
    assert DataRef.parse("text", "./wiki.txt") == DataRef("text", "text", "./wiki.txt")
    assert DataRef.parse("chats", "alpaca=./a.jsonl") == DataRef("alpaca", "chats", "./a.jsonl")


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("text", "org/set", HubData("org/set")),
        ("text", "org/set:en@v1", HubData("org/set", "en", "train", "v1")),
        ("text", "org/set::test", HubData("org/set", None, "test")),
        ("chats", "org/set:en:train[:9%]", HubData("org/set", "en", "train[:9%]", shuffled=True)),
        ("text", "./org/set", None),
        ("text", "org/set.jsonl", None),
        ("text", "set.txt", None),
        ("rows", "org/set", None),
    ],
)
def test_data_sets_of_the_hub_are_no_paths(kind: DataKind, source: str, expected: HubData | None) -> None:
    """ORG/NAME[:CONFIG[:SPLIT]][@REVISION]; whatever looks like a file, or lies here, is a file."""
    assert HubData.parse(DataRef.parse(kind, source)) == expected


@pytest.mark.parametrize("text", ["base=", "", ".."])
def test_a_source_that_names_nothing_is_refused(text: str) -> None:
    """Or one that no name can be made of."""
    with pytest.raises(UserError, match="E-SPEC"):
        ModelRef.parse(text)


@pytest.mark.parametrize(
    ("name", "boundary"),
    [
        ("blocks.3.hook_resid_pre", 3),
        ("blocks.3.hook_resid_post", 4),
        ("layers.3", 4),
        ("model.layers.3", 4),
        ("layers.3.resid_pre", 3),
    ],
)
def test_hook_points_are_boundaries_between_layers(name: str, boundary: int) -> None:
    """resid_post of a layer is resid_pre of the next; a module's name means its output."""
    hook_point = HookPoint.parse(name)
    assert hook_point.boundary == boundary
    assert HookPoint.parse(str(hook_point)) == hook_point


@pytest.mark.parametrize("name", ["blocks.3.hook_mlp_out", "blocks.x.hook_resid_pre", "", "embed"])
def test_other_hook_points_are_refused(name: str) -> None:
    """With what would do instead."""
    with pytest.raises(UserError, match="hook_resid_post"):
        HookPoint.parse(name)


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("2GB", 2 * 10**9), ("1.5 mb", 1_500_000), (7, 7), ("3T", 3 * 10**12)])
def test_sizes_are_bytes_or_words(text: str | int, count: int) -> None:
    """Decimal units, as disks are sold."""
    assert byte_count("--activation-cache", text) == count


@pytest.mark.parametrize("text", ["much", "-1", "2 GiB"])
def test_other_sizes_are_refused(text: str) -> None:
    """The option and the value are named."""
    with pytest.raises(UserError, match=f"--activation-cache '{text}'"):
        byte_count("--activation-cache", text)


def test_python_callers_give_one_several_or_named_sources() -> None:
    """All become NAME=SOURCE."""
    assert named_sources("./a") == ["./a"]
    assert named_sources(["./a", "b=./b"]) == ["./a", "b=./b"]
    assert named_sources({"a": "./a", "t@m": "./t"}) == ["a=./a", "t@m=./t"]
    assert named_sources(None) == []
    with pytest.raises(UserError, match="no NAME"):
        named_sources({"a/b": "./a"})


@pytest.mark.parametrize("text", ["chat=./base+", "+./adapter", "chat=+"])
def test_half_of_a_model_and_its_adapter_is_refused(text: str) -> None:
    """An adapter that an empty variable names must not become the bare model."""
    with pytest.raises(UserError, match="no model or no adapter.*E-SPEC"):
        ModelRef.parse(text)


def test_an_error_is_one_line_that_steers_no_terminal() -> None:
    """Whatever a file holds: line breaks become spaces, control characters their escapes."""
    assert str(UserError("E-SAE", "a\nb \x1b[31m\x07")) == r"a b \x1b[31m\x07 [E-SAE]"


def test_number_formats_are_of_one_model_or_of_all_others() -> None:
    """[NAME=]DTYPE; float32 where none is given."""
    models = [ModelRef.parse("a=./a"), ModelRef.parse("b=./b")]
    for given, found, default in (
        ([], ["float32", "float32"], "float32"),
        (["bfloat16"], ["bfloat16", "bfloat16"], "bfloat16"),
        (["b=8bit", "float16"], ["float16", "8bit"], "float16"),
    ):
        refs, run = in_formats(models, given)
        assert ([ref.dtype for ref in refs], run) == (found, default)


@pytest.mark.parametrize("given", [["c=8bit"], ["8bit", "4bit"], ["a=8bit", "a=4bit"]], ids=str)
def test_a_number_format_of_no_model_or_a_second_one_is_refused(given: list[str]) -> None:
    """A misspelt NAME must not leave a model in the default format."""
    with pytest.raises(UserError, match=f"--dtype '{given[-1]}'.*E-OPTION"):
        in_formats([ModelRef.parse("a=./a")], given)
