"""The command line, used wrongly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.mistakes.corpus import exits


@exits(2, "No such command 'servces'", "Did you mean 'services'?")
def command_with_a_typo() -> list[str]:
    return ["servces"]


@exits(2, "No such option: --metod", "--method")
def option_with_a_typo() -> list[str]:
    return ["explain", "orders", "--metod", "GET"]


@exits(2, "Missing argument", "NAME")
def command_without_a_name() -> list[str]:
    return ["instances"]


@exits(2, "service name (from code)", "'My Orders' is not of the form", "for example 'orders'")
def name_that_no_service_can_have() -> list[str]:
    return ["instances", "My Orders"]


@exits(2, "PATH (from command line)", "'orders/7' does not start with a slash", "for example /orders/7")
def path_without_a_slash() -> list[str]:
    return ["call", "orders", "GET", "orders/7"]


@exits(2, "INSTANCE (from command line)", "or --service is needed, and not both", "for example orders/orders-10.0.0.5-8080")
def maintenance_of_nobody() -> list[str]:
    return ["maintenance"]


@exits(2, "consumer.policies.retry.attemps (from bad.json)", "is not known", "did you mean 'attempts'?")
def document_with_a_typo(tmp_path: Path) -> list[str]:
    (tmp_path / "bad.json").write_text(json.dumps({"consumer": {"policies": {"retry": {"attemps": 3}}}}))
    return ["policy", "put", "orders", "--file", "bad.json"]


@exits(2, "there.json", "No such file")
def document_that_is_not_there() -> list[str]:
    return ["policy", "put", "orders", "--file", "there.json"]


@exits(2, "MESH_REGISTRY (from environment)", "unknown scheme 'consol', did you mean consul://", "consul://10.0.0.1:8500")
def registry_with_a_typo(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("MESH_REGISTRY", "consol://10.0.0.1")
    return ["services"]


@exits(2, "MESH_REGISTRY (from command line)", "not a URL", "consul://10.0.0.1:8500")
def registry_without_a_scheme() -> list[str]:
    return ["services", "--registry", "10.0.0.1:8500"]


@exits(1, "ConnectError", "is MESH_REGISTRY=consul://127.0.0.1:1 (from environment) right?", "mesh doctor")
def registry_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("MESH_REGISTRY", "consul://127.0.0.1:1")
    return ["services"]


@exits(2, "mesh (from command line)", "needs the library 'typer'", "'meshlib-cloud[cli]'")
def command_line_without_its_library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(sys.modules, "typer", None)
    for name in [name for name in sys.modules if name.startswith("meshlib.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    return ["services"]
