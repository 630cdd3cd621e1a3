"""policy … and apply, on a key-value store in memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshlib.backends.memory import Store
from meshlib.cli.facts import Failure
from meshlib.cli.policy_facts import Difference, History, Missing, Plan, PolicyDocument, PolicyNames, Put
from meshlib.governance.layout import key_of
from meshlib.model import ServiceUrl
from tests.unit.cli.said import Run

RETRY = {"consumer": {"policies": {"retry": {"attempts": 5}}}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "orders.json"
    path.write_text(json.dumps(RETRY))
    return path


@pytest.fixture
def put(mesh: Run, file: Path) -> None:
    assert mesh("policy", "put", "orders", "-f", file, "--note", "a bad day").code == 0


class TestGetAndPut:
    def test_there_and_back(self, mesh: Run, put: None) -> None:
        found = mesh("policy", "get", "orders", "--json").fact(PolicyDocument)
        assert (found.version, found.mode, found.note) == (1, "enforce", "a bad day")
        assert found.content["consumer"] == RETRY["consumer"]
        assert mesh("policy", "list", "--json").fact(PolicyNames).services == ["orders"]

    def test_what_get_prints_can_be_put_again(self, mesh: Run, put: None, tmp_path: Path) -> None:
        text = mesh("policy", "get", "orders").out
        assert "attempts: 5" in text
        (tmp_path / "again.yaml").write_text(text.replace("version: 1", "version: 7"))
        assert mesh("policy", "put", "orders", "-f", tmp_path / "again.yaml", "--json").fact(Put).version == 7

    def test_none_is_a_no(self, mesh: Run) -> None:
        said = mesh("policy", "get", "users", "--json")
        assert (said.code, said.fact(Missing).missing) == (1, "policy document of users")
        assert mesh("policy", "get", "users").out == "no policy document of users\n"

    def test_a_wrong_field_is_told_with_its_path(self, mesh: Run, tmp_path: Path) -> None:
        (tmp_path / "bad").write_text('{"consumer": {"policies": {"retry": {"attempts": 0}}}}')
        for words in (["put", "orders", "-f"], ["validate", "-f"], ["diff", "orders", "-f"], ["shadow", "orders", "-f"]):
            said = mesh("policy", *words, tmp_path / "bad", "--json")
            error = said.fact(Failure).error
            assert (said.code, error.name.startswith("consumer.policies.retry")) == (2, True), words
        assert mesh("policy", "list", "--json").fact(PolicyNames).services == []

    def test_compare_and_set(self, mesh: Run, put: None, file: Path) -> None:
        said = mesh("policy", "put", "orders", "-f", file, "--expected", "0", "--json")
        assert (said.code, said.fact(Failure).error.kind) == (1, "CasConflict")
        assert mesh("policy", "put", "orders", "-f", file, "--expected", "1").code == 0

    def test_validate_asks_nobody(self, mesh: Run, file: Path, shared: Store) -> None:
        shared.down = True
        said = mesh("policy", "validate", "-f", file, "--json")
        assert (said.code, said.fact(Put).dry) == (0, True)

    def test_a_registry_without_a_store(self, mesh: Run) -> None:
        said = mesh("policy", "list", "--registry", "static://orders=10.0.0.1:80", "--json")
        assert (said.code, said.fact(Failure).error.name) == (2, "MESH_REGISTRY")


class TestVersions:
    def test_history_rollback_delete(self, mesh: Run, put: None, tmp_path: Path) -> None:
        (tmp_path / "two").write_text("{}")
        assert mesh("policy", "put", "orders", "-f", tmp_path / "two").code == 0
        assert mesh("policy", "rollback", "orders", "1", "--json").fact(Put).content["consumer"] == RETRY["consumer"]
        assert "consumer" not in mesh("policy", "delete", "orders", "--json").fact(Put).content
        versions = mesh("policy", "history", "orders", "--json").fact(History).versions
        assert [(one.version, one.note) for one in versions] == [
            (4, "deleted"),
            (3, "back to version 1"),
            (2, ""),
            (1, "a bad day"),
        ]
        assert "back to version 1" in mesh("policy", "history", "orders").out

    def test_what_is_not_kept(self, mesh: Run, put: None) -> None:
        assert mesh("policy", "rollback", "orders", "9").code == 2
        assert mesh("policy", "history", "users").code == 1

    def test_diff(self, mesh: Run, put: None, tmp_path: Path) -> None:
        (tmp_path / "six").write_text(json.dumps(RETRY).replace("5", "6"))
        planned = mesh("policy", "diff", "orders", "-f", tmp_path / "six", "--json").fact(Difference).diff
        assert '-        "attempts": 5' in planned
        assert '+        "attempts": 6' in planned
        assert mesh("policy", "diff", "orders", "-f", tmp_path / "six", "--exit-code").code == 1
        mesh("policy", "put", "orders", "-f", tmp_path / "six")
        assert '+        "attempts": 6' in mesh("policy", "diff", "orders").out
        assert '+        "attempts": 6' in mesh("policy", "diff", "orders", "1", "2").out
        assert mesh("policy", "diff", "orders", "-f", tmp_path / "six", "--exit-code").code == 0
        assert mesh("policy", "diff", "orders", "2", "2").out == "no difference\n"

    def test_shadow_and_off(self, mesh: Run, put: None) -> None:
        assert mesh("policy", "shadow", "orders", "--json").fact(Put).mode == "shadow"
        enforced = mesh("policy", "shadow", "orders", "--off", "--json").fact(Put)
        assert (enforced.mode, enforced.content["consumer"]) == ("enforce", RETRY["consumer"])
        assert mesh("policy", "shadow", "users").code == 1

    def test_a_new_document_in_shadow(self, mesh: Run, file: Path) -> None:
        assert mesh("policy", "shadow", "users", "-f", file, "--json").fact(Put).mode == "shadow"


class TestEdit:
    @pytest.fixture(autouse=True)
    def rooms(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "tmp").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.delenv("VISUAL", raising=False)

    @staticmethod
    def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        script = tmp_path / "editor.py"
        script.write_text(f"import sys, pathlib\npath = pathlib.Path(sys.argv[1])\ntext = path.read_text()\n{code}\n")
        monkeypatch.setenv("EDITOR", f"'{sys.executable}' '{script}'")

    def test_what_is_saved_is_put(self, mesh: Run, put: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.editor(tmp_path, monkeypatch, "path.write_text(text.replace('5', '6'))")
        said = mesh("policy", "edit", "orders", "--json")
        assert (said.code, said.fact(Put).version) == (0, 2)
        assert said.fact(Put).content["consumer"]["policies"]["retry"]["attempts"] == 6
        assert os.listdir(tmp_path / "tmp") == []

    @pytest.mark.parametrize("code", ["pass", "path.write_text('')"])
    def test_no_change_puts_nothing(
        self, code: str, mesh: Run, put: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.editor(tmp_path, monkeypatch, code)
        assert mesh("policy", "edit", "orders").code == 1
        assert mesh("policy", "get", "orders", "--json").fact(PolicyDocument).version == 1

    def test_what_is_wrong_is_not_put_and_the_text_is_kept(
        self, mesh: Run, put: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.editor(tmp_path, monkeypatch, "path.write_text(text.replace('attempts', 'atempts'))")
        said = mesh("policy", "edit", "orders", "--json")
        assert (said.code, said.fact(Failure).error.name) == (2, "consumer.policies.retry.atempts")
        (kept,) = (tmp_path / "tmp").iterdir()
        assert str(kept) in said.err
        assert "atempts" in kept.read_text()
        assert kept.stat().st_mode & 0o777 == 0o600
        assert mesh("policy", "get", "orders", "--json").fact(PolicyDocument).version == 1

    def test_an_editor_that_fails(self, mesh: Run, put: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.editor(tmp_path, monkeypatch, "sys.exit(3)")
        assert mesh("policy", "edit", "orders", "--json").fact(Failure).error.name == "EDITOR"
        monkeypatch.setenv("EDITOR", "/none/such")
        assert mesh("policy", "edit", "orders").code == 2

    def test_somebody_else_was_quicker(
        self, mesh: Run, put: None, tmp_path: Path, shared: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.editor(tmp_path, monkeypatch, "path.write_text(text.replace('5', '6'))")
        real = os.environ["EDITOR"]

        def meanwhile(command: list[str], **options: Any) -> Any:
            mesh("policy", "delete", "orders")
            return subprocess_run(command, **options)

        import subprocess

        subprocess_run = subprocess.run
        monkeypatch.setattr("meshlib.cli.editor.subprocess.run", meanwhile)
        assert real
        said = mesh("policy", "edit", "orders", "--json")
        assert (said.code, said.fact(Failure).error.kind) == (1, "CasConflict")
        assert "your text is kept in" in said.err


class TestApply:
    @pytest.fixture
    def room(self, tmp_path: Path) -> Path:
        room = tmp_path / "policies"
        room.mkdir()
        (room / "orders.json").write_text(json.dumps(RETRY))
        (room / "others.yaml").write_text(
            "service: users\nconsumer: {policies: {timeout: {seconds: 1}}}\n---\nservice: shop.prod.stock\nmode: shadow\n"
            "consumer: {policies: {rate_limit: {limits: 10/s}}}\n"
        )
        return room

    def steps(self, said: Any) -> list[tuple[str, str, bool]]:
        return [(one.service, one.action, one.done) for one in said.fact(Plan).steps]

    def test_a_plan_changes_nothing(self, mesh: Run, room: Path, shared: Store) -> None:
        said = mesh("apply", "-f", room, "--dry-run", "--json")
        assert self.steps(said) == [
            ("orders", "create", False),
            ("shop.prod.stock", "create", False),
            ("users", "create", False),
        ]
        assert not shared.entries
        assert mesh("apply", "-f", room, "--dry-run", "--exit-code").code == 1
        assert '+        "attempts": 5' in mesh("apply", "-f", room, "--dry-run").out

    def test_it_is_done_once(self, mesh: Run, room: Path) -> None:
        assert [done for _, _, done in self.steps(mesh("apply", "-f", room, "--json"))] == [True] * 3
        again = mesh("apply", "-f", room, "--json")
        assert {action for _, action, _ in self.steps(again)} == {"unchanged"}
        assert {one.version for one in again.fact(Plan).steps} == {1}
        assert mesh("apply", "-f", room, "--dry-run", "--exit-code").code == 0

    def test_only_what_differs_is_changed(self, mesh: Run, room: Path) -> None:
        mesh("apply", "-f", room)
        (room / "orders.json").write_text(json.dumps(RETRY).replace("5", "6"))
        found = mesh("apply", "-f", room, "--json")
        assert [action for _, action, _ in self.steps(found)] == ["change", "unchanged", "unchanged"]

    def test_prune_only_when_asked_and_only_here(self, mesh: Run, room: Path) -> None:
        mesh("apply", "-f", room)
        (room / "others.yaml").unlink()
        assert [action for _, action, _ in self.steps(mesh("apply", "-f", room, "--json"))] == ["unchanged"]
        pruned = mesh("apply", "-f", room, "--prune", "--json")
        assert self.steps(pruned) == [("orders", "unchanged", True), ("users", "delete", True)]
        assert self.steps(mesh("apply", "-f", room, "--prune", "--json")) == [("orders", "unchanged", True)]
        assert mesh("policy", "get", "shop.prod.stock").code == 0, "of another namespace"

    def test_one_wrong_document_and_nothing_is_done(self, mesh: Run, room: Path, shared: Store) -> None:
        (room / "users2.yaml").write_text("consumer: {policies: {timeout: {secs: 1}}}\n")
        said = mesh("apply", "-f", room, "--json")
        error = said.fact(Failure).error
        assert (said.code, error.name) == (2, "consumer.policies.timeout.secs")
        assert "users2.yaml" in error.source
        assert not shared.entries

    def test_a_service_twice(self, mesh: Run, room: Path) -> None:
        (room / "orders.yaml").write_text("service: orders\n")
        said = mesh("apply", "-f", room, "--json")
        assert (said.code, said.fact(Failure).error.name) == (2, "orders")

    def test_nothing_there(self, mesh: Run, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert mesh("apply", "-f", tmp_path / "none").code == 2
        assert mesh("apply", "-f", tmp_path / "empty").code == 2

    def test_what_is_of_no_use_is_replaced(self, mesh: Run, room: Path, shared: Store) -> None:
        from meshlib.backends.base import Entry

        key = key_of(ServiceUrl("orders"))
        shared.entries[key] = Entry(key, b"{broken", shared.touch())
        found = mesh("apply", "-f", room, "--json")
        assert self.steps(found)[0] == ("orders", "change", True)
        assert mesh("policy", "get", "orders").code == 0

    def test_somebody_else_was_quicker(self, mesh: Run, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from meshlib.governance import desired

        real = desired.perform

        async def meanwhile(policies: Any, step: Any, **options: Any) -> Any:
            if str(step.service) == "orders":
                await policies.put("orders", {})
            return await real(policies, step, **options)

        monkeypatch.setattr(desired, "perform", meanwhile)
        said = mesh("apply", "-f", room, "--json")
        found = {one.service: (one.done, bool(one.problem)) for one in said.fact(Plan).steps}
        assert said.code == 1
        assert found == {"orders": (False, True), "shop.prod.stock": (True, False), "users": (True, False)}
        assert "not done" in mesh("apply", "-f", room).out

    def test_the_document_is_checked_by_its_schema(self, mesh: Run, room: Path) -> None:
        document = mesh("apply", "-f", room, "--json").document
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({**document, "more": 1}, Plan)
