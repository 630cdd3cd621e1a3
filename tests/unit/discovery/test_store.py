"""The disk snapshot: what it returns, what it refuses, and what survives writers that race or crash."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.discovery import store as module
from meshlib.discovery.document import Document
from meshlib.discovery.store import SnapshotStore
from meshlib.errors import StoreError
from meshlib.model import Instance, ServiceUrl, Snapshot
from tests.unit.discovery.snapshots import ORDERS, REGISTRY, Clock, instance, snapshot


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> SnapshotStore:
    return SnapshotStore(tmp_path / "state", registry=REGISTRY, max_age=1000.0, clock=clock)


@pytest.fixture
def path(store: SnapshotStore) -> Path:
    return store.directory / "orders.json"


def quarantined(store: SnapshotStore) -> list[str]:
    return sorted(each.name for each in store.directory.iterdir() if ".quarantined-" in each.name)


def rewrite(path: Path, **changes: Any) -> None:
    """Forge the file at ``path``, with a checksum that is right."""
    fields = json.loads(path.read_bytes()) | changes
    path.write_bytes(Document(**fields).encode())


# -- there and back


def test_nothing_there(store: SnapshotStore, caplog: pytest.LogCaptureFixture) -> None:
    assert store.load(ORDERS) is None
    assert not caplog.records
    assert not store.levels[0].exists()


def test_it_comes_back(store: SnapshotStore, clock: Clock) -> None:
    full = Instance.parse({
        "service": "orders", "id": "full", "host": "2001:db8::1", "port": 8443, "scheme": "https", "version": "1.4",
        "zone": "eu-1a", "weight": 7, "labels": {"team": "pay"}, "status": "draining", "generation": "g1",
    })  # fmt: skip
    store.save(snapshot(full, instance("a"), suspects={"a"}, confirmed=clock.now - 5, revision="77"))
    loaded = store.load(ORDERS)
    assert loaded == Snapshot(ORDERS, (instance("a"), full), frozenset({"a"}), clock.now - 5, "disk", "77")
    assert loaded.age(clock.now) == 5


def test_form(store: SnapshotStore, path: Path, clock: Clock) -> None:
    store.save(snapshot(instance("a"), revision="77"), tombstones={"b": clock.now - 1})
    document = json.loads(path.read_bytes())
    assert len(document.pop("checksum")) == 64
    assert document == {
        "schema": 1, "registry": REGISTRY, "service": "orders", "confirmed": clock.now, "revision": "77", "suspects": [],
        "instances": [{"service": "orders", "id": "a", "host": "10.0.0.5", "port": 8080, "scheme": "http", "weight": 1}],
        "tombstones": {"b": clock.now - 1},
    }  # fmt: skip


def test_names_and_namespaces_and_registries_are_apart(tmp_path: Path, store: SnapshotStore) -> None:
    spaced = ServiceUrl("orders", "shop.prod")
    store.save(snapshot(instance("plain")))
    store.save(Snapshot(spaced, (instance("spaced", namespace="shop.prod"),), confirmed=10_000.0))
    assert (store.directory / "shop.prod.orders.json").exists()
    assert [one.id for one in store.load(ORDERS).instances] == ["plain"]  # type: ignore[union-attr]
    assert [(one.id, one.namespace) for one in store.load(spaced).instances] == [("spaced", "shop.prod")]  # type: ignore[union-attr]
    other = SnapshotStore(tmp_path / "state", registry="consul://elsewhere", max_age=1000, clock=store.clock)
    assert other.load(ORDERS) is None


def test_an_instance_url_is_its_service(store: SnapshotStore) -> None:
    store.save(snapshot(instance("a")))
    assert store.load(ServiceUrl("orders", "", "a")) == store.load(ORDERS)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", ".hidden", "a\0b", ""])
def test_a_name_that_is_no_name_reaches_no_file(store: SnapshotStore, name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        store.save(Snapshot(ServiceUrl(name)))
    with pytest.raises(StoreError):
        store.load(ServiceUrl(name))
    assert list(tmp_path.iterdir()) == []


def test_modes(store: SnapshotStore, path: Path) -> None:
    old = os.umask(0)
    try:
        store.save(snapshot(instance("a")))
    finally:
        os.umask(old)
    assert [stat.S_IMODE(level.stat().st_mode) for level in store.levels] == [0o700] * 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# -- age


def test_too_old(store: SnapshotStore, clock: Clock, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.save(snapshot(instance("a")))
    clock.now += 1000
    assert store.load(ORDERS)
    clock.now += 1
    assert store.load(ORDERS) is None
    assert "1001 s old" in caplog.text
    assert path.exists()


def test_a_clock_that_was_set_back(store: SnapshotStore, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    store.save(snapshot(instance("a")))
    clock.now -= 59
    assert store.load(ORDERS)
    assert not caplog.records
    clock.now -= 5000
    loaded = store.load(ORDERS)
    assert loaded
    assert (loaded.age(clock.now), loaded.confirmed) == (0, clock.now)
    assert "in the future" in caplog.text
    store.save(snapshot(instance("b"), confirmed=clock.now))  # and it does not lock out all later ones
    assert [one.id for one in store.load(ORDERS).instances] == ["b"]  # type: ignore[union-attr]


# -- refused


def attack_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def attack_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def attack_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


REFUSED = {
    "link": (attack_link, "symbolic link"),
    "directory": (attack_directory, "not a plain file"),
    "pipe": (attack_pipe, "not a plain file"),
    "group can read": (lambda path: path.chmod(0o640), "can be used by others"),
    "world can write": (lambda path: path.chmod(0o602), "can be used by others"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "no json": (lambda path: path.write_bytes(b"\x80\x04\x95pickle"), "damaged"),
    "nested": (lambda path: path.write_bytes(b'{"instances":' + b"[" * 1_000_000), "damaged"),
    "edited": (lambda path: path.write_bytes(path.read_bytes().replace(b"10.0.0.5", b"10.6.6.6")), "checksum"),
    "schema": (lambda path: rewrite(path, schema=2), "schema is 2"),
    "registry": (lambda path: rewrite(path, registry="consul://evil"), "consul://evil"),
    "service": (lambda path: rewrite(path, service="users"), "users"),
    "large": (lambda path: os.truncate(path, module.MAX_FILE + 1), "larger than"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_quarantined(
    store: SnapshotStore, path: Path, clock: Clock, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    attack, reason = REFUSED[name]
    store.save(snapshot(instance("a")))
    attack(path)
    assert store.load(ORDERS) is None
    assert reason in caplog.text
    assert str(path) in caplog.text
    assert len(quarantined(store)) == 1
    assert not os.path.lexists(path)
    store.save(snapshot(instance("b"), confirmed=clock.now + 1))
    assert [one.id for one in store.load(ORDERS).instances] == ["b"]  # type: ignore[union-attr]


def test_of_another_user(store: SnapshotStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(snapshot(instance("a")))
    real = os.fstat

    def foreign(handle: int) -> os.stat_result:
        mode, inode, device, links, user, *rest = real(handle)
        return os.stat_result([mode, inode, device, links, user + 1, *rest])

    monkeypatch.setattr(os, "fstat", foreign)
    assert store.load(ORDERS) is None
    assert len(quarantined(store)) == 1
    assert not path.exists()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_directory_that_others_write_to(store: SnapshotStore, level: int, caplog: pytest.LogCaptureFixture) -> None:
    store.save(snapshot(instance("a")))
    store.levels[level].chmod(0o777)
    assert store.load(ORDERS) is None
    assert "written to by others" in caplog.text
    with pytest.raises(StoreError, match="written to by others"):
        store.save(snapshot(instance("b")))


def test_a_link_in_the_way_of_a_write_is_not_followed(store: SnapshotStore, path: Path, tmp_path: Path) -> None:
    store.save(snapshot(instance("a")))
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.unlink()
    path.symlink_to(victim)
    path.with_name(".orders.json.new").symlink_to(victim)
    store.save(snapshot(instance("b")))
    assert victim.read_text() == "precious"
    assert [one.id for one in store.load(ORDERS).instances] == ["b"]  # type: ignore[union-attr]


@pytest.mark.parametrize("step", [0.1, 0.3, 7.0])
def test_the_five_latest_quarantined_files_are_kept(store: SnapshotStore, path: Path, clock: Clock, step: float) -> None:
    for number in range(8):
        clock.now += step
        store.save(snapshot(instance("a")))
        path.write_bytes(b"bad %d" % number)
        assert store.load(ORDERS) is None
    contents = [(store.directory / name).read_bytes() for name in quarantined(store)]
    assert contents == [b"bad %d" % number for number in range(3, 8)]


def test_one_bad_instance_is_left_out(store: SnapshotStore, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.save(snapshot(instance("a"), instance("b")))
    good = json.loads(path.read_bytes())["instances"]
    rewrite(path, instances=[good[0], {**good[1], "host": "2130706433"}, {"id": {}}])
    assert [one.id for one in store.load(ORDERS).instances] == ["a"]  # type: ignore[union-attr]
    assert "left out" in caplog.text


# -- tombstones and writers that race


def loaded(store: SnapshotStore) -> list[tuple[str, str]]:
    found = store.load(ORDERS)
    assert found
    return [(one.id, one.generation) for one in found.instances]


def test_a_slow_writer_does_not_replace_a_later_listing(store: SnapshotStore, clock: Clock) -> None:
    store.save(snapshot(instance("new"), confirmed=clock.now))
    store.save(snapshot(instance("old"), confirmed=clock.now - 10), tombstones={"other": clock.now - 10})
    assert loaded(store) == [("new", "")]


def test_a_slow_writer_does_not_resurrect(store: SnapshotStore, clock: Clock) -> None:
    store.save(snapshot(instance("b"), confirmed=clock.now - 20), tombstones={"a": clock.now - 2})
    store.save(snapshot(instance("a"), instance("b"), confirmed=clock.now - 10))
    assert loaded(store) == [("b", "")]


def test_the_tombstone_of_a_slow_writer_counts(store: SnapshotStore, clock: Clock) -> None:
    store.save(snapshot(instance("a"), instance("b"), confirmed=clock.now - 10))
    store.save(snapshot(instance("b"), confirmed=clock.now - 20), tombstones={"a": clock.now - 2})
    assert loaded(store) == [("b", "")]


def test_without_the_tombstone_it_would_be_back(store: SnapshotStore, clock: Clock) -> None:
    store.save(snapshot(instance("b"), confirmed=clock.now - 20))
    store.save(snapshot(instance("a"), instance("b"), confirmed=clock.now - 10))
    assert loaded(store) == [("a", ""), ("b", "")]


def test_a_later_listing_ends_a_tombstone(store: SnapshotStore, clock: Clock, path: Path) -> None:
    store.save(snapshot(confirmed=clock.now - 20), tombstones={"a": clock.now - 15})
    store.save(snapshot(instance("a"), confirmed=clock.now - 10))
    assert loaded(store) == [("a", "")]
    assert json.loads(path.read_bytes())["tombstones"] == {}


def test_a_suspect_is_no_later_listing(store: SnapshotStore, clock: Clock) -> None:
    store.save(snapshot(confirmed=clock.now - 20), tombstones={"a": clock.now - 15})
    store.save(snapshot(instance("a"), suspects={"a"}, confirmed=clock.now - 10))
    assert loaded(store) == []


def test_another_generation_ends_a_tombstone(store: SnapshotStore, clock: Clock) -> None:
    store.save(snapshot(instance("a", generation="1"), confirmed=clock.now - 20), tombstones={"a": clock.now - 5})
    assert loaded(store) == []
    store.save(snapshot(instance("a", generation="1"), confirmed=clock.now - 10))
    assert loaded(store) == []
    store.save(snapshot(instance("a", generation="2"), confirmed=clock.now - 8))
    assert loaded(store) == [("a", "2")]


def test_old_tombstones_go(store: SnapshotStore, clock: Clock, path: Path) -> None:
    store.save(snapshot(instance("x")), tombstones={"a": clock.now - 999})
    clock.now += 2
    store.save(snapshot(instance("x"), confirmed=clock.now), tombstones={"b": clock.now})
    assert json.loads(path.read_bytes())["tombstones"] == {"b": clock.now}


def test_a_tombstone_from_the_future_counts_as_new(store: SnapshotStore, clock: Clock, path: Path) -> None:
    store.save(snapshot(instance("x")), tombstones={"a": clock.now + 1e9})
    assert json.loads(path.read_bytes())["tombstones"] == {"a": clock.now}


# -- writes that fail


class Killed(BaseException):
    """What a SIGKILL is to the code: nothing after it runs."""


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.parametrize(("where", "name"), [(os, "fsync"), (Path, "rename")])
def test_a_full_disk_leaves_the_old_and_nothing_else(
    store: SnapshotStore, path: Path, where: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(snapshot(instance("old")))
    with monkeypatch.context() as patched, pytest.raises(StoreError, match="No space left"):
        patched.setattr(where, name, full)
        store.save(snapshot(instance("new")))
    assert loaded(store) == [("old", "")]
    assert sorted(each.name for each in store.directory.iterdir()) == [".lock", path.name]


@pytest.mark.parametrize(("where", "name"), [(os, "fsync"), (Path, "rename")])
def test_a_crash_before_the_rename_leaves_the_old(
    store: SnapshotStore, where: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(snapshot(instance("old")))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(where, name, killed)
        store.save(snapshot(instance("new")))
    assert loaded(store) == [("old", "")]


def test_what_a_crash_left_is_no_obstacle(store: SnapshotStore, path: Path) -> None:
    store.save(snapshot(instance("old")))
    path.with_name(".orders.json.new").write_bytes(b"half")
    store.save(snapshot(instance("new")))
    assert loaded(store) == [("new", "")]
    assert not path.with_name(".orders.json.new").exists()


def test_a_directory_that_cannot_be_made(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "state").write_text("a file is in the way")
    store = SnapshotStore(tmp_path / "state", registry=REGISTRY, max_age=1000, clock=clock)
    with pytest.raises(StoreError, match=str(tmp_path / "state")):
        store.save(snapshot(instance("a")))
    assert store.load(ORDERS) is None


def test_too_large_to_be_read_is_not_written(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(snapshot(instance("a")))
    monkeypatch.setattr(module, "MAX_FILE", 2000)
    with pytest.raises(StoreError, match="more than 2000"):
        store.save(snapshot(*(instance(f"i{number}") for number in range(100))))
    assert loaded(store) == [("a", "")]


# -- any damage


@given(st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        store = SnapshotStore(Path(directory), registry=REGISTRY, max_age=1000.0, clock=Clock())
        store.save(snapshot(instance("a", labels={"k": "v"}), instance("b"), suspects={"b"}), tombstones={"c": 9_990.5})
        good, path = store.load(ORDERS), store.directory / "orders.json"
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans(), label="truncate"):
            del content[data.draw(st.integers(0, len(content) - 1), label="at") :]
        else:
            content[data.draw(st.integers(0, len(content) - 1), label="at")] ^= 1 << data.draw(st.integers(0, 7), label="bit")
        path.write_bytes(content)
        assert store.load(ORDERS) in (None, good)
