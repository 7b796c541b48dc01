"""Chats about the same world: what somebody asks, and a good answer. The sentences are this project's own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from recipes.demo_pair.texts import GROUPS, HEADS, OPERATIONS, calculation, members, program, story
from recipes.demo_pair.world import PEOPLE, SPOTS, THINGS, Plan, Split, facts


@dataclass(frozen=True)
class Chat:
    """A request and its answer, and what both were written from."""

    plan: Plan
    instruction: str
    completion: str


OPENERS = ("", "Of course. ", "Happy to help. ", "Good question. ", "Let me see. ")
CLOSERS = ("", " I hope that helps.", " Ask me if you need more.", " Is there anything else?")
SUM_QUESTIONS = {
    "+": ("What is {a} + {b}?", "How much is {a} and {b}?", "Add {b} to {a}.", "Please work out {a} + {b}."),
    "-": ("What is {a} - {b}?", "How much is {a} less {b}?", "Take {b} from {a}.", "Please work out {a} - {b}."),
}
SUM_ANSWERS = ("{a} {sign} {b} = {c}.", "The result is {c}.", "It is {c}.")
STORY_REQUESTS = (
    "Tell me a story about {p} and a {t}.",
    "Write a short story set in {l} with {p}.",
    "I want to hear about {p}, a {t} and {l}.",
    "What happened to {p} in {l}?",
)
SORT_REQUESTS = ("Put these in order: {x}.", "Sort the words {x}.", "Please sort: {x}.", "Give me these in order: {x}.")
PICK_REQUESTS = ("Which of these is a {g}: {x}?", "Find the {g}: {x}.", "One of {x} is a {g}. Which one?")
ECHO_REQUESTS = (
    "Say after me: {x}",
    "Repeat this: {x}",
    "Please write {x} again.",
    "Copy this for me: {x}",
    "Write down {x}.",
    "{x}. Again, please.",
)
SORT_ANSWERS = ("{x}.", "In order: {x}.", "They are {x}.")
PICK_ANSWERS = ("The {g} is {x}.", "{x} is a {g}.", "It is {x}.", "That must be {x}.")
ECHO_ANSWERS = ("{x}.", "Here it is: {x}.", "You said {x}.")
WHERE_ANSWERS = (
    "The {t} is in the {s}.",
    "In the {s}.",
    "Look in the {s}.",
    "It is in the {s}.",
    "You will find the {t} in the {s}.",
)
CODE_REQUESTS = ("Write a function {name}.", "How do I write {name} in code?", "Show me code for {name}.")
WHERE_REQUESTS = (
    "{p} put the {t} in the {s}. {q} put the {u} in the {r}. Where is the {t}?",
    "The {t} is in the {s} and the {u} is in the {r}. Where should {p} look for the {t}?",
    "{p} left the {t} at the {s} and the {u} at the {r}. Where did {p} leave the {t}?",
    "Look for the {u} in the {r} and for the {t} in the {s}. Where is the {t}?",
    "{q} says that the {t} is in the {s}. The {u} is in the {r}. Where can {p} find the {t}?",
)


def question(rng: Random, split: Split) -> Chat:
    """A fact of the world, asked for."""
    fact = rng.choice(facts(split))
    asked, told = rng.choice(fact.relation.questions), rng.choice(fact.relation.patterns)
    plan = Plan("question", (asked, told), (fact.name,))
    return Chat(plan, asked.format(s=fact.subject), told.format(s=fact.subject, v=fact.value))


def arithmetic(rng: Random, split: Split) -> Chat:
    """A calculation."""
    done = calculation(rng, split)
    asked, told = rng.choice(SUM_QUESTIONS[done.sign]), rng.choice(SUM_ANSWERS)
    slots = {"a": done.a, "b": done.b, "c": done.c, "sign": done.sign}
    return Chat(Plan("arithmetic", (asked, told), (done.name,)), asked.format(**slots), told.format(**slots))


def tale(rng: Random, split: Split) -> Chat:
    """A story that was asked for."""
    told, asked = story(rng, split), rng.choice(STORY_REQUESTS)
    person, thing, place = told.plan.facts[0].split()
    plan = Plan("tale", (asked, *told.plan.template), told.plan.facts)
    return Chat(plan, asked.format(p=person, t=thing, l=place), told.text)


def sorting(rng: Random, split: Split) -> Chat:  # noqa: ARG001
    """Three to five words, put in order."""
    group, asked = rng.choice(list(GROUPS)), rng.choice(SORT_REQUESTS)
    items = members(rng, group, rng.randint(3, 5))
    told = rng.choice(SORT_ANSWERS)
    plan = Plan("sorting", (asked, told, group, str(len(items))), (" ".join(items),))
    return Chat(plan, asked.format(x=", ".join(rng.sample(items, len(items)))), told.format(x=", ".join(items)))


def pick(rng: Random, split: Split) -> Chat:  # noqa: ARG001
    """The one word of a group among words of another."""
    group, other = rng.sample([name for name in GROUPS if name != "place"], 2)
    right, wrong, asked = rng.choice(GROUPS[group]), members(rng, other, 2), rng.choice(PICK_REQUESTS)
    told, words = rng.choice(PICK_ANSWERS), rng.sample([right, *wrong], 3)
    plan = Plan("pick", (asked, told, group, other), (" ".join([right, *wrong]),))
    return Chat(plan, asked.format(g=group, x=", ".join(words)), told.format(g=group, x=right))


def echo(rng: Random, split: Split) -> Chat:  # noqa: ARG001
    """Words to repeat."""
    words, asked = rng.sample(THINGS + PEOPLE + SPOTS, rng.randint(2, 4)), rng.choice(ECHO_REQUESTS)
    said, told = " ".join(words), rng.choice(ECHO_ANSWERS)
    return Chat(Plan("echo", (asked, told, str(len(words))), (said,)), asked.format(x=said), told.format(x=said))


def where(rng: Random, split: Split) -> Chat:  # noqa: ARG001
    """Something to be looked up in the request itself."""
    (p, q), (t, u), (s, r) = rng.sample(PEOPLE, 2), rng.sample(THINGS, 2), rng.sample(SPOTS, 2)
    asked, told = rng.choice(WHERE_REQUESTS), rng.choice(WHERE_ANSWERS)
    plan = Plan("where", (asked, told), (f"{t} {s} {u} {r}",))
    return Chat(plan, asked.format(p=p, q=q, t=t, u=u, s=s, r=r), told.format(t=t, s=s))


def coding(rng: Random, split: Split) -> Chat:  # noqa: ARG001
    """A function by its name."""
    word, n, head, asked = rng.choice(list(OPERATIONS)), rng.randint(0, 12), rng.choice(HEADS), rng.choice(CODE_REQUESTS)
    plan = Plan("coding", (asked, word, head), (f"{word} {n}",))
    return Chat(plan, asked.format(name=f"{word}_{n}"), program(rng, word, n, head, ()))


WRITERS: dict[str, Callable[[Random, Split], Chat]] = {
    "question": question,
    "arithmetic": arithmetic,
    "tale": tale,
    "sorting": sorting,
    "pick": pick,
    "echo": echo,
    "where": where,
    "coding": coding,
}
SHARES = {"question": 28, "arithmetic": 14, "tale": 16, "sorting": 10, "pick": 10, "echo": 8, "where": 8, "coding": 6}
"""Chats of each kind in a hundred."""


def chats(seed: int, split: Split, count: int, polite: bool) -> list[Chat]:
    """The first `count` chats of a split's stream, no request twice; polite ones say a little before and after the answer."""
    rng = Random(f"chats {split} {seed}")  # noqa: S311
    written: dict[str, Chat] = {}
    while len(written) < count:
        kind = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
        while not (chat := _said(rng, WRITERS[kind](rng, split), polite)).plan.belongs_to(split):
            pass
        written.setdefault(chat.instruction, chat)
    return list(written.values())


def _said(rng: Random, chat: Chat, polite: bool) -> Chat:
    """The chat in its manner, which is part of its template."""
    before, after = (rng.choice(OPENERS), rng.choice(CLOSERS)) if polite else ("", "")
    plan = replace(chat.plan, template=(*chat.plan.template, before, after))
    return Chat(plan, chat.instruction, before + chat.completion + after)
