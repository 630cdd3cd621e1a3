"""The local registry on a clock of the test's own: leases, the file's safety, damage."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshlib.backends import local, open_backend
from meshlib.backends.local import LocalRegistry, locate
from meshlib.backends.local_db import Database
from meshlib.backends.local_kv import LocalKeyValue
from meshlib.errors import ConfigError, RegistryUnavailable
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings
from tests.conformance.watching import Watching, ids

pytestmark = pytest.mark.anyio
ORDERS = ServiceUrl("orders")


def instance(name: str = "a", **fields: object) -> Instance:
    return Instance.parse({"service": "orders", "id": name, "host": "10.0.0.5", "port": 8080, **fields})


class Local:
    """A registry, its keys and values, and its clock."""

    def __init__(self, path: Path, *, boot: str = "boot", now: float = 1000.0) -> None:
        self.now = now
        self.database = Database(path, clock=lambda: self.now, boot=boot, timeout=0.3, poll=0.005)
        self.registry, self.kv = LocalRegistry(self.database), LocalKeyValue(self.database)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mesh" / "registry.db"


@pytest.fixture
async def mesh(path: Path) -> AsyncIterator[Local]:
    mesh = Local(path)
    yield mesh
    await mesh.database.close()


# -- where the file is, and who may touch it


def test_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "state"
    assert locate(Settings(state_dir=str(state))) == state / "registry.db"
    assert locate(Settings(registry="local://", state_dir=str(state))) == state / "registry.db"
    assert locate(Settings(registry="local://some.db")) == tmp_path / "some.db"
    assert locate(Settings(registry="local:///var/lib/x.db")) == Path("/var/lib/x.db")
    assert locate(Settings(registry=f"local://{tmp_path}")) == tmp_path / "registry.db"
    assert locate(Settings(registry=f"local://{tmp_path}/new/")) == tmp_path / "new" / "registry.db"


def test_the_example_works() -> None:
    assert locate(Settings(registry=local.EXAMPLE)) == Path("/var/lib/mesh/registry.db")


def test_opening_touches_nothing(path: Path) -> None:
    open_backend(Settings(registry=f"local://{path}"))
    assert not path.parent.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match=r"MESH_REGISTRY .*can be written to by others.*for example local:///"):
        open_backend(Settings(registry=f"local://{tmp_path}/registry.db"))


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match=r"another user|belongs to user"):
        open_backend(Settings(registry=f"local://{tmp_path}/registry.db"))


def test_an_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'wal'"):
        open_backend(Settings(registry=f"local://{tmp_path}/registry.db?wal=no"))


async def test_only_we_can_use_the_files(mesh: Local, path: Path) -> None:
    await mesh.registry.register(instance(), 30)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == dict.fromkeys(["registry.db", "registry.db-wal", "registry.db-shm", "registry.db.lock"], 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_link_is_not_followed(mesh: Local, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    victim = tmp_path / "victim"
    path.symlink_to(victim)
    with pytest.raises(RegistryUnavailable, match="symbolic link"):
        await mesh.registry.fetch(ORDERS)
    assert not victim.exists()


async def test_a_file_that_others_can_use_is_refused(mesh: Local, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o644)
    with pytest.raises(RegistryUnavailable, match="chmod 600"):
        await mesh.registry.fetch(ORDERS)


# -- leases


async def test_a_lease_ends_on_the_clock(mesh: Local) -> None:
    await mesh.registry.register(instance(), 10)
    mesh.now += 9.9
    assert ids(await mesh.registry.fetch(ORDERS)) == ["a"]
    mesh.now += 0.1
    assert ids(await mesh.registry.fetch(ORDERS)) == []
    assert await mesh.registry.services("") == []
    assert await mesh.registry.heartbeat(instance(), 10) is False


async def test_a_heartbeat_prolongs(mesh: Local) -> None:
    await mesh.registry.register(instance(), 10)
    mesh.now += 9
    assert await mesh.registry.heartbeat(instance(), 10)
    mesh.now += 9
    assert ids(await mesh.registry.fetch(ORDERS)) == ["a"]


async def test_what_an_earlier_boot_wrote_has_expired(mesh: Local, path: Path) -> None:
    await mesh.registry.register(instance(), 1e6)
    assert await mesh.kv.lock("leader", ttl=1e6)
    await mesh.kv.put("policies/a", b"kept")
    after = Local(path, boot="next", now=5.0)
    assert ids(await after.registry.fetch(ORDERS)) == []
    assert await after.registry.heartbeat(instance(), 10) is False
    assert await after.kv.lock("leader", ttl=10)
    assert await after.kv.get("policies/a")
    await after.database.close()


async def test_a_watch_sees_an_expiry_that_nobody_writes(mesh: Local) -> None:
    await mesh.registry.register(instance("short"), 5)
    await mesh.registry.register(instance("long"), 50)
    async with Watching(mesh.registry.watch(ORDERS)) as watching:
        await watching.until(lambda listing: ids(listing) == ["long", "short"])
        mesh.now += 6
        await watching.until(lambda listing: ids(listing) == ["long"])


async def test_a_watch_sees_an_expiry_that_a_heartbeat_of_another_purges(mesh: Local) -> None:
    await mesh.registry.register(instance("short"), 5)
    await mesh.registry.register(instance("long"), 50)
    async with Watching(mesh.registry.watch(ORDERS)) as watching:
        await watching.until(lambda listing: ids(listing) == ["long", "short"])
        mesh.now += 6
        await mesh.registry.heartbeat(instance("long"), 50)
        await watching.until(lambda listing: ids(listing) == ["long"])


async def test_a_watch_decodes_only_what_is_new(mesh: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    real = local.decode
    monkeypatch.setattr(local, "decode", lambda document, service: decoded.append(document) or real(document, service))
    for number in range(20):
        await mesh.registry.register(instance(f"i{number}"), 30)
    async with Watching(mesh.registry.watch(ORDERS)) as watching:
        await watching.until(lambda listing: len(listing.instances) == 20)
        decoded.clear()
        await mesh.registry.register(instance("i7", version="2"), 30)
        await watching.until(lambda listing: "2" in {one.version for one in listing.instances})
        assert len(decoded) == 1


async def test_a_bad_document_is_left_out_and_reported_once(mesh: Local, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await mesh.registry.register(instance("good"), 30)
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO instances SELECT namespace, service, 'bad', '{}', boot, expires FROM instances")
    raw.close()
    for _ in range(3):
        assert ids(await mesh.registry.fetch(ORDERS)) == ["good"]
    assert [record.message.split(" in ")[0] for record in caplog.records] == ["orders/bad"]


@pytest.mark.parametrize(
    ("name", "document"),
    [("'b'", "5"), ("'b'", "1.5"), ("'b'", "'{'"), ("'b'", "''"), ("CAST(x'ff' AS TEXT)", "x'7b7d'"), ("x'ff'", "x'ff'"),
     ("7", "x'00'"), ("'b' || char(10) || 'forged'", "'{'")],
)  # fmt: skip
async def test_what_another_program_wrote_is_left_out(
    mesh: Local, path: Path, name: str, document: str, caplog: pytest.LogCaptureFixture
) -> None:
    await mesh.registry.register(instance("good"), 30)
    with sqlite3.connect(path) as raw:
        raw.execute(f"INSERT INTO instances SELECT namespace, service, {name}, {document}, boot, expires FROM instances")
        raw.execute(f"INSERT INTO instances SELECT namespace, {name}, 'x', {document}, boot, expires FROM instances LIMIT 1")
    raw.close()
    assert ids(await mesh.registry.fetch(ORDERS)) == ["good"]
    assert "orders" in await mesh.registry.services("")
    assert not any("\n" in record.getMessage() for record in caplog.records)


# -- a file that is lost or damaged


async def test_fences_and_revisions_do_not_come_again_after_a_loss(mesh: Local, path: Path) -> None:
    await mesh.kv.put("a", b"1")
    first, lock = await mesh.kv.get("a"), await mesh.kv.lock("leader", ttl=30)
    path.unlink()
    await mesh.kv.put("a", b"1")
    second, next_lock = await mesh.kv.get("a"), await mesh.kv.lock("leader", ttl=30)
    assert first and second and second.revision > first.revision  # noqa: PT018 - narrows the types
    assert lock and next_lock and next_lock.fence > lock.fence  # noqa: PT018
    assert await lock.renew() is False


async def test_a_deleted_file_is_made_again_under_a_running_watch(mesh: Local, path: Path) -> None:
    await mesh.registry.register(instance(), 30)
    async with Watching(mesh.registry.watch(ORDERS)) as watching:
        await watching.until(lambda listing: ids(listing) == ["a"])
        path.unlink()
        await watching.until(lambda listing: ids(listing) == [])
        assert await mesh.registry.heartbeat(instance(), 30) is False
        await mesh.registry.register(instance(), 30)
        await watching.until(lambda listing: ids(listing) == ["a"])


def damage(path: Path, kind: str) -> None:
    if kind == "garbage":
        path.write_bytes(b"what is this " * 1000)
    elif kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "page":
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 4096)
    else:
        raw = sqlite3.connect(path)
        raw.execute("PRAGMA user_version = 99")
        raw.close()


@pytest.mark.parametrize("kind", ["garbage", "truncated", "page", "newer"])
async def test_an_unusable_file_goes_to_quarantine(path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    before = Local(path)
    await before.registry.register(instance(), 30)
    await before.kv.put("policies/a", b"precious")
    await before.database.close()
    damage(path, kind)
    bad = path.read_bytes()
    mesh = Local(path)
    assert ids(await mesh.registry.fetch(ORDERS)) == []
    await mesh.registry.register(instance(), 30)
    assert ids(await mesh.registry.fetch(ORDERS)) == ["a"]
    kept = [each for each in path.parent.iterdir() if ".corrupt-" in each.name]
    assert [each.read_bytes() for each in kept] == [bad]
    assert str(kept[0]) in caplog.text
    assert "keys and values are gone from it" in caplog.text
    await mesh.database.close()


async def test_damage_under_an_open_connection_heals(mesh: Local, path: Path) -> None:
    await mesh.registry.register(instance(), 30)
    path.write_bytes(b"\xff" * path.stat().st_size)
    for each in (path.with_name("registry.db-wal"), path.with_name("registry.db-shm")):
        each.write_bytes(b"\xff" * each.stat().st_size)
    for _ in range(5):
        try:
            await mesh.registry.register(instance(), 30)
            break
        except RegistryUnavailable as problem:
            assert str(path) in str(problem)
    assert ids(await mesh.registry.fetch(ORDERS)) == ["a"]


async def test_the_database_of_another_program_is_left_alone(mesh: Local, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE customers (name)")
    raw.close()
    with pytest.raises(RegistryUnavailable, match="database of another program"):
        await mesh.registry.register(instance(), 30)
    assert [each.name for each in path.parent.iterdir() if "corrupt" in each.name] == []


async def test_a_creation_that_was_cut_short_is_finished(mesh: Local, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    await mesh.registry.register(instance(), 30)
    assert ids(await mesh.registry.fetch(ORDERS)) == ["a"]
    assert len(list(path.parent.glob("*corrupt*"))) == 0


async def test_a_log_left_over_from_a_deleted_database_is_not_used(mesh: Local, path: Path) -> None:
    await mesh.kv.put("a", b"x" * 50_000)
    left_over = path.with_name("registry.db-wal").read_bytes()
    await mesh.database.close()
    path.unlink()
    stale = path.with_name("registry.db-wal")
    stale.write_bytes(left_over)
    stale.chmod(0o600)
    again = Local(path)
    assert await again.kv.list("") == ()
    await again.database.close()


# -- failures


async def test_a_full_disk_is_unavailable_and_undone(mesh: Local, path: Path) -> None:
    await mesh.kv.put("a", b"small")
    handle = await mesh.database._opened()
    handle.writer.execute("PRAGMA max_page_count = 10")
    with pytest.raises(RegistryUnavailable, match=rf"{path}.* full"):
        await mesh.kv.put("a", b"x" * 1_000_000)
    entry = await mesh.kv.get("a")
    assert entry
    assert entry.value == b"small"


async def test_a_held_write_lock_is_unavailable_and_reads_go_on(mesh: Local, path: Path) -> None:
    await mesh.registry.register(instance(), 30)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(RegistryUnavailable, match=r"database is locked: another process has held it"):
        await mesh.registry.register(instance(), 30)
    assert ids(await mesh.registry.fetch(ORDERS)) == ["a"]
    holder.execute("ROLLBACK")
    holder.close()
    assert await mesh.registry.heartbeat(instance(), 30)


async def test_a_directory_that_cannot_be_made(mesh: Local, path: Path) -> None:
    path.parent.write_text("a file is in the way")
    with pytest.raises(RegistryUnavailable, match=str(path)):
        await mesh.registry.fetch(ORDERS)


async def test_closing_ends_watches(mesh: Local) -> None:
    async with Watching(mesh.registry.watch(ORDERS)) as watching:
        await watching.until(lambda _: True)
        await mesh.database.close()
        with pytest.raises(RegistryUnavailable, match="is closed"):
            await watching.until(lambda _: False)
    await mesh.database.close()


async def test_nothing_looks_for_changes_once_nobody_watches(mesh: Local) -> None:
    async with Watching(mesh.registry.watch(ORDERS)) as one, Watching(mesh.kv.watch("a")) as other:
        await one.until(lambda _: True)
        await other.until(lambda _: True)
        assert mesh.database._timer is not None
    assert mesh.database._timer is None
    assert not mesh.database._watchers


async def test_a_child_process_is_refused(mesh: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    await mesh.registry.register(instance(), 30)
    with monkeypatch.context() as child:
        child.setattr(mesh.database, "_pid", mesh.database._pid + 1)
        with pytest.raises(RegistryUnavailable, match="open a backend of its own after a fork"):
            await mesh.registry.fetch(ORDERS)
        await mesh.database.close()  # does nothing there
    assert ids(await mesh.registry.fetch(ORDERS)) == ["a"]
