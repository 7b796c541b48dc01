"""The written world: what is held out was never seen, by fact and by template."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.demo_pair.chats import WRITERS as ASKING
from recipes.demo_pair.chats import Chat, chats
from recipes.demo_pair.texts import WRITERS as TELLING
from recipes.demo_pair.texts import Document, documents
from recipes.demo_pair.tokens import train_tokenizer
from recipes.demo_pair.world import RELATIONS, Plan, Split, facts, split_of

SPLITS: tuple[Split, ...] = ("train", "validation", "held_out")


def used_by(plan: Plan, what: str) -> list[object]:
    """A plan's facts, or its template."""
    return list(plan.facts) if what == "facts" else [(plan.kind, plan.template)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SPLITS))
def test_what_is_written_uses_only_facts_and_templates_of_its_split(seed: int, split: Split) -> None:
    """Whatever the seed: so no held-out document or chat shares a fact or a template with training."""
    written: list[Document | Chat] = [
        *documents(seed, split, 30),
        *chats(seed, split, 20, polite=True),
        *chats(seed, split, 10, polite=False),
    ]
    for one in written:
        assert {split_of("fact", fact) for fact in one.plan.facts} == {split}
        assert split_of("template", one.plan.kind, *one.plan.template) == split


def test_text_and_chats_share_no_fact_or_template_across_splits() -> None:
    """Counted over the documents themselves, without asking the hash."""
    seen: dict[Split, list[Document | Chat]] = {
        split: [*documents(0, split, 400), *chats(0, split, 200, polite=True)] for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        for used in ("facts", "template"):
            pair = [{value for written in seen[split] for value in used_by(written.plan, used)} for split in (one, other)]
            assert min(map(len, pair)) > 20
            assert not pair[0] & pair[1], (one, other, used)


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_of_text_and_chat_occurs_in_every_split(split: Split) -> None:
    """No split lacks stories, notes, sums, lists or code, nor any kind of request."""
    assert {document.plan.kind for document in documents(1, split, 200)} == set(TELLING)
    assert {chat.plan.kind for chat in chats(1, split, 150, polite=True)} == set(ASKING)
    assert len(facts(split)) >= 9


def test_every_fact_has_one_value_of_its_relation() -> None:
    """The world is the same for everyone who writes about it."""
    for fact in facts("train"):
        assert fact.value in fact.relation.values
        assert fact in facts("train")
    assert len({relation.name for relation in RELATIONS}) == len(RELATIONS)


def test_the_same_seed_writes_the_same_text_and_the_tokenizer_gives_it_back() -> None:
    """Documents survive a round trip through a tokenizer trained on them; digits stand alone."""
    written = documents(3, "train", 200)
    assert written == documents(3, "train", 200) != documents(4, "train", 200)
    tokenizer = train_tokenizer([document.text for document in written])
    for document in written[:20]:
        ids = tokenizer(document.text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == document.text
    assert len(tokenizer("1234", add_special_tokens=False).input_ids) == 4
