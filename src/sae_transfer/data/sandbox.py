"""A tokenizer's own chat template, rendered within a bound on its work, whatever it says.

A template comes with a model, so it is somebody else's program. jinja2's sandbox keeps it from the machine, but not from
looping, multiplying strings or nesting lists until memory ends. Here each render has an allowance, and pays before it works:
every turn of a loop and every call for the size of its body, every operator, filter, method, comparison and output for the
size of what it takes and gives; beyond its own share all chats draw on one reserve. What can't be priced (other filters, other
methods, recursive loops, other templates) is refused. The price is the same on every machine, and takes no timer, thread or
signal.

The language is that of transformers' `apply_chat_template`, whose rendering this must equal (tests/data/test_sandbox.py).
"""

import json
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, Sized, ValuesView
from datetime import UTC, datetime
from functools import cached_property, partial, wraps
from math import prod
from typing import Any

from jinja2 import TemplateError, Undefined, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS as ALL_FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

RESERVE = 1_000_000
"""For all chats together, beside what each has of its own: what it buys is about a second's work."""
ALLOWANCE = 50_000
ALLOWANCE_PER_MESSAGE = 10_000
ALLOWANCE_PER_CHARACTER = 200
"""Of the chat: published templates take about ten."""
LONGEST_TEMPLATE = 2**15
MOST_NODES, MOST_NAMES = 8_000, 250
"""Compiling takes the product of branches and names: published templates have less than 20 kB, 3,000 parts and 50 names."""
CALL = 50
"""A macro's frame, in parts of a body."""
MOST_BITS = 4096
DEEPEST = 50

FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format", "indent", "int"),
    *("items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse"),
    *("round", "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper"),
)
METHODS: dict[type, tuple[str, ...]] = {
    str: (
        *(
            "capitalize",
            "count",
            "endswith",
            "find",
            "format",
            "index",
            "isalnum",
            "isalpha",
            "isdigit",
            "islower",
            "isnumeric",
        ),
        *("isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind"),
        *("rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper"),
    ),
    dict: ("copy", "get", "items", "keys", "values"),
    list: ("copy", "count", "index"),
    tuple: ("count", "index"),
    LoopContext: ("changed", "cycle"),
}
MULTIPLY = {"format", "indent", "join", "lstrip", "replace", "round", "rstrip", "strip", "tojson", "trim"}
"""Their work can be the product of the sizes of what they are given, not only the sum."""
PER_ENTRY = {"map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "unique"}
"""They walk an attribute's path, which is a string, for every entry."""
STEP = 5
"""One part of such a path, for one entry."""
BACKWARDS = {"rfind", "rindex", "rpartition", "rsplit"}
"""Python searches from the right in steps as many as the product of both lengths; from the left, as their sum."""
ELSEWHERE: tuple[type[nodes.Node], ...] = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
SORT = {"dictsort", "sort"}
TWENTY = 20
"""More than the logarithm of any length that can be paid for."""
PLACEHOLDERS = re.compile(r"%[sdi%]")


class Sandbox:
    """A template, the named special tokens of its tokenizer, and the time that it is told, by default the present."""

    def __init__(self, template: str, special_tokens: Mapping[str, str], clock: datetime | None = None) -> None:
        self.source = template
        self.special_tokens = dict(special_tokens)
        self.reserve = RESERVE
        self.environment = _Environment(clock or datetime.now(UTC))

    @cached_property
    def template(self) -> Any:
        """Compiled at the first chat, so that a tokenizer whose template is never used is not refused for it."""
        if len(self.source) > LONGEST_TEMPLATE:
            raise TooMuch(f"it has {len(self.source)} characters, more than {LONGEST_TEMPLATE}")
        return self.environment.from_string(self.source)

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """The text of a chat. Raises whatever a template may: jinja2's errors, Python's, TooMuch."""
        chat = [dict(message) for message in messages]
        characters = sum(len(text) for message in chat for text in message.values())
        template = self.template
        own = ALLOWANCE + ALLOWANCE_PER_MESSAGE * len(chat) + ALLOWANCE_PER_CHARACTER * characters
        self.environment.left = self.reserve + own
        given = self.special_tokens | {"messages": chat, "tools": None, "documents": None}
        text = str(template.render(**given, add_generation_prompt=add_generation_prompt))
        self.reserve = min(self.reserve, self.environment.left)
        return text


PASSED = (Context, nodes.EvalContext, ImmutableSandboxedEnvironment)
"""What jinja2 itself passes to some filters."""


class TooMuch(Exception):  # noqa: N818
    """The template would work beyond its allowance. No class that jinja2 catches and makes a value of."""


class _Generation(Extension):
    """transformers' block around what an assistant wrote: only its training masks need to know where it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Variables(Namespace):
    """A namespace that is printed by its name, not by all that it holds."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' settings and names, with a price on everything."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, clock: datetime) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,
            finalize=pass_context(lambda _, value: self.charged(value)),
        )
        self.left = 0
        filters: dict[str, Callable[..., Any]] = {name: ALL_FILTERS[name] for name in FILTERS} | {"tojson": _tojson}
        self.filters = {name: self.priced(name, filter_) for name, filter_ in filters.items()}
        self.tests = {name: self.priced(name, test) for name, test in TESTS.items()}
        # names that no template can write, though `map` could be given them: they only ever take from the allowance
        self.filters |= {
            "a charge": pass_context(lambda _, value: self.charged(value)),
            "a turn": pass_context(lambda _, value, weight: self.turns(value, weight)),
            "a body": pass_context(lambda _, weight: self.literal(weight)),
        }
        self.globals = {
            "range": safe_range,
            "raise_exception": _raise_exception,
            "strftime_now": partial(_strftime_now, clock),
            "dict": _dict,
            "namespace": _Variables,
        }
        self.callables = tuple(self.globals.values())

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        if any(parsed.find(kind) is not None for kind in ELSEWHERE):
            raise TooMuch("it asks for another template")
        names = {node.name for node in parsed.find_all(nodes.Name)}
        if _weight(parsed) > MOST_NODES or len(names) > MOST_NAMES:
            raise TooMuch(f"it has more than {MOST_NODES} parts or {MOST_NAMES} names")
        template: nodes.Template = _Pricing().visit(parsed)
        return template

    def pay(self, price: int) -> None:
        """Take a price from what is left."""
        self.left -= abs(price)
        if self.left < 0:
            raise TooMuch("it takes more steps or memory than a chat template can need")

    def literal(self, price: int) -> str:
        """Pay for what stands beside it, and print nothing."""
        self.pay(price)
        return ""

    def charged(self, value: Any) -> Any:
        """The value itself, paid for by its size."""
        self.pay(size(value, self.left))
        return value

    def turns(self, items: Iterable[Any], weight: int) -> Iterator[Any]:
        """The items of a loop, each paid for by the weight of the loop's body."""
        for item in items:
            self.pay(weight)
            yield item

    def priced(self, name: str, function: Any) -> Callable[..., Any]:
        """A filter or test that is paid for by what it takes and gives. What jinja2 passes to it besides is free."""

        @wraps(function)
        def paid(*args: Any, **kwargs: Any) -> Any:
            if name != "first":  # which leaves the rest of a sequence for others
                args, kwargs = _counted(args, kwargs)
            given = [value for value in (*args, *kwargs.values()) if not isinstance(value, PASSED)]
            self.pay(self.price(name, given))
            return self.charged(function(*args, **kwargs))

        return paid

    def price(self, name: str, given: Sequence[Any]) -> int:
        """What a function of this name may cost: the sum or the product of the sizes of what it is given."""
        if name == "format" and not (isinstance(given[0], str) and (":" not in given[0] and not _widths(given[0]))):
            raise TooMuch("it formats to a width")
        sizes = [size(value, self.left) for value in given]
        if name in MULTIPLY:
            total = 1
            for value, taken in zip(given, sizes, strict=True):
                total = min(total * (1 + (abs(value) if isinstance(value, int) else taken)), self.left + 1)
            return total
        if name in BACKWARDS:
            return prod(taken for value, taken in zip(given, sizes, strict=True) if isinstance(value, str))
        entries = len(given[0]) if name in PER_ENTRY and isinstance(given[0], Sized) else 0
        steps = sum(1 + value.count(".") + value.count(",") for value in given[1:] if isinstance(value, str))
        total = (1 + sum(sizes)) * (TWENTY if name in SORT else 1) + STEP * entries * steps
        return total + entries * sizes[0] if name == "unique" else total  # a template can choose numbers of one hash

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        self, function = __self, getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format to keep it safe
        owner, name = getattr(function, "__self__", None), str(getattr(function, "__name__", type(function).__name__))
        bound = any(isinstance(owner, kind) and name in names for kind, names in METHODS.items())
        if not (bound or isinstance(__obj, Macro | Undefined) or any(__obj is known for known in self.callables)):
            raise TooMuch(f"it calls {name!r:.100}, which has no bound")
        args, kwargs = _counted(args, kwargs)
        self.pay(CALL + self.price(name if bound else "", [*([owner] if bound else []), *args, *kwargs.values()]))
        return self.charged(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and isinstance(right, Sequence):
            self.pay(size(right, self.left) * abs(left) if isinstance(left, int) else 0)
        elif operator == "*" and isinstance(left, Sequence):
            self.pay(size(left, self.left) * abs(right) if isinstance(right, int) else 0)
        elif operator == "%" and isinstance(left, str):
            if _widths(left):
                raise TooMuch("it formats to a width")
            self.pay((1 + len(left)) * size(right, self.left))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MOST_BITS:
            raise TooMuch(f"it calculates with numbers of more than {MOST_BITS} bits")
        self.pay(size(left, self.left) + size(right, self.left))
        return self.charged(super().call_binop(context, operator, left, right))


class _Pricing(NodeTransformer):
    """Puts the price into a parsed template, where jinja2 has no hook of its own."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise TooMuch("it has a recursive loop, which has no bound")
        weight = _weight(node)
        self.generic_visit(node)
        node.iter = _filter(node.iter, "a turn", weight)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock | nodes.Block) -> nodes.Node:  # noqa: N802
        weight = _weight(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_filter(nodes.Const(weight), "a body")], lineno=node.lineno))
        return node

    visit_CallBlock = visit_Block = visit_Macro  # noqa: N815

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        literal = [len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData)]
        node.nodes = [*([_filter(nodes.Const(sum(literal)), "a body")] if literal else []), *node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filter(node.expr, "a charge")
        for operand in node.ops:
            operand.expr = _filter(operand.expr, "a charge")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filter(part, "a charge") for part in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filter(node, "a charge")
        if not isinstance(node.arg, nodes.Const):
            node.arg = _filter(node.arg, "a charge")
        return node

    def visit_List(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filter(node, "a charge")

    visit_Dict = visit_Tuple = visit_List  # noqa: N815


def size(value: Any, most: int) -> int:
    """Characters and entries of a value, all levels counted, at least 1. Raises TooMuch above `most`, or when too deep."""
    total, left = 0, [(value, 0)]
    while left:
        item, depth = left.pop()
        total += 1
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, int):
            if item.bit_length() > MOST_BITS:
                raise TooMuch(f"it calculates with numbers of more than {MOST_BITS} bits")
        elif isinstance(item, list | tuple | dict | range | KeysView | ItemsView | ValuesView):
            total += len(item)
            inner: list[Any] = [] if isinstance(item, range) or total > most else list(item)
            if isinstance(item, dict) and inner:
                inner += item.values()
            left += [(entry, depth + 1) for entry in inner]
        if depth > DEEPEST or total > most:
            raise TooMuch("it takes more steps or memory than a chat template can need")
    return total


def _filter(node: Any, name: str, *args: int) -> nodes.Filter:
    return nodes.Filter(node, name, [nodes.Const(arg) for arg in args], [], None, None, lineno=node.lineno)


def _counted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments whose length can be seen: what `map` and its like give is as long at most as what they were paid for."""

    def seen(value: Any) -> Any:
        return list(value) if isinstance(value, Iterator) else value

    return tuple(seen(value) for value in args), {key: seen(value) for key, value in kwargs.items()}


def _weight(node: nodes.Node) -> int:
    """How many parts a body has."""
    total, left = 0, [node]
    while left:
        total += 1
        left += left.pop().iter_child_nodes()
    return total


def _widths(text: Any) -> bool:
    """Whether `%` formatting would do more than put values in their places."""
    return isinstance(text, str) and "%" in PLACEHOLDERS.sub("", text)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:  # jinja2's own would escape HTML
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise TemplateError(message)


def _strftime_now(clock: datetime, format: str) -> str:
    if re.search(r"%[^%a-zA-Z]*[0-9]", format):
        raise TooMuch("it formats to a width")
    return clock.strftime(format)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)
