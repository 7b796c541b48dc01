"""Plain text of the world: stories, facts, arithmetic, lists and a little code. The sentences are this project's own."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from recipes.demo_pair.world import (
    ANIMALS,
    COLOURS,
    DAYS,
    FOODS,
    PEOPLE,
    PLACES,
    SPOTS,
    THINGS,
    WEATHER,
    Plan,
    Split,
    facts,
    pronoun,
    split_of,
)


@dataclass(frozen=True)
class Document:
    """A text, and what it was written from."""

    plan: Plan
    text: str


OPENINGS = (
    "On a morning of {w} {p} walked to the {s}.",
    "On {d} {p} went to the {s} of {l}.",
    "{p} had a {c} {t} and wanted to sell it at the {s}.",
    "There was {w} over {l}, and {p} stayed near the {s}.",
    "Long ago {p} came to {l} with nothing but a {t}.",
    "It was {d}, and {p} had lost the {t}.",
)
EVENTS = (
    "At the {s} {h} met {q}, who carried a {c} {t}.",
    "A {a} ran past and {p} dropped the {t}.",
    '"Have you seen my {t}?" asked {q}.',
    "{q} gave {p} some {f}, and they sat down by the {s}.",
    "The {a} looked at {p} and did not move.",
    "Then {h} found the {t} under a tree.",
    '"The {t} is mine," said {p}, "but you may use it."',
    "{p} called the {a}, but only {q} came.",
    "The {t} fell into the water near the {s}.",
    "{q} and {p} looked for the {a} all day.",
)
ENDINGS = (
    "In the evening {p} went home to {l} with the {t}.",
    "So {q} kept the {t}, and {p} kept the {a}.",
    "After that {p} and {q} were friends.",
    "And the {a} slept beside the {t} until {d}.",
    "{p} never came back to the {s}.",
    "That is how {l} got its {t}.",
)
SUMS = {
    "+": (
        "{a} + {b} = {c}",
        "{a} and {b} make {c}.",
        "If you add {b} to {a} you get {c}.",
        "{p} has {a} {t}s and finds {b} more, so {p} has {c} {t}s.",
    ),
    "-": (
        "{a} - {b} = {c}",
        "{a} less {b} is {c}.",
        "If you take {b} from {a} you are left with {c}.",
        "{p} has {a} {t}s and gives away {b}, so {p} has {c} {t}s.",
    ),
}
TITLES = (
    "Things that {p} takes to {l}:",
    "To buy on {d}:",
    "What {p} keeps in the {s}:",
    "{p} saw these at the {s}:",
    "A list for {p}:",
    "Left behind in {l}:",
    "Wanted in {l}:",
    "{p} asked for:",
)
GROUPS = {"thing": THINGS, "animal": ANIMALS, "food": FOODS, "colour": COLOURS, "place": PLACES}
BULLETS = ("- {x}", "* {x}", "{i}. {x}", "{i}) {x}")
OPERATIONS = {"add": "+", "take": "-", "more": ">", "same": "=="}
HEADS = (
    "def {name}(x):\n    return x {sign} {n}",
    "def {name}(x):\n    y = x {sign} {n}\n    return y",
    "{name} = lambda x: x {sign} {n}",
)
USES = ("print({name}({m}))  # {value}", "assert {name}({m}) == {value}", "{name}({m})  # gives {value}")


def story(rng: Random, split: Split) -> Document:  # noqa: ARG001
    """An opening, two to four events, an ending; somebody, something and somewhere hold it together."""
    person, other = rng.sample(PEOPLE, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    sentences = (rng.choice(OPENINGS), *rng.sample(EVENTS, rng.randint(2, 4)), rng.choice(ENDINGS))
    slots = {"p": person, "q": other, "t": thing, "l": place, "h": pronoun(person), "a": rng.choice(ANIMALS)}
    slots |= {"s": rng.choice(SPOTS), "c": rng.choice(COLOURS), "f": rng.choice(FOODS)}
    slots |= {"w": rng.choice(WEATHER), "d": rng.choice(DAYS)}
    plan = Plan("story", sentences, (f"{person} {thing} {place}",))
    return Document(plan, " ".join(sentence.format(**slots) for sentence in sentences))


def note(rng: Random, split: Split) -> Document:
    """Three to six facts, one sentence each."""
    told = rng.sample(facts(split), rng.randint(3, 6))
    patterns = tuple(rng.choice(fact.relation.patterns) for fact in told)
    sentences = (pattern.format(s=fact.subject, v=fact.value) for pattern, fact in zip(patterns, told, strict=True))
    return Document(Plan("note", patterns, tuple(fact.name for fact in told)), " ".join(sentences))


def sums(rng: Random, split: Split) -> Document:
    """Three to six calculations, one a line."""
    done = [calculation(rng, split) for _ in range(rng.randint(3, 6))]
    patterns = tuple(rng.choice(SUMS[one.sign]) for one in done)
    filled = (
        pattern.format(a=one.a, b=one.b, c=one.c, p=rng.choice(PEOPLE), t=rng.choice(THINGS))
        for pattern, one in zip(patterns, done, strict=True)
    )
    return Document(Plan("sums", patterns, tuple(one.name for one in done)), "\n".join(filled))


def listing(rng: Random, split: Split) -> Document:  # noqa: ARG001
    """A title and three to seven members of one group."""
    items = members(rng, rng.choice(list(GROUPS)), rng.randint(3, 7))
    title, bullet = rng.choice(TITLES), rng.choice(BULLETS)
    slots = {"p": rng.choice(PEOPLE), "l": rng.choice(PLACES), "d": rng.choice(DAYS), "s": rng.choice(SPOTS)}
    lines = [bullet.format(i=i, x=item) for i, item in enumerate(items, 1)]
    plan = Plan("list", (title, bullet, str(len(items))), (" ".join(items),))
    return Document(plan, "\n".join([title.format(**slots), *lines]))


def code(rng: Random, split: Split) -> Document:  # noqa: ARG001
    """A function of one number, and one to three uses of it."""
    word, n, head = rng.choice(list(OPERATIONS)), rng.randint(0, 12), rng.choice(HEADS)
    uses = tuple(rng.choice(USES) for _ in range(rng.randint(1, 3)))
    return Document(Plan("code", (word, head, *uses), (f"{word} {n}",)), program(rng, word, n, head, uses))


@dataclass(frozen=True)
class Calculation:
    """`a + b = c` or `a - b = c`."""

    a: int
    sign: str
    b: int

    @property
    def c(self) -> int:
        return self.a + self.b if self.sign == "+" else self.a - self.b

    @property
    def name(self) -> str:
        return f"{self.a} {self.sign} {self.b}"


def calculation(rng: Random, split: Split) -> Calculation:
    """One that the split owns, of numbers up to 20 and a result of at least 0."""
    while True:
        sign, (low, high) = rng.choice("+-"), sorted((rng.randint(0, 20), rng.randint(0, 20)))
        one = Calculation(high, sign, low) if sign == "-" or rng.random() < 0.5 else Calculation(low, sign, high)
        if split_of("fact", one.name) == split:
            return one


def members(rng: Random, group: str, count: int) -> list[str]:
    """Some of a group, in alphabetical order."""
    return sorted(rng.sample(GROUPS[group], count))


def program(rng: Random, word: str, n: int, head: str, uses: tuple[str, ...]) -> str:
    """The source text of a function such as `add_3`, and of its uses."""
    name = f"{word}_{n}"
    lines = [head.format(name=name, sign=OPERATIONS[word], n=n)]
    for use in uses:
        m = rng.randint(0, 20)
        value = {"add": m + n, "take": m - n, "more": m > n, "same": m == n}[word]
        lines.append(use.format(name=name, m=m, value=value))
    return "\n".join(lines)


WRITERS: dict[str, Callable[[Random, Split], Document]] = {
    "story": story,
    "note": note,
    "sums": sums,
    "list": listing,
    "code": code,
}
SHARES = {"story": 40, "note": 25, "sums": 15, "list": 12, "code": 8}
"""Documents of each kind in a hundred."""


def documents(seed: int, split: Split, count: int) -> list[Document]:
    """The first `count` documents of a split's stream, none twice."""
    rng = Random(f"text {split} {seed}")  # noqa: S311
    written: dict[str, Document] = {}
    while len(written) < count:
        kind = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
        while not (document := WRITERS[kind](rng, split)).plan.belongs_to(split):
            pass
        written.setdefault(document.text, document)
    return list(written.values())
