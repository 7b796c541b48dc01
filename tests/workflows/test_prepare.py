"""The text of a command without data: what the SAEs record that they were trained on, if that can be nothing but the Hub's."""

from dataclasses import replace
from pathlib import Path

import pytest

from sae_transfer.errors import UserError
from sae_transfer.sources import resolve
from sae_transfer.sources.resolve import ResolvedSae
from sae_transfer.specs import DataRef, EvaluateSpec, ModelRef, SaeRef
from sae_transfer.workflows.prepare import DOCUMENTS, with_own_text
from tests.conftest import Pair

SPEC = EvaluateSpec((ModelRef("base", "./base"),), (SaeRef("sae", "./sae"),), ())


def recording(pair: Pair, *datasets: str | None) -> tuple[ResolvedSae, ...]:
    """SAEs, `sae0` and on, that record these data sets."""
    found = resolve.sae(SaeRef("sae", str(pair.sae_base)))
    refs = [SaeRef(f"sae{number}", "./sae") for number, _ in enumerate(datasets)]
    return tuple(replace(found, ref=r, facts=replace(found.facts, dataset=d)) for r, d in zip(refs, datasets, strict=True))


@pytest.mark.parametrize(
    ("datasets", "otherwise", "expected"),
    [
        (["lab/texts"], None, "lab/texts"),
        ([None, "lab/texts", "lab/texts"], "lab/pile", "lab/texts"),
        ([None, None], "lab/pile", "lab/pile"),
    ],
)
def test_the_text_is_the_one_that_saes_record(
    pair: Pair, datasets: list[str | None], otherwise: str | None, expected: str
) -> None:
    """SAEs that record none go along with those that do; only where none does, another takes its place."""
    assert with_own_text(SPEC, recording(pair, *datasets), otherwise).data == (DataRef("text", "text", expected),)


def test_so_much_is_read_as_is_asked_for(pair: Pair) -> None:
    """Documents, or rows; only where neither is said, the default."""
    specs = (SPEC, replace(SPEC, max_documents=7), replace(SPEC, max_rows=6))
    assert [with_own_text(spec, recording(pair, "lab/texts")).max_documents for spec in specs] == [DOCUMENTS, 7, None]


@pytest.mark.parametrize(
    "name",
    ["/data/texts", "./texts", "~/texts", "../texts", "lab/..", "texts", "lab/texts.jsonl", "lab/texts:few", "a/b/c"],
)
def test_a_name_that_is_no_hub_id_is_never_a_path(pair: Pair, name: str) -> None:
    """Somebody's config must not choose a file, configuration or commit."""
    with pytest.raises(UserError, match=r"'.*', is no ORG/NAME of the Hub.*: give --text \[E-SPEC\]"):
        with_own_text(SPEC, recording(pair, name))


def test_a_name_that_lies_here_is_refused(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that streams would read a folder of that name."""
    (tmp_path / "lab" / "texts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is a path here: give --text \[E-SPEC\]"):
        with_own_text(SPEC, recording(pair, "lab/texts"))


def test_saes_of_different_text_are_refused_by_both_names(pair: Pair) -> None:
    """One run has one text."""
    with pytest.raises(UserError, match=r"sae0 on 'lab/a', sae2 on 'lab/b'\): give --text"):
        with_own_text(SPEC, recording(pair, "lab/a", None, "lab/b"))
