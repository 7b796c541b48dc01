"""A small world: who lives in it, what is true of it, and which of its facts and templates a split may use.

Every fact and every template belongs to one split, by a hash of its name: a document is written from facts and a
template of its own split only, so held-out documents share neither with the documents that models learn from.
"""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Literal

Split = Literal["train", "validation", "held_out"]
SHARES: tuple[Split, ...] = ("train",) * 8 + ("validation", "held_out")

SHE = ("Mira", "Orla", "Tess", "Nell", "Ada", "Ines", "Ruth", "Lena", "Vera", "Dora", "Hana", "Wilma")
HE = ("Tom", "Bram", "Otto", "Finn", "Karl", "Hugo", "Jon", "Emil", "Rolf", "Sven", "Paul", "Max")
PEOPLE = SHE + HE
PLACES = (
    "Tarn",
    "Ashby",
    "Millbrook",
    "Stonewell",
    "Elmford",
    "Harrow",
    "Lowick",
    "Seaham",
    "Redhill",
    "Oakley",
    "Fenton",
    "Wick",
)
TRADES = ("baker", "miller", "weaver", "smith", "teacher", "painter", "sailor", "farmer", "carpenter", "gardener")
ANIMALS = ("cat", "dog", "goat", "hen", "horse", "crow", "fox", "hare", "owl", "pig", "sheep", "duck")
COLOURS = ("red", "blue", "green", "white", "black", "brown", "yellow", "grey")
FOODS = ("bread", "soup", "apples", "cheese", "plums", "beans", "honey", "pears", "nuts", "fish")
THINGS = (
    "lamp",
    "kite",
    "rope",
    "basket",
    "drum",
    "clock",
    "ladder",
    "kettle",
    "boat",
    "bell",
    "chair",
    "spade",
    "coat",
    "map",
)
MATERIALS = ("wood", "iron", "clay", "wool", "paper", "glass", "copper", "straw")
SPOTS = ("mill", "barn", "school", "market", "bridge", "harbour", "garden", "well", "forest", "tower")
WEATHER = ("rain", "snow", "wind", "fog", "sun", "frost")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Relation:
    """Something that is true of each of `subjects`: patterns that state it, and questions about it, of {s} and {v}."""

    name: str
    subjects: tuple[str, ...]
    values: tuple[str, ...]
    patterns: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One truth of the world."""

    relation: Relation
    subject: str

    @property
    def name(self) -> str:
        return f"{self.relation.name} of {self.subject}"

    @property
    def value(self) -> str:
        return self.relation.values[digest("truth", self.name) % len(self.relation.values)]


RELATIONS = (
    Relation(
        "home",
        PEOPLE,
        PLACES,
        ("{s} lives in {v}.", "The home of {s} is in {v}.", "{s} has a small house in {v}."),
        ("Where does {s} live?", "In which town is the home of {s}?"),
    ),
    Relation(
        "trade",
        PEOPLE,
        TRADES,
        ("{s} is a {v}.", "{s} works as a {v}.", "By trade {s} is a {v}."),
        ("What is the trade of {s}?", "What does {s} work as?"),
    ),
    Relation(
        "pet",
        PEOPLE,
        ANIMALS,
        ("{s} keeps a {v}.", "The animal that {s} feeds is a {v}.", "At home {s} looks after a {v}."),
        ("Which animal does {s} keep?", "What animal lives with {s}?"),
    ),
    Relation(
        "colour",
        PEOPLE,
        COLOURS,
        ("{s} likes the colour {v}.", "The door of {s} is painted {v}.", "{s} always wears {v}."),
        ("Which colour does {s} like?", "What colour does {s} wear?"),
    ),
    Relation(
        "meal",
        PEOPLE,
        FOODS,
        ("{s} eats {v} in the morning.", "The first meal of {s} is {v}.", "Every day {s} asks for {v}."),
        ("What does {s} eat in the morning?", "What is the first meal of {s}?"),
    ),
    Relation(
        "market",
        PLACES,
        DAYS,
        ("{s} has its market on {v}.", "The market of {s} is held on {v}.", "On {v} people meet at the market of {s}."),
        ("When is the market of {s}?", "On which day does {s} hold its market?"),
    ),
    Relation(
        "export",
        PLACES,
        FOODS,
        ("{s} is known for its {v}.", "People go to {s} to buy {v}.", "The best {v} come from {s}."),
        ("What is {s} known for?", "What do people buy in {s}?"),
    ),
    Relation(
        "sky",
        PLACES,
        WEATHER,
        ("In {s} there is often {v}.", "Most days bring {v} to {s}.", "The people of {s} are used to {v}."),
        ("What weather does {s} have?", "What are the people of {s} used to?"),
    ),
    Relation(
        "feed",
        ANIMALS,
        FOODS,
        ("Give the {s} some {v}.", "A {s} will eat {v}.", "The {s} of this land loves {v}."),
        ("What does a {s} eat?", "What should I give to a {s}?"),
    ),
    Relation(
        "shelter",
        ANIMALS,
        SPOTS,
        ("The {s} sleeps near the {v}.", "You can find the {s} at the {v}.", "At night the {s} goes to the {v}."),
        ("Where does the {s} sleep?", "Where can I find the {s}?"),
    ),
    Relation(
        "material",
        THINGS,
        MATERIALS,
        ("A {s} is made of {v}.", "The {s} is built from {v}.", "You need {v} to make a {s}."),
        ("What is a {s} made of?", "What do I need to make a {s}?"),
    ),
)


def digest(*words: object) -> int:
    """A number that depends on nothing but the words."""
    return int.from_bytes(sha256("\0".join(map(str, words)).encode()).digest()[:8], "big")


@cache
def split_of(*words: object) -> Split:
    """The split that owns a fact or a template."""
    return SHARES[digest("split", *words) % len(SHARES)]


@cache
def facts(split: Split) -> tuple[Fact, ...]:
    """The truths that documents of a split may state."""
    every = (Fact(relation, subject) for relation in RELATIONS for subject in relation.subjects)
    return tuple(fact for fact in every if split_of("fact", fact.name) == split)


@dataclass(frozen=True)
class Plan:
    """What something is written from: its template, and the facts that it states."""

    kind: str
    template: tuple[str, ...]
    facts: tuple[str, ...]

    def belongs_to(self, split: Split) -> bool:
        """Whether the split owns the template and every fact."""
        template = split_of("template", self.kind, *self.template)
        return template == split and all(split_of("fact", fact) == split for fact in self.facts)


def pronoun(person: str) -> str:
    """What a story calls somebody the second time."""
    return "she" if person in SHE else "he"
