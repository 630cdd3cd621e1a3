"""snapshot …: looked at, verified, carried to another place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshlib.cli.facts import Failure
from meshlib.cli.setup_facts import Carried, SnapshotFiles
from meshlib.discovery.store import SnapshotStore
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.settings import Settings
from tests.unit.cli.said import Run


def store_of(state: Path, registry: str, **options: float) -> SnapshotStore:
    return SnapshotStore(state, registry=registry, max_age=options.get("max_age", 1e6))


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return store_of(Settings.load().state_path, f"memory://{tmp_path}")


@pytest.fixture
def saved(store: SnapshotStore, orders: list[Instance]) -> Path:
    """A snapshot that was confirmed a minute ago."""
    listed = Snapshot(ServiceUrl("orders"), tuple(orders), frozenset({"b"}), confirmed=store.clock() - 60, revision="7")
    store.save(listed, tombstones={"c": store.clock() - 50})
    return store.directory / "orders.json"


class TestShow:
    def test_none(self, mesh: Run) -> None:
        assert mesh("snapshot", "show").code == 1
        assert mesh("snapshot", "verify").code == 0, "nothing is wrong with it"

    def test_what_is_there(self, mesh: Run, saved: Path) -> None:
        (one,) = mesh("snapshot", "show", "--json").fact(SnapshotFiles).files
        assert (one.service, one.path, one.problem, one.revision) == ("orders", str(saved), "", "7")
        assert [(each.id, each.suspect) for each in one.instances] == [("a", False), ("b", True)]
        assert one.age is not None
        assert 60 <= one.age < 120
        assert set(one.tombstones) == {"c"}
        assert "fine" in mesh("snapshot", "show").out
        assert mesh("snapshot", "show", "users").code == 1


class TestVerify:
    def test_fine(self, mesh: Run, saved: Path) -> None:
        assert mesh("snapshot", "verify").code == 0

    @pytest.mark.parametrize(("how", "word"), [("damage", "checksum"), ("mode", "chmod 600"), ("age", "old"), ("link", "link")])
    def test_what_is_wrong_stays_where_it_is(
        self, how: str, word: str, mesh: Run, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if how == "damage":
            saved.write_bytes(saved.read_bytes().replace(b"10.0.0.1", b"10.0.0.9"))
        elif how == "mode":
            saved.chmod(0o644)
        elif how == "link":
            saved.rename(tmp_path / "elsewhere")
            saved.symlink_to(tmp_path / "elsewhere")
        else:
            monkeypatch.setenv("MESH_SNAPSHOT_MAX_AGE", "30")
        said = mesh("snapshot", "verify", "--json")
        (one,) = said.fact(SnapshotFiles).files
        assert said.code == 1
        assert word in one.problem
        assert saved.is_symlink() or saved.exists()
        assert mesh("snapshot", "show").code == 0

    def test_what_was_put_aside(self, mesh: Run, saved: Path, store: SnapshotStore) -> None:
        saved.write_bytes(b"{")
        assert store.load(ServiceUrl("orders")) is None
        said = mesh("snapshot", "verify", "--json")
        assert (said.code, said.fact(SnapshotFiles).files[0].quarantined) == (1, True)

    def test_a_directory_that_is_not_ours_alone(self, mesh: Run, saved: Path, store: SnapshotStore) -> None:
        store.levels[0].chmod(0o777)
        said = mesh("snapshot", "verify", "--json")
        assert (said.code, said.fact(Failure).error.kind) == (1, "StoreError")


class TestCarried:
    def test_to_another_machine(self, mesh: Run, saved: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.json"
        assert mesh("snapshot", "export", "-o", out, "--json").fact(Carried).services == ["orders"]
        assert mesh("snapshot", "export").document["format"] == "meshlib-snapshots"
        there = ["--state-dir", str(tmp_path / "there")]
        assert mesh("snapshot", "import", out, *there, "--json").fact(Carried).services == ["orders"]
        (one,) = mesh("snapshot", "show", *there, "--json").fact(SnapshotFiles).files
        (before,) = mesh("snapshot", "show", "--json").fact(SnapshotFiles).files
        assert (one.instances, one.tombstones) == (before.instances, before.tombstones)
        assert one.age is not None
        assert one.age > 59

    def test_what_is_newer_there_stays(self, mesh: Run, saved: Path, store: SnapshotStore, tmp_path: Path) -> None:
        mesh("snapshot", "export", "-o", tmp_path / "old.json")
        store.save(Snapshot(ServiceUrl("orders"), (), confirmed=store.clock()))
        assert mesh("snapshot", "import", tmp_path / "old.json").code == 0
        assert mesh("snapshot", "show", "--json").fact(SnapshotFiles).files[0].instances == []

    def test_of_another_registry_only_when_asked(self, mesh: Run, saved: Path, tmp_path: Path) -> None:
        mesh("snapshot", "export", "-o", tmp_path / "out.json")
        other = ["--registry", "memory://other"]
        assert mesh("snapshot", "import", tmp_path / "out.json", *other).code == 2
        assert mesh("snapshot", "show", *other).code == 1
        assert mesh("snapshot", "import", tmp_path / "out.json", *other, "--any-registry").code == 0
        assert mesh("snapshot", "show", *other).code == 0

    def test_what_was_forged(self, mesh: Run, saved: Path, tmp_path: Path) -> None:
        mesh("snapshot", "export", "-o", tmp_path / "out.json")
        for change in (lambda text: text.replace("10.0.0.1", "10.9.9.9"), lambda text: "[]", lambda text: text[:-5],
                       lambda text: text.replace("meshlib-snapshots", "else")):  # fmt: skip
            (tmp_path / "forged.json").write_text(change((tmp_path / "out.json").read_text()))
            said = mesh("snapshot", "import", tmp_path / "forged.json", "--json")
            assert (said.code, said.fact(Failure).error.name) == (2, "the export")

    def test_what_is_not_there(self, mesh: Run, saved: Path, tmp_path: Path) -> None:
        assert mesh("snapshot", "export", "users").code == 1
        assert mesh("snapshot", "export", "-o", tmp_path / "no" / "where").code == 2
        assert json.loads(mesh("snapshot", "export", "orders").out)["snapshots"][0]["service"] == "orders"
