"""`sae-transfer rollouts`: what a user gets, what is refused, and a file that a kill does not change."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sae_transfer
from sae_transfer import UserError, saes
from sae_transfer.data.rollouts import origin_path
from sae_transfer.models import loading
from sae_transfer.sources import resolve
from sae_transfer.specs import ModelRef, SaeRef
from tests.conftest import TEMPLATE, TEXTS, Pair, save_model, save_sae, write_jsonl
from tests.models.test_split import arriving_from
from tests.running import LOCKSTEP, fresh, run

STEPS = (
    LOCKSTEP
    + """model, asked, out, splice = sys.argv[1:]
sae_transfer.rollouts(model, asked, out=out, max_tokens=4, batch_size=32, splice=splice, progress=Lockstep())
"""
)
MOST, FACTOR, THRESHOLD = 10, 0.5, 5.0


def lines(path: Path) -> list[dict[str, str]]:
    """The records of a .jsonl."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def asked_of(pair: Pair) -> list[str]:
    """Its instructions, of several lengths."""
    return [record["instruction"] for record in lines(pair.chats)]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """200 instructions of many lengths, in no order: four parts."""
    texts = [f"{i} {TEXTS[i % 40][: 5 + i * 13 % 40]}" for i in range(200)]
    return write_jsonl(tmp_path / "asked.jsonl", [{"instruction": text} for text in texts])


def plainly(pair: Pair, splice: Path | None) -> list[str]:
    """One instruction at a time by whole passes, with a hook for the SAE at its hook point."""
    found = resolve.model(ModelRef("base", str(pair.base)))
    split, tokenizer = loading.load(found, "float32", "cpu", set()), loading.tokenizer(found)
    assert tokenizer is not None
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    sae = None if splice is None else saes.load(resolve.sae(SaeRef("sae", str(splice))), "cpu").module

    def change(resid: Tensor) -> Tensor:
        scaled = FACTOR * resid
        spliced = scaled if sae is None else sae.decode(sae.encode(scaled))
        return torch.where(scaled.norm(dim=-1, keepdim=True) > THRESHOLD, scaled, spliced) / FACTOR

    texts = []
    for text in asked_of(pair):
        ids = tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
        start = len(ids)
        with torch.no_grad(), arriving_from(split, 1, change):
            while len(ids) < start + MOST:
                following = int(split.lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
                if following in ends:
                    break
                ids.append(following)
        texts.append(tokenizer.decode(ids[start:]).rstrip("\ufffd" if len(ids) == start + MOST else ""))
    return texts


@pytest.mark.parametrize("spliced", [False, True])
def test_rollouts_are_those_of_one_prompt_at_a_time_in_input_order(pair: Pair, tmp_path: Path, spliced: bool) -> None:
    """The file is what `--chats` reads: every instruction in its place, and behind it the text of the plain loop."""
    splice = (
        ["--splice", str(pair.sae_base), "--norm-scaling-factor", str(FACTOR), "--outlier-threshold", str(THRESHOLD)]
        if spliced
        else []
    )
    out = tmp_path / "new" / "r.jsonl"
    asked = ["--model", str(pair.base), "--chats", str(pair.chats), "-o", str(out), "--max-tokens", str(MOST)]
    status, said, err = run("rollouts", *asked, "--batch-size", "3", *splice)
    assert (status, said) == (0, f"{out}\n"), err
    assert err.endswith("20 of 20 rollouts generated\n")
    expected = plainly(pair, pair.sae_base if spliced else None)
    assert lines(out) == [{"instruction": a, "completion": c} for a, c in zip(asked_of(pair), expected, strict=True)]
    assert len(set(expected)) > 10
    assert not spliced or sum(a != b for a, b in zip(expected, plainly(pair, None), strict=True)) > 10
    assert {path.name for path in out.parent.iterdir()} == {"r.jsonl", "r.jsonl.origin.json"}
    status, _, err = run(
        "evaluate", "--model", str(pair.base), "--sae", str(pair.sae_base), "--chats", str(out), "-o", str(tmp_path / "run")
    )
    assert status == 0, err


def kill_after(batches: int, *arguments: str) -> None:
    """Start the same rollouts in a process of its own and SIGKILL it after some batches were generated."""
    command = [sys.executable, "-c", STEPS, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            batches -= line.strip() == "generating"
            if batches == 0:
                process.kill()
                break
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_file_resumes_to_the_same_bytes(pair: Pair, asked: Path, tmp_path: Path) -> None:
    """Killed in its second part and then torn in a line: the same call goes on with the scale that it began with."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "r.jsonl"
    options: dict[str, Any] = {"max_tokens": 4, "batch_size": 32, "splice": str(pair.sae_base)}
    sae_transfer.rollouts(str(pair.base), asked, out=whole, **options)
    kill_after(4, str(pair.base), str(asked), str(out), str(pair.sae_base))
    assert len(lines(out)) == 64
    out.write_bytes(out.read_bytes() + whole.read_bytes().splitlines()[64][:20])
    begun = origin_path(out).read_bytes()
    done = sae_transfer.rollouts(str(pair.base), asked, out=out, **options)
    assert (done.count, done.made) == (200, 136)
    assert out.read_bytes() == whole.read_bytes()
    assert origin_path(out).read_bytes() == begun


def test_rollouts_go_on_with_the_scale_that_they_began_with(pair: Pair, tmp_path: Path) -> None:
    """It is read from the file beside them, not calibrated again on what is asked now."""
    begun, given = tmp_path / "begun.jsonl", tmp_path / "given.jsonl"
    options: dict[str, Any] = {"max_tokens": 6, "splice": str(pair.sae_base)}
    sae_transfer.rollouts(str(pair.base), pair.chats, out=begun, **options)
    calibrated, origin = begun.read_bytes(), json.loads(origin_path(begun).read_text())
    origin["noted"]["scale"] |= {"factor": 3.0, "threshold": None}
    origin_path(begun).write_text(json.dumps(origin))
    begun.write_bytes(b"")
    sae_transfer.rollouts(str(pair.base), pair.chats, out=begun, **options)
    number: dict[str, Any] = {"norm_scaling_factor": 3.0, "outlier_threshold": "off"}
    sae_transfer.rollouts(str(pair.base), pair.chats, out=given, **options, **number)
    assert calibrated != begun.read_bytes() == given.read_bytes()


def test_finished_rollouts_are_reused_and_more_can_be_asked_for(pair: Pair, tmp_path: Path) -> None:
    """The same command runs nothing and says so; a larger --max-documents goes on; a smaller one is refused."""
    out = tmp_path / "r.jsonl"
    command = ["rollouts", "--model", str(pair.base), "--instructions", str(pair.chats), "-o", str(out), "--max-tokens", "3"]
    assert run(*command, "--max-documents", "5")[0] == 0
    before, first = out.stat().st_mtime_ns, lines(out)
    status, _, err = run(*command, "--max-documents", "5")
    assert (status, err.splitlines()[-1]) == (0, "5 rollouts were already there: nothing was run")
    assert out.stat().st_mtime_ns == before
    assert run(*command)[0] == 0
    assert (len(lines(out)), lines(out)[:5]) == (20, first)
    status, _, err = run(*command, "--max-documents", "5")
    assert (status, err.splitlines()[-1].endswith("[E-RUN]")) == (2, True)


def test_finished_rollouts_are_found_without_a_tensor_library(pair: Pair, tmp_path: Path) -> None:
    """Neither torch nor the tokenizer is loaded to say that everything is there."""
    arguments = [str(pair.base), str(pair.chats), str(tmp_path / "r.jsonl")]
    made = sae_transfer.rollouts(arguments[0], arguments[1], out=arguments[2], max_tokens=3)
    again = "import sys, sae_transfer; a, b, c = sys.argv[1:]; found = sae_transfer.rollouts(a, b, out=c, max_tokens=3)"
    told = fresh("-c", f"{again}; print(found.count, found.made, 'torch' in sys.modules)", *arguments)
    assert (told.stdout, told.stderr) == (f"{made.count} 0 False\n", "")


def test_rollouts_go_on_from_what_a_kill_left(pair: Pair, tmp_path: Path) -> None:
    """An empty file, its origin and a lock that nobody holds; the date in a template is that of the beginning."""
    shutil.copytree(pair.base, tmp_path / "dated")
    (tmp_path / "dated" / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + TEMPLATE)
    out, texts = tmp_path / "r.jsonl", []
    for year in ("2026", "1999"):
        sae_transfer.rollouts(str(tmp_path / "dated"), pair.chats, out=out, max_tokens=6)
        texts.append(out.read_bytes())
        out.write_bytes(b"")
        (tmp_path / ".r.jsonl.lock").touch()
        origin = json.loads(origin_path(out).read_text())
        origin["noted"]["started"] = f"{year}-01-01T00:00:00+00:00"
        origin_path(out).write_text(json.dumps(origin))
    sae_transfer.rollouts(str(tmp_path / "dated"), pair.chats, out=out, max_tokens=6)
    assert out.read_bytes() not in texts
    assert not (tmp_path / ".r.jsonl.lock").exists()


@pytest.mark.parametrize(
    "changed", ["model", "chat_template", "max_tokens", "dtype", "splice", "scale", "threshold", "template file"]
)
def test_other_settings_in_the_same_file_are_refused(pair: Pair, tmp_path: Path, changed: str) -> None:
    """Whatever decides the text: another model, template, length, dtype, splice or scale of it."""
    out, template = tmp_path / "r.jsonl", tmp_path / "t.txt"
    template.write_text("Q {instruction} A ")
    options: dict[str, Any] = {
        "model": str(pair.base),
        "max_tokens": 2,
        "chat_template": str(template),
        "splice": str(pair.sae_base),
    }
    options |= {"instructions": str(pair.chats), "out": out, "max_documents": 2}
    sae_transfer.rollouts(**options)
    before = out.read_bytes()
    if changed == "template file":
        template.write_text("Q: {instruction} A: ")
    other = {
        "model": str(pair.chat),
        "chat_template": "qwen",
        "max_tokens": 3,
        "dtype": "bfloat16",
        "splice": str(pair.sae_chat),
    }
    other |= {"scale": 2.0, "threshold": "off"}
    names = {"scale": "norm_scaling_factor", "threshold": "outlier_threshold"}
    with pytest.raises(UserError, match="holds rollouts of.*E-RUN"):
        sae_transfer.rollouts(**options | ({names.get(changed, changed): other[changed]} if changed in other else {}))
    assert out.read_bytes() == before


def test_the_batch_size_changes_no_text(pair: Pair, tmp_path: Path) -> None:
    """One at a time, in threes, all at once."""
    files = [tmp_path / f"{size}.jsonl" for size in (1, 3, 100)]
    for size, out in zip((1, 3, 100), files, strict=True):
        sae_transfer.rollouts(str(pair.base), pair.chats, out=out, batch_size=size, max_tokens=6)
    assert all(first.read_bytes() == second.read_bytes() for first, second in itertools.pairwise(files))


def test_an_instruction_without_room_for_its_answer_is_left_out(pair: Pair, tmp_path: Path) -> None:
    """Said in a line, and not an answer cut short by the model's limit."""
    asked = write_jsonl(
        tmp_path / "asked.jsonl", [{"instruction": "~ " * 120}, {"instruction": "fox"}, {"instruction": "a", "input": "b"}]
    )
    arguments = ["rollouts", "--model", str(pair.base), "--instructions", str(asked), "-o", str(tmp_path / "r.jsonl")]
    status, _, err = run(*arguments, "--max-tokens", "20")
    assert status == 0, err
    assert [record["instruction"] for record in lines(tmp_path / "r.jsonl")] == ["fox"]
    assert "1 instructions were left out: with 20 tokens more" in err
    assert "1 records were left out: they have an input" in err


MISTAKES: dict[str, tuple[str, dict[str, str]]] = {
    "missing model": ("E-PATH", {"model": "./missing"}),
    "missing instructions": ("E-PATH", {"instructions": "./missing.jsonl"}),
    "text for instructions": ("E-DATA", {"instructions": "{text}"}),
    "rows for instructions": ("E-DATA", {"instructions": "{rows}"}),
    "no .jsonl": ("E-OPTION", {"out": "{tmp}/r.json"}),
    "their own instructions": ("E-RUN", {"out": "{chats}"}),
    "a folder": ("E-RUN", {"out": "{tmp}/folder.jsonl"}),
    "no template": ("E-TEMPLATE", {"chat-template": "gemma"}),
    "no tokenizer": ("E-TOKENIZER", {"model": "{bare}"}),
    "no tokens": ("E-OPTION", {"max-tokens": "0"}),
    "too many tokens": ("E-DATA", {"max-tokens": "1000"}),
    "scale without a splice": ("E-SPEC", {"norm-scaling-factor": "2"}),
    "own scale": ("E-OPTION", {"splice": "{sae}", "norm-scaling-factor": "own"}),
    "width of the splice": ("E-WIDTH", {"splice": "{wide}"}),
    "device": ("E-OPTION", {"device": "cuda:99"}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(pair: Pair, tmp_path: Path, name: str) -> None:
    """Exit code 2, the code, no file."""
    code, changes = MISTAKES[name]
    (tmp_path / "folder.jsonl").mkdir()
    bare, wide = save_model(tmp_path / "bare", 0), save_sae(tmp_path / "wide", 0, d_in=24)
    places = {
        "text": pair.text,
        "rows": pair.rows,
        "chats": pair.chats,
        "tmp": tmp_path,
        "bare": bare,
        "wide": wide,
        "sae": pair.sae_base,
    }
    options = {"model": str(pair.base), "instructions": str(pair.chats), "out": str(tmp_path / "new" / "r.jsonl")} | changes
    before = pair.chats.read_bytes()
    arguments = [word for key, value in options.items() for word in (f"--{key}", value.format(**places))]
    status, _, err = run("rollouts", *arguments)
    assert (status, err.strip().count("\n")) == (2, 0), err
    assert err.endswith(f"[{code}]\n"), err
    assert {path.name for path in tmp_path.iterdir()} == {"folder.jsonl", "bare", "wide"}
    assert pair.chats.read_bytes() == before


def test_golden_answers_of_a_real_model(golden: Callable[[str], Path], smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2's greedy answers to the first Alpaca instructions are those that were generated without this project."""
    out, expected = tmp_path / "r.jsonl", golden("smollm2") / "rollouts.jsonl"
    options: dict[str, Any] = {"chat_template": "qwen", "max_tokens": 48, "max_documents": 4}
    sae_transfer.rollouts(str(smollm2), expected, out=out, **options)
    assert lines(out) == lines(expected)[:4]
