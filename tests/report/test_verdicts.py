"""What a reader of the verdicts sees: grouped, worst first, and nothing that could steer a terminal."""

import re
from typing import Any

from sae_transfer import Run
from sae_transfer.report.verdicts import answers, terminal
from tests.running import run

NOT_MOVED = dict.fromkeys(("drift_cosine", "drift_norm_ratio", "drift_cka"))
NOT_COMPARED = dict.fromkeys(("delta_ce_change", "kl_change"))


def record(token_kind: str, verdict: str | None, delta_ce: float, **changes: Any) -> dict[str, Any]:
    """Of one SAE on one model."""
    names = {"model": "m", "sae": "s", "data": "chats", "token_kind": token_kind}
    return (
        names
        | {
            "verdict": verdict,
            "why": f"why {delta_ce}",
            "reference": "r",
            "delta_ce": delta_ce,
            "kl": 0.0,
            **NOT_MOVED,
            **NOT_COMPARED,
        }
        | changes
    )


def test_kinds_with_one_verdict_stand_together_and_the_costliest_says_why() -> None:
    """Worst verdict first; an SAE on its own model is no question."""
    found = answers(
        [
            record("rollout", "transfers", 0.1),
            record("user_prompt", "does not transfer", 0.9),
            record("system", "transfers", 0.3),
            record("all", "transfers", 0.2, data="text"),
            record("rollout", None, 0.0, sae="own", reference=None),
        ]
    )
    assert [(one.verdict, one.places, one.why) for one in found] == [
        ("does not transfer", ("chats (user prompt)",), "why 0.9"),
        ("transfers", ("chats (rollout, system)", "text"), "why 0.3"),
    ]
    assert found[1].reason() == "chats (system): why 0.3"


def test_the_change_from_the_reference_says_what_is_costliest() -> None:
    """Not what splicing costs in all, which the reference may cost too."""
    changes = {"delta_ce_change": 0.0, "kl_change": 0.0}
    dear = record("rollout", "transfers", 0.9, **changes)
    (found,) = answers([dear, record("system", "transfers", 0.1, **(changes | {"kl_change": 0.04}))])
    assert found.worst == "chats (system)"


def test_names_cannot_steer_a_terminal() -> None:
    """Markup and escapes of names and data are printed as they are."""
    text = terminal([record("all", "transfers", 0.1, sae="[red]s\x1b[2J", why="[bold]w")], None, False)
    assert "[red]s\\x1b[2J" in text
    assert "[bold]w" in text
    assert terminal([], None, False) == ""


def test_show_prints_verdicts_above_the_matrix_and_takes_other_limits(demo_run: Run) -> None:
    """With limits of next to nothing, what transferred does not."""
    _, text, _ = run("show", str(demo_run.path))
    assert text.index("SAE base on lora, text; chats") < text.index("out-")
    code, strict, _ = run("show", str(demo_run.path), "--criterion", "kl=0.0001:0.0002")
    assert code == 0
    assert re.search(r"^transfers +SAE base on lora", text, re.MULTILINE)
    assert re.search(r"^does not transfer +SAE base on lora", strict, re.MULTILINE)
