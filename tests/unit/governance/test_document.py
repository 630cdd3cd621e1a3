"""Documents: their text within bounds, their fields with paths."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from meshlib.errors import ConfigError, MissingExtra
from meshlib.governance.document import encoded, read
from meshlib.governance.text import MOST_BYTES, MOST_DEPTH, MOST_VALUES, plain
from meshlib.model import ServiceUrl
from meshlib.policies.match import Match

ORDERS = ServiceUrl("orders")
KEY = "policies/-/orders/current"

WHOLE: dict[str, Any] = {
    "version": 7,
    "service": "orders",
    "mode": "shadow",
    "max_age": 3600,
    "note": "sale",
    "consumer": {
        "policies": {"retry": {"attempts": 5}, "bulkhead": None, "timeout": False},
        "methods": {"Orders.fetch": {"timeout": {"seconds": 0.5}}, "Orders.*": {"retry": {"attempts": 1}}},
    },
    "provider": {
        "policies": {"rate_limit": {"limits": ["100/s"]}},
        "routes": [{"when": {"path": "/orders/*", "method": "POST"}, "policies": {"bulkhead": {"limit": 5}}}],
    },
}


def nested(depth: int) -> Any:
    return 1 if not depth else {"a": nested(depth - 1)}


def test_a_whole_one() -> None:
    found = read(json.dumps(WHOLE), ORDERS, KEY)
    assert (found.version, found.mode, found.max_age, found.note) == (7, "shadow", 3600, "sale")
    assert found.consumer.policies.given == {"retry": {"attempts": 5}, "bulkhead": None, "timeout": None}
    assert [place.where for place in found.consumer.at("Orders.fetch")] == [
        "consumer.policies", "consumer.methods.Orders.fetch", "consumer.methods.Orders.*",
    ]  # fmt: skip
    assert [place.where for place in found.consumer.at("")] == ["consumer.policies"]
    (route,) = found.provider.routes
    assert (route[0], route[1].where) == (Match(path="/orders/*", method="POST"), "provider.routes[0].policies")
    assert read(found.content, ORDERS, KEY) == found


def test_how_it_is_written_makes_no_difference() -> None:
    yaml = "# rules\nversion: 7\nmode: enforce\nconsumer:\n  policies:\n    retry: {attempts: 5}\n    bulkhead: null\n"
    data = {"consumer": {"policies": {"bulkhead": None, "retry": {"attempts": 5}}}, "mode": "enforce", "version": 7}
    texts = [yaml, json.dumps(data), json.dumps(data, indent=4).encode(), b"\xef\xbb\xbf" + encoded(data)]
    assert len({read(text, ORDERS, KEY).digest for text in texts}) == 1
    assert read({**data, "version": 8}, ORDERS, KEY).digest != read(data, ORDERS, KEY).digest


def test_an_empty_one_says_nothing() -> None:
    found = read({"version": 1}, ORDERS, KEY)
    assert (found.mode, found.consumer.policies.given, found.provider.routes) == ("enforce", {}, ())


def retried(**fields: Any) -> dict[str, Any]:
    return {"consumer": {"policies": {"retry": fields}}}


@pytest.mark.parametrize(("change", "path", "problem"), [
    ({"version": None}, "version", "is missing"),
    ({"version": 0}, "version", "0 is none; a whole number from 1 on"),
    ({"version": True}, "version", "True is none"),
    ({"version": 1.0}, "version", "1.0 is none"),
    ({"version": 2**53}, "version", "9007199254740992 is none"),
    ({"service": "stock"}, "service", "'stock' is not the one"),
    ({"mode": "try"}, "mode", "'try' is none of enforce, shadow"),
    ({"max_age": 0}, "max_age", "0 is not a number above 0"),
    ({"max_age": "1h"}, "max_age", "'1h' is not a number"),
    ({"note": 5}, "note", "5 is no text"),
    ({"polices": {}}, "polices", "not known; version, service, mode"),
    ({"consumer": []}, "consumer", r"\[\] is no mapping"),
    ({"consumer": {"policy": {}}}, "consumer.policy", "not known; policies, methods"),
    ({"consumer": {"policies": {"rtry": {}}}}, "consumer.policies.rtry", "no kind of policy"),
    ({"consumer": {"policies": {"retry": 5}}}, "consumer.policies.retry", "5 is no mapping"),
    ({"consumer": {"policies": {"retry": True}}}, "consumer.policies.retry", "True is no mapping"),
    (retried(attempts=-1), "consumer.policies.retry.attempts", "-1 is not a number from 1 to 1000"),
    ({"consumer": {"methods": {"": {}}}}, "consumer.methods.", "'' is no pattern"),
    ({"consumer": {"methods": {"a": {"retry": {"x": 1}}}}}, "consumer.methods.a.retry.x", "not known"),
    ({"consumer": {"methods": {str(n): {} for n in range(257)}}}, "consumer.methods", "are 257; up to 256"),
    ({"provider": {"routes": {}}}, "", ""),
    ({"provider": {"routes": {"a": 1}}}, "provider.routes", "is no list"),
    ({"provider": {"routes": [{"if": {}}]}}, "provider.routes[0].if", "not known; when, policies"),
    ({"provider": {"routes": [{"when": {"path": "["}}, {"when": {"pth": "/"}}]}}, "provider.routes[1].when.pth", "not known"),
    ({"provider": {"policies": {"bulkhead": {"limit": 0}}}}, "provider.policies.bulkhead.limit", "0 is not a number from 1"),
])  # fmt: skip
def test_a_wrong_field_is_told_with_its_path_value_and_what_is_allowed(change: Any, path: str, problem: str) -> None:
    if not path:
        read({"version": 1, **change}, ORDERS, KEY)
        return
    with pytest.raises(ConfigError, match=problem) as caught:
        read({"version": 1, **change}, ORDERS, KEY)
    assert (caught.value.name, caught.value.source) == (path, KEY)


@pytest.mark.parametrize(("text", "problem"), [
    ("", "is NoneType, not a mapping"),
    ("[1]", "is list, not a mapping"),
    ("just text", "is str, not a mapping"),
    ("{", "is no JSON"),
    ('{"version": 1, "version": 2}', "'version' is there twice"),
    ('{"version": NaN}', "out of bounds"),
    ('{"version": 1e999}', "out of bounds"),
    ('{"version": %s}' % ("9" * 30), "out of bounds"),
    ('{"version": %s}' % ("9" * 6000), "is no JSON"),
    (b'{"version": "\xff"}', "is no UTF-8"),
    ('{"note": "\\ud800"}', "note .* is a str"),
    ('{"a\\u001b[31m": 1}', "not printable text"),
    ("x" * (MOST_BYTES + 1), f"has {MOST_BYTES + 1} bytes"),
    ('{"a":' * 9_000, "is no JSON|nested more than"),
    ('{"a":' * 9_000 + "1" + "}" * 9_000, "nested more than 12 deep"),
    (json.dumps(nested(MOST_DEPTH + 1)), "nested more than 12 deep"),
    (json.dumps({"a": [0] * (MOST_VALUES + 1)}), "one more than the 4096 values"),
    ("a: &a [x]\nb: *a", "anchors or aliases"),
    ("a: &a [x]", "anchors or aliases"),
    ("a: !!python/object/apply:os.system [x]", "tags are not allowed"),
    ("!!map {a: 1}", "tags are not allowed"),
    ("a: 1\nb: {c: 1}\na: 2", "'a' is there twice"),
    ("a: [x, {b: 1, b: 1}]", "'b' is there twice"),
    ("1: 2", "1, which is not printable text"),
    ("a: 2024-01-01", "is a date; text, numbers"),
    ("? [a]\n: 1", "is no YAML"),
    ("a: [", "is no YAML"),
    ("a: " + "[" * 900 + "]" * 900, "larger or deeper"),
    ("a: " + "[" * 5_000, "larger or deeper|nesting depth"),
    ("a:\n" + "- b\n" * (5 * MOST_VALUES), "has .* bytes|larger or deeper"),
    ("a: 1\n---\na: 2", "is no YAML|there twice"),
])  # fmt: skip
def test_bombs_and_what_is_no_document(text: str | bytes, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        plain(text, KEY)
    assert caught.value.source == KEY
    assert len(str(caught.value)) < 500


def test_as_deep_and_large_as_allowed() -> None:
    plain(json.dumps(nested(MOST_DEPTH)), KEY)
    plain({"a": [0] * (MOST_VALUES - 1)}, KEY)


def test_without_the_library_yaml_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(MissingExtra, match=r"meshlib-cloud\[yaml\]"):
        plain("version: 1", KEY)
    assert plain('{"version": 1}', KEY) == {"version": 1}


def test_the_document_of_the_docs_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    found = read(text, ORDERS, "docs/policies.md")
    assert (found.version, len(found.provider.routes), len(found.consumer.at("Orders.fetch"))) == (7, 1, 2)
