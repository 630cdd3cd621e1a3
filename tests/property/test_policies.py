"""Documents at random: against a naive model of whose field wins, and never in force by halves."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib import bulkhead, hedge, rate_limit, retry, timeout
from meshlib.client.stack import Stack
from meshlib.errors import ConfigError
from meshlib.events import Events
from meshlib.flow import compose
from meshlib.governance.book import KV, Book
from meshlib.governance.document import read
from meshlib.governance.text import plain
from meshlib.model import ServiceUrl
from meshlib.policies.base import Policy, Site
from meshlib.policies.overlay import Rules, overlay
from meshlib.policies.plain import kind_of

ORDERS = ServiceUrl("orders")

FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "retry": {"attempts": st.integers(1, 9), "base": st.sampled_from([0.1, 0.2]), "cap": st.sampled_from([1.0, 2.0])},
    "timeout": {"seconds": st.integers(5, 9), "attempt": st.integers(1, 5)},
    "bulkhead": {"limit": st.integers(1, 9), "wait": st.integers(0, 2)},
    "rate_limit": {"limits": st.sampled_from([["1/s"], ["5/s", "9/m"]]), "wait": st.integers(0, 2)},
    "hedge": {"attempts": st.integers(2, 4), "minimum": st.integers(1, 9)},
}
NEEDED = {"timeout": "seconds", "bulkhead": "limit", "rate_limit": "limits"}

rules = st.fixed_dictionaries(
    {}, optional={kind: st.none() | st.fixed_dictionaries({}, optional=fields) for kind, fields in FIELDS.items()}
)
code = st.sets(st.sampled_from([
    retry(3, base=0.5), timeout(20.0, attempt=1.5), bulkhead(30, wait=9), rate_limit("70/s", wait=9), hedge(attempts=5),
])).map(list)  # fmt: skip


def naive(policies: list[Policy], places: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each kind, the fields it is made of."""
    below = {each.kind: each.options() for each in policies}
    above: dict[str, dict[str, Any] | None] = {}
    for place in places:
        for kind, fields in place.items():
            above[kind] = None if fields is None else (above.get(kind) or {}) | fields
    found = dict(below)
    for kind, fields in above.items():
        if fields is None:
            found.pop(kind, None)
        elif kind in below or NEEDED.get(kind) is None or NEEDED[kind] in fields:
            made = kind_of(kind, "").of({**NEEDS.get(kind, {}), **fields}, "").options()
            found[kind] = made | {name: value for name, value in below.get(kind, {}).items() if name not in fields}
    return found


NEEDS: dict[str, dict[str, Any]] = {"timeout": {"seconds": 100}, "bulkhead": {"limit": 1}, "rate_limit": {"limits": ["1/s"]}}


@given(code, st.lists(rules, max_size=3))
@settings(max_examples=300)
def test_field_by_field_as_a_naive_model_has_it(policies: list[Policy], places: list[dict[str, Any]]) -> None:
    found = overlay(policies, [Rules(f"place{at}", given) for at, given in enumerate(places)])
    assert {each.kind: each.options() for each in found.policies} == naive(policies, places)
    assert len(found.policies) == len({each.kind for each in found.policies})


wild = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20) | st.floats() | st.sampled_from(["1/s", "caller", "x*", "", "enforce"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([*FIELDS, "rules", "to", "when", "path", "attempts", "seconds", "limits", "key", "subsets", "x"]),
        inner, max_size=3,
    ),
    max_leaves=12,
)  # fmt: skip
spoilt = st.dictionaries(st.sampled_from([*FIELDS, "route", "nothing"]), wild, max_size=3)
documents = st.fixed_dictionaries(
    {"version": st.integers(0, 6)},
    optional={
        "mode": st.sampled_from(["enforce", "enforce", "shadow", "x"]),
        "consumer": st.fixed_dictionaries(
            {}, optional={"policies": rules | spoilt, "methods": st.dictionaries(st.sampled_from(["a", "b*"]), rules | spoilt)}
        ),
        "provider": st.fixed_dictionaries({}, optional={"policies": rules | spoilt, "routes": st.lists(wild, max_size=2)}),
    },
)


@given(st.lists(documents, max_size=6), st.lists(code, min_size=1, max_size=3))
@settings(max_examples=300)
def test_a_document_is_in_force_at_all_stacks_or_at_none(offers: list[dict[str, Any]], codes: list[list[Policy]]) -> None:
    """Whatever is offered: each stack is as the one document that holds would have it, and its version only goes up."""
    book = Book(ORDERS, events=Events(), max_age=100.0)
    stacks = [Stack(Site(method=name), policies, compose([])) for name, policies in zip("abc", codes, strict=False)]
    for stack in stacks:
        book.govern(stack)
    version = 0
    for data in offers:
        before = [stack.effective for stack in stacks]
        try:
            good = book.offer(read(data, ORDERS, "x"), KV)
        except ConfigError:
            good = False
        held = book.document
        assert good or [stack.effective for stack in stacks] == before
        for stack in stacks:
            places = [] if held is None else held.consumer.at(stack.site.method)
            wanted = overlay(stack.policies, places, "enforce" if held is None else held.mode).policies
            assert set(stack.effective) == set(wanted) == set(stack._bound)
            assert (stack.origin and stack.origin.version) == (held and held.version)
        assert version <= (held.version if held else 0)
        version = held.version if held else 0


@given(st.text(max_size=300) | st.binary(max_size=300) | documents.map(json.dumps))
@settings(max_examples=300)
def test_whatever_is_read_gives_a_document_or_one_kind_of_error(content: str | bytes) -> None:
    try:
        data = plain(content, "x")
    except ConfigError as wrong:
        assert wrong.source == "x"
    else:
        assert plain(json.dumps(data), "x") == data
