"""What processes that serve one host:port know of each other. The others are real processes: locks are the kernel's."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.discovery.siblings import Alone, Record, Siblings, siblings_of
from meshlib.errors import ConfigError, RegistryUnavailable
from meshlib.model import Instance, Status
from meshlib.settings import Settings
from meshlib.testing import FakeClock
from tests.servers.sibling import Sibling


@pytest.fixture(scope="module")
def other() -> Iterator[Sibling]:
    with Sibling() as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "siblings" / "shop"


@pytest.fixture
def ours(file: Path) -> Iterator[Siblings]:
    made = Siblings(file, Record("shop-1", "ours"))
    yield made
    made.close()


def test_the_first_keeps_the_entry_and_the_second_stands_by_as_the_same_instance(
    ours: Siblings, other: Sibling, file: Path
) -> None:
    standing = ours.look()
    assert (standing.registrar, standing.record.generation, standing.record.listed) == (True, "ours", False)
    assert other.ask(file, "look", proposes="theirs")[:4] == [False, "shop-1", "ours", "up"]
    assert ours.look().registrar
    other.ask(file, "die")


def test_a_dead_registrar_is_replaced_and_it_is_no_restart(ours: Siblings, other: Sibling, file: Path) -> None:
    assert other.ask(file, "look", proposes="theirs")[0]
    assert not ours.look().registrar
    other.ask(file, "die")
    standing = ours.look()
    assert (standing.registrar, standing.record.generation) == (True, "theirs")


def test_only_the_last_to_leave_is_told_so_and_who_comes_next_is_a_restart(ours: Siblings, other: Sibling, file: Path) -> None:
    ours.look()
    other.ask(file, "look")
    assert not ours.leave()
    assert other.ask(file, "look")[0], "handed over"
    assert other.ask(file, "leave")
    late = Siblings(file, Record("shop-1", "late"))
    with pytest.raises(RegistryUnavailable, match="still deregistering"):
        late.look()
    other.ask(file, "close")
    assert not file.exists()
    standing = late.look()
    assert (standing.registrar, standing.record.generation) == (True, "late")
    late.close()


def test_of_two_that_leave_at_once_one_is_the_last(
    ours: Siblings, other: Sibling, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []
    release = ours._release

    def in_between() -> None:
        said.append(other.ask(file, "leave"))
        release()

    ours.look()
    other.ask(file, "look")
    monkeypatch.setattr(ours, "_release", in_between)
    said.append(ours.leave())
    monkeypatch.undo()
    assert sorted(said) == [False, True]
    other.ask(file, "close")


def test_the_last_knows_what_was_listed_since_it_looked(ours: Siblings, other: Sibling, file: Path) -> None:
    """Else it would leave what another one had just listed, and handed over."""
    assert other.ask(file, "look")[0]
    assert not ours.look().record.listed
    other.ask(file, "confirm")
    assert not other.ask(file, "leave")
    assert not ours.record.listed
    assert ours.leave()
    assert ours.record.listed
    other.ask(file, "close")


def test_who_has_left_is_not_drawn_in_again(ours: Siblings, other: Sibling, file: Path) -> None:
    """By a look that a thread was at while another one left."""
    ours.look()
    assert ours.leave()
    assert not ours.look().registrar
    ours.close()
    assert not ours.look().registrar
    assert other.ask(file, "look")[0]
    assert other.ask(file, "leave")
    other.ask(file, "close")


def test_leaving_without_having_joined(ours: Siblings) -> None:
    ours.wish(Status.DRAINING)
    ours.confirm()
    assert not ours.leave()
    ours.close()


def test_a_wish_is_everybodys_and_outlives_whoever_had_it(ours: Siblings, other: Sibling, file: Path) -> None:
    ours.look()
    other.ask(file, "look")
    other.ask(file, "wish", "maintenance")
    other.ask(file, "die")
    assert ours.look().record.status is Status.MAINTENANCE
    assert other.ask(file, "look", proposes="new")[3] == "maintenance"
    ours.wish(Status.UP)
    assert other.ask(file, "look")[3] == "up"
    other.ask(file, "die")


def test_how_long_nothing_was_confirmed(other: Sibling, file: Path) -> None:
    clock = FakeClock(1000.0)
    ours = Siblings(file, Record("shop-1", "g"), clock=clock)
    assert ours.look().quiet == 0.0
    clock.advance(7)
    standing = ours.look()
    assert (standing.quiet, standing.record.listed) == (7.0, False)
    ours.confirm()
    standing = ours.look()
    assert (standing.quiet, standing.record.listed) == (0.0, True)
    assert other.ask(file, "look")[4]
    other.ask(file, "die")
    ours.close()


def test_a_file_that_was_removed_is_made_again_and_they_meet_there(ours: Siblings, other: Sibling, file: Path) -> None:
    assert ours.look().registrar
    assert not other.ask(file, "look", proposes="theirs")[0]
    file.unlink()
    assert other.ask(file, "look", proposes="theirs")[2] == "ours"
    assert ours.look().record.generation == "ours"
    assert sum((ours.look().registrar, other.ask(file, "look")[0])) == 1
    other.ask(file, "die")


def test_a_second_one_in_the_same_process_has_to_wait(ours: Siblings, file: Path) -> None:
    """Record locks do not tell them apart."""
    ours.look()
    second = Siblings(file, Record("shop-1", "second"))
    with pytest.raises(ConfigError, match="is registered by this process already"):
        second.look()
    ours.leave()
    ours.close()
    assert second.look().registrar
    second.close()


def flock_is_free(path: Path) -> bool:
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


FLOCK = """
import fcntl, os, signal, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_EX)
print(os.fork() or signal.alarm(60) or signal.pause(), flush=True)
signal.pause()
"""


def test_a_child_that_knows_nothing_does_not_keep_a_dead_process_in_place(ours: Siblings, file: Path, tmp_path: Path) -> None:
    with Sibling() as doomed:
        assert doomed.ask(file, "look", proposes="theirs")[0]
        child = doomed.ask(file, "fork")
        assert not ours.look().registrar
        doomed.process.kill()
        doomed.process.wait()
        os.kill(child, 0)  # it lives
        assert ours.look().registrar
        assert ours.leave()
        os.kill(child, signal.SIGKILL)
    # The control, and the reason for record locks: flock() would be held by the child.
    holder = subprocess.Popen([sys.executable, "-c", FLOCK, str(tmp_path / "f")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert not flock_is_free(tmp_path / "f")
    os.kill(child, signal.SIGKILL)


class TestNoPlaceToMeet:
    """OSError or ValueError: then each goes on alone."""

    def test_a_directory_that_others_can_write_to(self, ours: Siblings, file: Path) -> None:
        file.parent.mkdir(mode=0o700)
        file.parent.chmod(0o777)
        with pytest.raises(ValueError, match="can be written to by others"):
            ours.look()

    def test_no_directory(self, ours: Siblings, file: Path) -> None:
        file.parent.write_text("")
        with pytest.raises((OSError, ValueError)):
            ours.look()

    def test_a_link(self, ours: Siblings, file: Path) -> None:
        file.parent.mkdir(mode=0o700)
        file.symlink_to("/etc/passwd")
        with pytest.raises(OSError):
            ours.look()

    def test_a_file_that_others_can_use(self, ours: Siblings, file: Path) -> None:
        file.parent.mkdir(mode=0o700)
        file.touch(mode=0o666)
        file.chmod(0o666)
        with pytest.raises(ValueError, match="can be used by others"):
            ours.look()

    def test_damage(self, ours: Siblings, other: Sibling, file: Path) -> None:
        other.ask(file, "look")
        file.write_text("nonsense")
        with pytest.raises(ValueError, match="damaged"):
            ours.look()
        other.ask(file, "die")


def test_what_a_predecessor_left_in_the_file_is_of_no_interest(ours: Siblings, file: Path) -> None:
    file.parent.mkdir(mode=0o700)
    file.touch(mode=0o600)
    file.write_text('{"id":"shop-1","generation":"old","status":"maintenance","listed":true}' + " " * 400)
    record = ours.look().record
    assert (record.generation, record.status, record.listed) == ("ours", Status.UP, False)


def peer(**settings: object) -> Instance:
    made: dict[str, object] = {"service": "shop", "id": "shop-1", "host": "10.0.0.5", "port": 80, **settings}
    return Instance(**made)  # type: ignore[arg-type]


def test_who_are_siblings(tmp_path: Path) -> None:
    def path(registry: str = "local://", **fields: object) -> Path:
        group = siblings_of(Settings(registry=registry, state_dir=str(tmp_path)), peer(**fields))
        assert isinstance(group, Siblings)
        return group.path

    assert path() == path(id="shop-2", generation="g2", version="2") == path()
    ours = path()
    different = [path("consul://10.0.0.1"), path(host="10.0.0.6"), path(port=81), path(service="bar"), path(namespace="a.b")]
    assert len({ours, *different}) == 6
    assert list(tmp_path.iterdir()) == [], "nothing is opened by asking"


@pytest.mark.parametrize("registry", ["memory://", "static://shop=10.0.0.5:80"])
def test_where_no_other_process_can_be_listed_there_are_none(registry: str) -> None:
    group = siblings_of(Settings(registry=registry), peer())
    assert isinstance(group, Alone)
    assert group.look().registrar
    group.wish(Status.DRAINING)
    group.confirm()
    assert (group.look().record.status, group.look().record.listed) == (Status.DRAINING, True)
    assert group.leave()
