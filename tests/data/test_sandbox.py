"""A tokenizer's own template: rendered as transformers does, and stopped where it would not end."""

from datetime import UTC, datetime

import pytest

from sae_transfer.data.sandbox import LONGEST_TEMPLATE, RESERVE, Sandbox, TooMuch
from sae_transfer.data.templates import Message, renderer
from sae_transfer.errors import UserError
from tests.conftest import TEMPLATE, chat_tokenizer

CHAT = [
    {"role": "system", "content": " Be <b>kind</b>. "},
    {"role": "user", "content": "What?\nNow? <think>é</think> 5% {x}"},
    {"role": "assistant", "content": "<think>hm</think>\n\nThat."},
    {"role": "user", "content": "Why & when?"},
]

HONEST = {
    "chatml": TEMPLATE,
    "namespace, reversed": "{%- set ns = namespace(last=messages|length - 1, seen=[]) %}"
    "{%- for m in messages[::-1] %}{%- set i = (messages|length - 1) - loop.index0 %}"
    "{%- if m.role == 'user' and not m.content.startswith('<tool>') %}{%- set ns.last = i %}{%- set ns.seen = ns.seen + [i] %}"
    "{%- endif %}{%- endfor %}{{ ns.last }} {{ ns.seen }}",
    "thinking": "{% for m in messages %}{% if m['role'] == 'assistant' and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') ~ eos_token }}{% else %}{{ '<|' + m.role + '|>' + m.content|trim }}"
    "{% endif %}{% endfor %}",
    "macro": "{%- macro turn(m, tag='s') -%}<{{ tag }}>{{ m.content.strip() | replace('<', '&lt;') }}{{ caller() if caller }}"
    "</{{ tag }}>{%- endmacro -%}{% for m in messages %}{{ turn(m, tag=m.role|upper) }}{% endfor %}"
    "{% call turn(messages[0]) %}!{% endcall %}",
    "select": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('; ') }}"
    "{{ (messages | rejectattr('role', 'in', ['user', 'system']) | list | first)['content'] }}",
    "loops": "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}"
    "{% if loop.index == 2 %}{% break %}{% endif %}{% else %}none{% endfor %}"
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}",
    "json": "{{ messages | tojson(indent=2) }}{{ messages[0]|tojson(sort_keys=true) }}"
    "{{ {'a': [1, 2.5, none, true]} | string }}"
    "{% for k, v in messages[1]|dictsort %}{{ k }}{% endfor %}{{ 'a\\nb' | indent(2) }}",
    "blocks": "{% set head %}{{ bos_token }}x{% endset %}{{ head }}{% filter upper %}a{{ eos_token }}{% endfilter %}"
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "white space": "  {% if tools is not none %}t{% endif %}\n"
    "  {% for i in range(3) %}\n  {{- i }}\n  {% endfor %}\n{{ '%s|%s' % ('a', 2) }}"
    "{{ '{} {}'.format(1, 'b') }}{{ 'ab' * 2 }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ missing }}{{ dict(a=1) }}{{ documents }}{{ true }}",
    "tests": "{% if messages is iterable and messages is not string and messages[0] is mapping "
    "and x is not defined %}y{% endif %}"
    "{{ messages[0].content if messages[0]['role'] == 'system' else raise_exception('no') }}"
    "{{ [3, 1, 2]|sort }}{{ 'aA'|unique|list }}",
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("asked", [True, False])
def test_a_chat_is_rendered_as_transformers_does(name: str, asked: bool) -> None:
    """Letter by letter, with and without the prompt for an answer."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = HONEST[name]
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=asked)
    assert Sandbox(HONEST[name], tokenizer.special_tokens_map).render(CHAT, asked) == expected


def test_the_date_is_that_of_the_clock() -> None:
    """A run that goes on tomorrow renders what it began with."""
    began = datetime(1999, 12, 31, tzinfo=UTC)
    assert Sandbox("{{ strftime_now('%d %b %Y') }}", {}, began).render(CHAT, True) == "31 Dec 1999"


def test_a_long_chat_is_within_its_allowance() -> None:
    """What a template may do grows with the chat: 1,000 messages, and one of a million characters."""
    for chat in (CHAT * 250, [{"role": "user", "content": "a b " * 250_000}]):
        assert len(Sandbox(HONEST["thinking"], {}).render(chat, True)) > 1000


LONG = "{% set a = 'x' * 90000 %}"
GROWING = "{% for i in range(99) %}{% set ns.a = %s %}{% endfor %}{{ ns.a }}"
SLOW = "{% for i in range(99999) %}{{ i }}{% endfor %}"
HOSTILE = {
    "a large range": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop over a string": LONG + "{% for i in a %}{% for j in a %}{% endfor %}{% endfor %}",
    "a recursive loop": "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "a long body": "{% for i in range(99999) %}" + "{%set a=1%}" * 2500 + "{% endfor %}",
    "a large literal": "{% for i in range(99999) %}" + "y" * 30000 + "{% endfor %}",
    "a literal set aside": "{% set a %}{% for i in range(99999) %}" + "y" * 30000 + "{% endfor %}{% endset %}",
    "a long string": "{{ 'a' * 10**10 }}",
    "a long list": "{{ [0] * 10**10 }}",
    "a long number": "{{ 10 ** (10 ** 10) }}",
    "adding": "{% set ns = namespace(a='x') %}" + GROWING.replace("%s", "ns.a + ns.a"),
    "joining": "{% set ns = namespace(a='x') %}" + GROWING.replace("%s", "ns.a ~ ns.a"),
    "lists in lists": "{% set ns = namespace(a=[0]) %}" + GROWING.replace("%s", "[ns.a, ns.a]"),
    "dicts in dicts": "{% set ns = namespace(a=0) %}" + GROWING.replace("%s", "{0: ns.a, 1: ns.a}"),
    "deep lists": "{% set ns = namespace(a=[0]) %}" + GROWING.replace("%s", "[ns.a]"),
    "a macro in itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro twice in itself": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "replacing": LONG + "{{ a.replace('x', a) }}",
    "the filter": LONG + "{{ a | replace('', a) }}",
    "a long separator": LONG + "{{ a | join(a) }}",
    "a separator of what is not counted": LONG + "{{ a | map('upper') | join(a) }}",
    "the method": LONG + "{{ a.join(a) }}",
    "indenting": "{{ ('\\n' * 9999) | indent(10**6) }}",
    "indented JSON": "{{ range(9999) | list | tojson(indent=10**6) }}",
    "centring": "{{ 'a' | center(10**10) }}",
    "padding": "{{ 'a'.ljust(10**10) }}",
    "a width": "{{ '%9999999999d' % 1 }}",
    "a width in a filter": "{{ '%9999999999d' | format(1) }}",
    "a width in a list": "{{ ['%9999999999d'] | format(1) }}",
    "a width in braces": "{{ '{:9999999999}'.format(1) }}",
    "a width that is given": "{{ '{0:{1}}'.format(1, 10**10) }}",
    "a date's width": "{{ strftime_now('%9999999999d') }}",
    "comparing": LONG + "{% set b = 'x' * 90000 %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "searching": "{% set a = range(99999) | list %}{{ a | select('in', a) | list }}",
    "cutting": LONG + "{% for i in range(99999) %}{% set b = a[::-1] %}{% endfor %}",
    "a long path to what is not counted": "{% set ns = namespace() %}{% set ns.a = ns %}"
    "{{ ([ns] * 9999) | map(attribute='a') | map(attribute='a.' * 9999 + 'a') | list }}",
    "a long path": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ([ns] * 9999) | map(attribute='a.' * 9999 + 'a') | list }}",
    "giving back": "{{ [-(10**12)] | map('a body') | list }}",
    "an attribute walk": "{{ ''.__class__.__mro__ }}",
    "an attribute by its name": "{{ ''['__class__']['__mro__'] }}",
    "an attribute of a function": "{{ raise_exception.__globals__.os }}",
    "a file": "{% include '/etc/passwd' %}",
    "another template": "{% if false %}{% extends 'a' %}{% endif %}",
    "a macro of another": "{% if false %}{% from 'a' import b %}{% endif %}",
    "numbers of one hash": "{{ range(0, 9999 * (2**61 - 1), 2**61 - 1) | unique | list }}",
    "a path of fifty parts": "{% set ns = namespace() %}{% set ns.a = ns %}"
    "{{ ([ns] * 9999) | map(attribute='a' ~ '.a' * 49) | list }}",
    "a path to sort by": "{% set ns = namespace(b=1) %}{% set ns.a = ns %}"
    "{{ ([ns] * 999) | sort(attribute='a.' * 999 ~ 'b') }}",
    "a search from the right": LONG + "{{ a.rfind('y' ~ a[:80000]) }}",
    "a split from the right": LONG + "{{ a.rsplit('y' ~ a[:80000]) }}",
    "many names": "".join(f"{{%set a{i}=1%}}" for i in range(1000)) + "{%if 1%}{%endif%}" * 900,
    "many parts": "{{1+1}}" * 4000,
    "brackets": "{{ " + "(" * 15000 + " }}",
    "a long sum": "{{ " + "1+" * 15000 + "1 }}",
    "a long number to read": "{{ " + "9" * 30000 + " }}",
    "a long template": "x" * (LONGEST_TEMPLATE + 1),
    "no template": "{% for %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_does_not_end_is_refused(name: str) -> None:
    """In one line under E-TEMPLATE, whatever it is that grows."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = HOSTILE[name] + TEMPLATE
    with pytest.raises(UserError, match="the tokenizer's template refuses a chat") as caught:
        renderer("tokenizer", tokenizer)([Message("user", "a"), Message("assistant", "b")])
    assert caught.value.code == "E-TEMPLATE"


def test_all_chats_draw_on_one_reserve() -> None:
    """What one chat may take beyond its share, thousands may not."""
    sandbox = Sandbox(SLOW, {})
    assert len(sandbox.render(CHAT, True)) > 9999
    with pytest.raises(TooMuch):
        _ = [sandbox.render(CHAT, True) for _ in range(99)]
    frugal = Sandbox(HONEST["thinking"], {})
    assert {frugal.render(CHAT, True) for _ in range(99)} == {frugal.render(CHAT, True)}
    assert frugal.reserve == RESERVE


def test_a_template_among_several_must_be_the_default() -> None:
    """Otherwise none of them is the tokenizer's own."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"a": TEMPLATE, "b": TEMPLATE}
    with pytest.raises(UserError, match="several chat templates.*E-TEMPLATE"):
        renderer("tokenizer", tokenizer)
