"""`check`: exit codes and lines that a team's CI can rely on."""

import pytest

from sae_transfer import Run, UserError, check
from tests.running import run

BASE_ON_CHAT = ("--model", "chat", "--sae", "base", "--token-kind", "rollout")


@pytest.mark.parametrize(
    ("bound", "code", "said"),
    [("0.2", 0, "holds: "), ("0.001", 3, "broken: "), ("0.036", 4, "not enough data: ")],
)
def test_the_exit_code_says_whether_the_bound_holds(demo_run: Run, bound: str, code: int, said: str) -> None:
    """0, 3 or 4, with one line for each cell and bound."""
    ended, out, err = run("check", str(demo_run.path), *BASE_ON_CHAT, "--max-delta-ce", bound)
    assert (ended, err) == (code, "")
    assert out.startswith(f"{said}SAE base on chat, chats (rollout): ΔCE 0.03")
    assert out.count("\n") == 1


def test_a_broken_bound_outweighs_one_that_is_not_settled(demo_run: Run) -> None:
    """Every cell of the run is held against every bound unless names are given; the same in Python."""
    code, out, _ = run("check", str(demo_run.path), "--max-kl", "0.02", "--min-explained-variance", "0.9")
    assert code == 3
    assert {line.partition(":")[0] for line in out.splitlines()} == {"holds", "broken", "not enough data"}
    found = check(demo_run, max_kl=0.02, min_explained_variance=0.9)
    assert len(found) == len(out.splitlines()) == 2 * len(demo_run.records())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nothing to check"),
        (("--max-kl", "nan"), "a bound of nan on kl checks nothing"),
        (("--max-kl", "1", "--model", "none"), "--model 'none' is not in this run: choose from base, chat"),
        (("--max-kl", "1", "--data", "text", "--token-kind", "rollout"), "no cell of this run has all of these names"),
    ],
)
def test_what_cannot_be_checked_is_refused(demo_run: Run, options: tuple[str, ...], said: str) -> None:
    """A gate that checks nothing must not be open."""
    code, _, err = run("check", str(demo_run.path), *options)
    assert code == 2
    assert said in err


def test_an_unfinished_run_is_refused(demo_run: Run) -> None:
    """Its documents are not those that were asked for."""
    begun = Run(demo_run.path)
    begun.manifest = begun.manifest.model_copy(update={"status": "running"})
    with pytest.raises(UserError, match=r"is unfinished: repeat the command.*E-RUN"):
        check(begun, max_kl=1.0)
