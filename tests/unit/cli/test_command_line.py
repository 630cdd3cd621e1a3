"""What all commands have in common: documents, exit codes, settings, completion."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.testing import CliRunner

import meshlib
from meshlib.backends.memory import Store
from meshlib.cli import facts, policy_facts, run, setup_facts
from meshlib.cli.app import app
from meshlib.cli.arguments import known
from meshlib.cli.facts import Failure, Instances, Services, schema
from meshlib.discovery.store import SnapshotStore
from meshlib.mesh import Mesh
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.settings import Settings
from tests.unit.cli.said import Run

RUNNER = CliRunner()


def commands() -> list[list[str]]:
    """The words of every command."""

    def below(group: typer.Typer, words: list[str]) -> list[list[str]]:
        found = [[*words, each.name or each.callback.__name__.strip("_")] for each in group.registered_commands]  # type: ignore[union-attr]
        for each in group.registered_groups:
            assert each.typer_instance is not None
            found += below(each.typer_instance, [*words, str(each.name)])
        return found

    return below(app, [])


def test_there_are_all_that_were_promised() -> None:
    names = {" ".join(words) for words in commands()}
    promised = "services instances watch call explain register drain maintenance apply doctor demo"
    assert set(promised.split()) <= names
    assert {f"policy {each}" for each in "get put edit diff history rollback delete shadow validate".split()} <= names
    assert {f"snapshot {each}" for each in "show verify export import".split()} <= names


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_help_and_the_common_options(words: list[str]) -> None:
    said = RUNNER.invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert said.exit_code == 0
    for option in ("--json", "--registry", "--namespace", "--state-dir", "--token-file"):
        assert option in said.output


def test_no_command_is_wrong_usage(mesh: Run) -> None:
    said = mesh()
    assert said.code == 2
    assert "instances" in said.out + said.err


def test_the_version(mesh: Run) -> None:
    assert mesh("--version").out.strip() == meshlib.__version__


def test_completion(monkeypatch: pytest.MonkeyPatch, mesh: Run) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    said = mesh("--show-completion", "bash")
    assert said.code == 0
    assert "_MESH_COMPLETE" in said.out
    monkeypatch.setenv("_MESH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "mesh pol")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert mesh().out.split() == ["policy"]


def test_services_are_completed_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load()
    store = SnapshotStore(settings.state_path, registry=str(settings.registry), max_age=1e9)
    assert known("") == []
    for name in ("orders", "users", "shop.prod.stock"):
        store.save(Snapshot(ServiceUrl.parse(name), confirmed=1.0))
    assert known("") == ["orders", "shop.prod.stock", "users"]
    assert known("or") == ["orders"]
    monkeypatch.setenv("MESH_NAMESPACE", "shop.prod")
    assert known("st") == ["stock"]
    monkeypatch.setenv("MESH_PORT", "wrong")
    assert known("") == []


class TestDocuments:
    def test_one_document_and_nothing_else(self, mesh: Run, orders: list[Instance], tmp_path: Path) -> None:
        found = mesh("services", "--json").fact(Services)
        assert found == Services(registry=f"memory://{tmp_path}", namespace="", services=["orders"])

    def test_json_may_stand_before_the_command(self, mesh: Run, orders: list[Instance]) -> None:
        assert mesh("--json", "services").fact(Services).services == ["orders"]

    def test_an_error_is_a_document_too(self, mesh: Run, shared: Store) -> None:
        shared.down = True
        said = mesh("services", "--json")
        assert said.code == 1
        assert said.fact(Failure).error.kind == "RegistryUnavailable"

    def test_without_json_an_error_is_on_standard_error(self, mesh: Run, shared: Store) -> None:
        shared.down = True
        said = mesh("services")
        assert (said.code, said.out) == (1, "")
        assert "the memory registry is down" in said.err

    def test_wrong_usage_is_a_document_too(self, mesh: Run) -> None:
        said = mesh("instances", "--json")
        assert said.code == 2
        assert said.fact(Failure).error.kind == "UsageError"
        assert "name" in said.err.lower()

    @pytest.mark.parametrize("module", [facts, policy_facts, setup_facts])
    def test_every_fact_has_a_schema_that_says_what_is_needed(self, module: Any) -> None:
        kinds = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, facts.Fact)]
        for kind in kinds:
            text = json.dumps(schema(kind))
            assert kind.__name__ in text
            assert kind.__struct_fields__ == () or '"additionalProperties": false' in text

    def test_the_control_a_document_with_another_field_is_refused(self) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(b'{"registry": "", "namespace": "", "services": [], "more": 1}', type=Services)


class TestSettings:
    def test_a_wrong_one_is_wrong_usage_and_says_where_it_is_from(self, mesh: Run) -> None:
        said = mesh("services", "--registry", "consl://x", "--json")
        error = said.fact(Failure).error
        assert (said.code, error.name, error.source) == (2, "MESH_REGISTRY", "command line")
        assert "consul" in error.message

    def test_so_is_one_of_the_environment(self, mesh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MESH_PORT", "none")
        error = mesh("services", "--json").fact(Failure).error
        assert (error.name, error.source) == ("MESH_PORT", "environment")

    def test_the_command_line_wins(self, mesh: Run, orders: list[Instance]) -> None:
        fixed = "static://users=10.0.0.7:80"
        assert mesh("services", "--registry", fixed).out == "users\n"
        assert mesh("--registry", "memory://elsewhere", "services", "--registry", fixed).out == "users\n"
        assert mesh("services", "--namespace", "shop.prod", "--json").fact(Services).services == []

    def test_an_apps_mesh_is_used_as_it_is(self, mesh: Run, orders: list[Instance]) -> None:
        with Mesh(Settings(registry="static://users=10.0.0.7:80", namespace="shop.prod")) as app:
            assert mesh("instances", "users", "--json", app=app).fact(Instances).service == "shop.prod.users"
            assert app.view("users").live, "it is not closed"
            assert mesh("services", "--namespace", "", app=app).code == 0
            assert mesh("services", "--registry", "static://stock=10.0.0.8:80", app=app).out == "stock\n"


class TestMissing:
    @pytest.mark.parametrize("library", ["typer", "rich"])
    def test_what_to_install(self, library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        real = builtins.__import__

        def without(name: str, *rest: Any, **more: Any) -> Any:
            if name.partition(".")[0] == library or name == "meshlib.cli.app":
                raise ModuleNotFoundError(f"No module named {library!r}", name=library)
            return real(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", without)
        assert run(["services"]) == 2
        assert "pip install 'meshlib-cloud[cli]'" in capsys.readouterr().err

    def test_another_missing_library_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def without(name: str, *rest: Any, **more: Any) -> Any:
            if name == "meshlib.cli.app":
                raise ModuleNotFoundError("No module named 'other'", name="other")
            return real(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(ModuleNotFoundError, match="other"):
            run(["services"])


def test_python_m_meshlib() -> None:
    done = subprocess.run([sys.executable, "-m", "meshlib", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == meshlib.__version__
