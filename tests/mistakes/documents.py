"""Policy documents that would change what they should not, or nothing."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from meshlib import ConfigError, MissingExtra
from meshlib.errors import CasConflict
from meshlib.governance.document import read
from meshlib.model import ServiceUrl
from meshlib.testing import MemoryMesh
from tests.mistakes.corpus import raises

KEY = "policies/-/orders/current"


def document(content: Any) -> None:
    read(content if isinstance(content, str) else {"version": 7, **content}, ServiceUrl("orders"), KEY)


def consumer(**policies: Any) -> None:
    document({"consumer": {"policies": policies}})


@raises(ConfigError, f"consumer.policies.retries (from {KEY})", "is no kind of policy", "did you mean 'retry'?", '"retry"')
def kind_that_is_none() -> None:
    consumer(retries={"attempts": 3})


@raises(ConfigError, f"consumer.policies.retry.attemps (from {KEY})", "is not known", "did you mean 'attempts'?")
def field_with_a_typo() -> None:
    consumer(retry={"attemps": 3})


@raises(ConfigError, f"consumer.policies.rate_limit.limits (from {KEY})", "'fortnight' is no unit of time", '"100/second"')
def unit_that_is_none() -> None:
    consumer(rate_limit={"limits": ["100/fortnight"]})


@raises(ConfigError, f"consumer.policies.rate_limit.limits (from {KEY})", "100/1s can never be reached", '"5000/10m"')
def limits_that_contradict_each_other() -> None:
    consumer(rate_limit={"limits": ["100/s", "50/m"]})


@raises(ConfigError, f"consumer.policies.timeout.seconds (from {KEY})", "'2s' is not a positive number", "timeout(2.0)")
def seconds_with_a_unit() -> None:
    consumer(timeout={"seconds": "2s"})


@raises(ConfigError, "consumer.policies.route.", "is an empty range", f"(from {KEY})", '">=2,<3"')
def range_without_versions() -> None:
    consumer(route={"rules": [{"to": {"version": ">=2,<1"}}]})


@raises(ConfigError, f"consumers (from {KEY})", "is not known; version, service", "did you mean 'consumer'?")
def part_with_a_typo() -> None:
    document({"consumers": {}})


@raises(ConfigError, f"mode (from {KEY})", "'dry-run' is none of enforce, shadow", '"shadow"')
def mode_that_is_none() -> None:
    document({"mode": "dry-run"})


@raises(ConfigError, f"version (from {KEY})", "'7' is none; a whole number", '"version": 7')
def version_as_text() -> None:
    document({"version": "7"})


@raises(ConfigError, f"service (from {KEY})", "'stock' is not the one whose document it is", '"orders"')
def document_of_another_service() -> None:
    document({"service": "stock"})


@raises(ConfigError, f"document (from {KEY})", "'retry' is there twice", "for example")
def field_that_is_there_twice() -> None:
    document('{"version": 7, "consumer": {"policies": {"retry": {}, "retry": {}}}}')


@raises(ConfigError, f"document (from {KEY})", "is no JSON", "for example")
def text_that_is_broken_off() -> None:
    document('{"version": 7,')


@raises(MissingExtra, f"a policy document in YAML (from {KEY})", "'pyyaml'", "'meshlib-cloud[yaml]'")
def yaml_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    document("version: 7")


@raises(ConfigError, "version (from code)", "1 is not higher than 1, the last one", "for example 2")
def version_that_was_there_already() -> None:
    with MemoryMesh() as mesh:
        mesh.policies.put("orders", {"version": 1})
        mesh.policies.put("orders", {"version": 1})


@raises(CasConflict, "the policies of orders have version 1, not 5")
def change_of_what_somebody_else_changed() -> None:
    with MemoryMesh() as mesh:
        mesh.policies.put("orders", {})
        mesh.policies.put("orders", {}, expected=5)
