"""The three published scripts on the demo pair: published keys in published order, appended; mistakes are one line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sae_transfer import UserError
from sae_transfer.data.rollouts import begin
from sae_transfer.workflows import demo, published
from tests.conftest import SHARED, write_jsonl
from tests.running import fresh, run_script

PAIR = demo.pair()
CHAT = str(PAIR / "models" / "chat")
BASE_SAE, CHAT_SAE = (str(PAIR / "saes" / name) for name in ("base", "chat"))
TEXT_FLAGS = ("--eval_batch_size_prompts", "2", "--eval_batches", "3", "--num_act_batches", "10")
LOCAL = ("--model_path", CHAT, "--norm_scaling_factor", "2.67")
FINETUNED = (
    *("--model_name", "qwen1.5-0.5B-chat", *TEXT_FLAGS, *LOCAL),
    *("--sae_path", BASE_SAE, "--text", str(PAIR / "text.jsonl")),
)
PILE = ("--sae_project", "qwen-500M-base", *FINETUNED)
ALPACA = (
    *("--chat_model_name", "qwen1.5-0.5b-chat", "--base_sae_project", "qwen-500M-base", "--batch_size", "4", *LOCAL),
    *("--chat_sae_project", "qwen-500M-chat", "--base_sae_path", BASE_SAE, "--chat_sae_path", CHAT_SAE),
)
CHATS = ("--chats", str(PAIR / "chats.jsonl"))

KEYS = {
    "pile": ["model_name", "sae", *published.TEXT_COLUMNS, "ignore_outliers", "eval_tokens"],
    "alpaca": ["chat_model", "mask_type", *published.CHAT_COLUMNS, "ignore_outliers", "outlier_threshold"],
    "finetuned": ["model_name", *published.TEXT_COLUMNS, "ignore_outliers", "eval_tokens"],
}
KEYS["pile"] += ["MSE/L0/Explained Variance batches", "Outlier threshold"]
KEYS["finetuned"] += ["MSE/L0/Explained Variance batches", "Outlier threshold", "artifact_path"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(name: str, *args: str) -> list[dict[str, Any]]:
    """What the results file of a script holds after it ran."""
    status, _, err = run_script(name, *args)
    assert status == 0, err
    file = Path(err.splitlines()[-1].removeprefix("Results saved to "))
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def without(args: Sequence[str], flag: str) -> list[str]:
    """A command line that lacks a flag and its value."""
    at = args.index(flag)
    return [*args[:at], *args[at + 2 :]]


def test_the_pile_script_appends_records_with_the_published_keys(here: Path) -> None:
    """Twice the same command: two equal records, and nothing else in the folder."""
    first, again = (records("sae_transfer_script.py", *PILE) for _ in range(2))
    assert again == first * 2
    assert list(first[0]) == KEYS["pile"]
    assert (first[0]["eval_tokens"], first[0]["Outlier threshold"]) == (2 * 3 * 128, 100_000)
    assert [path.name for path in (here / "results").iterdir()] == ["sae_transfer_results_post.json"]


def test_fine_tuned_rows_leave_outliers_in_unless_asked() -> None:
    """Published, without --ignore_outliers: threshold 100000, and off; the rows that they are compared with, otherwise."""
    record = records("finetuned_sae_evals.py", *FINETUNED)[0]
    assert list(record) == KEYS["finetuned"]
    assert (record["ignore_outliers"], record["Outlier threshold"]) == (False, 100_000)
    other = records("finetuned_sae_evals.py", *FINETUNED, "--ignore_outliers", "--outlier_threshold", "13")[1]
    assert (other["ignore_outliers"], other["Outlier threshold"]) == (True, 13)
    assert other["MSE"] != record["MSE"]


@pytest.mark.parametrize("mask_type", published.MASK_TYPES)
def test_the_alpaca_script_gives_the_same_at_every_batch_size(mask_type: str) -> None:
    """Published, a batch of several chats lost its `control_tokens`; here every row has its own mask."""
    args = [*without(ALPACA, "--batch_size"), *CHATS, "--mask_type", mask_type, "--num_samples", "1"]
    one, four = (records("alpaca_transfer_script.py", *args, "--batch_size", size)[-1] for size in ("1", "4"))
    assert list(one) == list(four) == KEYS["alpaca"]
    assert [four[key] for key in published.CHAT_COLUMNS] == pytest.approx(
        [one[key] for key in published.CHAT_COLUMNS], rel=1e-4
    )


def test_instructions_are_answered_by_the_chat_model(here: Path) -> None:
    """Of 4 records 1 has an input, so 3 are answered, the long one without its last character; then they are reused."""
    lines = [json.loads(line) for line in (PAIR / "chats.jsonl").read_text().splitlines()[:6]]
    asked = [{"instruction": line["instruction"], "input": "x" * (number == 2)} for number, line in enumerate(lines)]
    args = [*ALPACA, "--chats", str(write_jsonl(here / "asked.jsonl", asked)), "--mask_type", "rollout"]
    first = records("alpaca_transfer_script.py", *args, "--num_samples", "4")
    answers = (here / "generated_data_qwen.jsonl").read_bytes()
    assert answers.count(b"\n") == 3
    assert records("alpaca_transfer_script.py", *args, "--num_samples", "1") == first * 2
    assert (here / "generated_data_qwen.jsonl").read_bytes() == answers


def test_another_models_answers_are_left_alone_with_advice_that_holds(here: Path) -> None:
    """The scripts have no -o: the line says to move the file, and does not name an option that is not there."""
    (here / "generated_data_qwen.jsonl").write_text('{"instruction": "a", "completion": "b"}\n')
    begin(here / "generated_data_qwen.jsonl", {"model": "another"}, {})
    asked = write_jsonl(here / "asked.jsonl", [{"instruction": "a"}])
    args = [*ALPACA, "--chats", str(asked), "--mask_type", "rollout", "--num_samples", "1"]
    status, _, err = run_script("alpaca_transfer_script.py", *args)
    assert (status, err.count("\n")) == (2, 1), err
    assert "holds rollouts of another model: repeat its command or move it elsewhere, or run in another directory" in err
    assert " -o" not in err


def test_num_samples_is_ignored_where_the_published_chats_exist(here: Path) -> None:
    """generated_data_qwen.pkl in the working directory is used whole, as --chats would be."""
    import pickle

    lines = [json.loads(line) for line in (PAIR / "chats.jsonl").read_text().splitlines()[:6]]
    columns = {f"{key}s": [line[key] for line in lines] for key in ("instruction", "completion")}
    (here / "generated_data_qwen.pkl").write_bytes(pickle.dumps(columns))
    args = [*ALPACA, "--mask_type", "rollout"]
    record = records("alpaca_transfer_script.py", *args, "--num_samples", "1")[0]
    assert records("alpaca_transfer_script.py", *args, "--chats", "generated_data_qwen.pkl")[1] == record


MISTAKES = {
    "unknown project": (
        "sae_transfer_script.py",
        [*without(PILE, "--sae_project"), "--sae_project", "llama"],
        "mistral-7B-base",
    ),
    "unknown model": ("sae_transfer_script.py", [*without(PILE, "--model_name"), "--model_name", "gpt2"], "qwen1.5-0.5B-chat"),
    "missing flag": ("sae_transfer_script.py", without(PILE, "--eval_batches"), "--eval_batches"),
    "no number": ("sae_transfer_script.py", [*PILE, "--eval_batches", "many"], "many"),
    "misspelt flag": ("sae_transfer_script.py", [*PILE, "--outliers"], "--outliers"),
    "too little text": ("sae_transfer_script.py", [*PILE, "--eval_batches", "1000"], "2000 are asked for"),
    "wrong mask type": ("alpaca_transfer_script.py", [*ALPACA, *CHATS, "--mask_type", "system"], "control_tokens"),
    "base SAE as chat SAE": (
        "alpaca_transfer_script.py",
        [*ALPACA, *CHATS, "--mask_type", "rollout", "--chat_sae_project", "qwen-500M-base"],
        "qwen-500M-chat",
    ),
    "base model as chat model": (
        "alpaca_transfer_script.py",
        [*ALPACA, *CHATS, "--mask_type", "rollout", "--chat_model_name", "gemma-2b"],
        "gemma-2b-it",
    ),
    "outliers above nothing": (
        "alpaca_transfer_script.py",
        [*ALPACA, *CHATS, "--mask_type", "rollout", "--ignore_outliers"],
        "--outlier_threshold",
    ),
    "no chats yet": ("alpaca_transfer_script.py", [*ALPACA, "--mask_type", "rollout"], "--num_samples"),
    "nothing fine-tuned": (
        "finetuned_sae_evals.py",
        [*without(without(FINETUNED, "--model_name"), "--sae_path"), "--model_name", "gemma-2b-it"],
        "gemma-2b-it",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(here: Path, name: str) -> None:
    """Exit code 2; the line says what may be given."""
    script, args, says = MISTAKES[name]
    status, out, err = run_script(script, *args)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert list(here.iterdir()) == []


def test_a_results_file_that_holds_something_else_is_left_alone(here: Path) -> None:
    """It is noticed before anything is measured."""
    (here / "results").mkdir()
    (here / "results" / "sae_transfer_results_post.json").write_text("mine")
    status, _, err = run_script("sae_transfer_script.py", *PILE)
    assert (status, err.count("\n")) == (2, 1)
    assert (here / "results" / "sae_transfer_results_post.json").read_text() == "mine"
    assert not (here / "runs").exists()


@pytest.mark.parametrize("name", ["qwen1.5-0.5B-chat", "qwen1.5-0.5b-chat"])
def test_both_spellings_of_a_model_are_accepted(name: str) -> None:
    """Published, each script takes one of them."""
    assert published.model(name, "--model_name").hub == "Qwen/Qwen1.5-0.5B-Chat"


def test_both_gemma_saes_lie_in_one_project_of_another_name() -> None:
    """`gemma-2b-base` and `gemma-2b-it` are versions 8 and 7 of artifacts in W&B project `gemma-2`."""
    found = {**published.BASE_SAES, **published.CHAT_SAES}
    base, chat = (published.wandb_source(f"ckkissane/{found[name]}") for name in ("gemma-2b-base", "gemma-2b-it"))
    assert base == "wandb:ckkissane/gemma-2/sae_gemma-2b_blocks.9.hook_resid_pre_32768:v8"
    assert chat == "wandb:ckkissane/gemma-2/sae_gemma-2b-it_blocks.9.hook_resid_pre_32768:v7"


def test_an_unpublished_model_is_refused_with_those_that_are() -> None:
    """By name, under the flag that was given."""
    with pytest.raises(UserError, match=r"--model_name 'gpt2'.*gemma-2b-it"):
        published.model("gpt2", "--model_name")


def test_keys_are_those_of_the_published_files() -> None:
    """In their order, of all 20 records."""
    path = SHARED / "golden" / "published.json"
    if not path.exists():
        pytest.skip(f"{path} is only there in development")
    rows = json.loads(path.read_text())
    assert {tuple(row) for name in KEYS for row in rows[name]} == {tuple(keys) for keys in KEYS.values()}


@pytest.mark.parametrize("script", ["sae_transfer_script.py", "alpaca_transfer_script.py", "finetuned_sae_evals.py"])
def test_help_of_a_script_comes_at_once(script: str) -> None:
    """As a program of its own, without a tensor library."""
    root = Path(__file__).parents[2]
    done = fresh("-X", "importtime", str(root / script), "--help")
    assert done.returncode == 0
    assert "--model_path" in done.stdout
    assert "| torch\n" not in done.stderr
