"""Registering with the port that is really listened on, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshlib import ConfigError, Mesh, Settings
from meshlib.announcement import LONG, NOWHERE, PATIENCE, Announcement, chosen
from meshlib.discovery.listening import Listener
from meshlib.errors import RegistryDenied, RegistryUnavailable
from meshlib.testing import FakeClock, run_virtual
from tests.servers.base import eventually
from tests.unit.wiring import end_parents


def ports(*numbers: int, local: bool = False) -> list[Listener]:
    return [Listener(number, local) for number in numbers]


@pytest.mark.parametrize(
    ("settings", "found", "expected"),
    [
        ({}, ports(8000), 8000),
        ({}, ports(8000, 8000), 8000),  # IPv4 and IPv6
        ({}, ports(), NOWHERE),
        ({"port": 8000}, ports(8000, 9000), 8000),
        ({"port": 8000}, ports(), NOWHERE),
        ({"port": 8000}, ports(9000), "is 8000, but this process listens on 9000"),
        ({}, ports(9000, 8000), "is not set, and this process listens on 8000 and 9000: which of them is it?"),
        ({"management_port": 9000}, ports(9000, 8000), 8000),
        ({"management_port": 9000}, ports(9000), NOWHERE),
        ({"advertise": "10.0.0.5:80"}, ports(), 0),
        ({"advertise": "10.0.0.5:80", "port": 8000}, ports(), 8000),
        ({"advertise": "10.0.0.5:80"}, ports(8000), 8000),
        ({"advertise": "10.0.0.5"}, ports(), NOWHERE),
        ({"port": 8000}, None, 8000),
        ({}, None, "is not set, and this system does not tell on which port this process listens"),
    ],
)
def test_which_port(settings: Any, found: Iterable[Listener] | None, expected: int | str) -> None:
    assert chosen(Settings(**settings), found) == expected


class World:
    """What listens can be changed; ``registered`` is with which ports, and when."""

    def __init__(self, refusal: Exception | None = None, **settings: Any) -> None:
        self.listening: Any = ports()
        self.registered: list[tuple[int | None, float]] = []
        self._refusal, self._settings, self._clock = refusal, Settings(service="orders", **settings), FakeClock(0.0)
        self._tasks: list[asyncio.Task[None]] = []

    def report(self, work: Any) -> None:
        async def guarded() -> None:  # as the worker does
            try:
                await work()
            except Exception:
                logging.getLogger("meshlib.worker").exception("a background task of meshlib failed")

        self._tasks.append(asyncio.create_task(guarded()))

    def _register(self, port: int | None) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.registered.append((port, self._clock()))

    def _look(self) -> Any:
        if isinstance(self.listening, Exception):
            raise self.listening
        return self.listening

    def play(self, story: Callable[[Announcement], Awaitable[None]]) -> None:
        async def main() -> None:
            announcement = Announcement(
                self._settings, self, self._register, self._look, clock=self._clock  # type: ignore[arg-type]
            )  # fmt: skip
            await story(announcement)
            announcement.cancel()
            await asyncio.gather(*self._tasks)

        run_virtual(main(), clock=self._clock)


def test_a_server_that_comes_up() -> None:
    world = World()

    async def story(announcement: Announcement) -> None:
        await asyncio.sleep(2.0)
        assert (world.registered, announcement.problem) == ([], "starting")
        world.listening = ports(8000)
        await asyncio.sleep(1.0)
        assert announcement.problem == ""

    world.play(story)
    assert [port for port, _ in world.registered] == [8000]
    assert 2.0 < world.registered[0][1] < 2.5


def test_a_port_that_comes_before_the_servers() -> None:
    """Metrics of the app's own, say: two ports, and nobody knows which."""
    world = World()

    async def story(announcement: Announcement) -> None:
        world.listening = ports(9000)
        await asyncio.sleep(0.15)
        world.listening = ports(9000, 8000)
        await asyncio.sleep(PATIENCE + 1.0)
        assert announcement.problem == "not registered"

    world.play(story)
    assert world.registered == []


def test_another_port_than_mesh_port(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is registered, it is said once, and when it is put right it goes on."""
    world = World(port=8000)
    world.listening = ports(8001)

    async def story(announcement: Announcement) -> None:
        await asyncio.sleep(PATIENCE * 3)
        assert (world.registered, announcement.problem) == ([], "not registered")
        world.listening = ports(8001, 8000)
        await asyncio.sleep(4.0)
        assert announcement.problem == ""

    with caplog.at_level(logging.WARNING):
        world.play(story)
    assert [port for port, _ in world.registered] == [8000]
    first, second = caplog.messages
    assert "MESH_PORT (from code): is 8000, but this process listens on 8001; for example" in first
    assert second == "orders listens on port 8000 now"


def test_a_process_that_serves_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def story(_: Announcement) -> None:
        await asyncio.sleep(LONG * 3)

    World().play(story)
    assert len(caplog.messages) == 1
    assert NOWHERE in caplog.messages[0]


def test_a_process_that_says_that_it_serves_nobody(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.listening = LookupError()

    async def story(announcement: Announcement) -> None:
        await asyncio.sleep(LONG * 3)
        assert announcement.problem == ""

    world.play(story)
    assert (world.registered, caplog.messages) == ([], [])


def test_cancelled() -> None:
    world = World()

    async def story(announcement: Announcement) -> None:
        announcement.cancel()
        world.listening = ports(8000)
        await asyncio.sleep(PATIENCE)

    world.play(story)
    assert world.registered == []


@pytest.mark.parametrize("refusal", [ConfigError("port", "is registered already"), OSError("no space left on device")])
def test_what_cannot_be_registered(refusal: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever hinders it: a process that consumers cannot find is not ready."""
    world = World(refusal)
    world.listening = ports(8000)

    async def story(announcement: Announcement) -> None:
        await asyncio.sleep(PATIENCE)
        assert announcement.problem == "not registered"

    world.play(story)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("registry", "local", "advertise", "warned"),
    [
        ("consul://10.0.0.1", True, "", True),
        ("consul://10.0.0.1", False, "", False),
        ("consul://127.0.0.1", True, "", False),
        ("consul://10.0.0.1", True, "10.0.0.5:80", False),
        ("local://", True, "", False),
    ],
)
def test_a_server_that_nobody_else_reaches(
    registry: str, local: bool, advertise: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(registry=registry, advertise=advertise)
    world.listening = ports(8000, local=local)

    async def story(_: Announcement) -> None:
        await asyncio.sleep(1.0)

    world.play(story)
    assert [port for port, _ in world.registered] == [8000]
    assert any("loopback" in message for message in caplog.messages) is warned


class TestMesh:
    """The mesh's own part in it."""

    @pytest.fixture
    def mesh(self, tmp_path: Path) -> Iterable[Mesh]:
        settings = Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="orders", drain_timeout=0)
        with Mesh(settings) as mesh:
            yield mesh
        end_parents()

    def test_registered_once_and_ready_then(self, mesh: Mesh) -> None:
        assert mesh._standing().hindrance == ""
        found: list[Listener] = []
        mesh.announce(lambda: list(found))
        assert mesh._standing().hindrance == "starting"
        found += ports(8000)
        wait(lambda: bool(mesh._registrations))
        registration = mesh._registrations[0]
        assert registration.wait(30).port == 8000
        assert mesh._standing().hindrance == ""
        mesh.announce(lambda: ports(8001))
        assert mesh._registrations == [registration]

    def test_two_threads_announce_at_once(self, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
        check, begun = mesh._check_pid, list[object]()

        def met() -> None:
            monkeypatch.setattr(mesh, "_check_pid", check)
            mesh.announce(lambda: ports(8000))

        monkeypatch.setattr(mesh._worker, "report", begun.append)
        monkeypatch.setattr(mesh, "_check_pid", met)
        mesh.announce(lambda: ports(8000))
        assert len(begun) == 1, "the other one could be cancelled by nobody"

    def test_not_before_it_serves(self, mesh: Mesh) -> None:
        mesh.announce(lambda: ports(8000), at_once=False)
        assert not mesh._worker.running
        mesh.in_flight.begin()
        wait(lambda: bool(mesh._registrations))

    def test_without_a_service_there_is_nothing_to_do(self, tmp_path: Path) -> None:
        mesh = Mesh(Settings(registry=f"memory://{tmp_path}"))
        mesh.announce(lambda: ports(8000))
        assert not mesh._worker.running
        assert mesh._standing().registration is None

    def test_whoever_leaves_is_not_ready_and_does_not_come_back(self, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("meshlib.lifecycle.time", SimpleNamespace(sleep=lambda _: None))
        mesh.announce(lambda: ports(8000))
        wait(lambda: bool(mesh._registrations))
        mesh.leave()
        assert mesh._registrations == []
        assert mesh._standing().hindrance == "draining"

    def test_a_child_announces_itself_once_it_serves(self, mesh: Mesh) -> None:
        """One that was forked before its parent had registered; one that only computes does not."""
        found: list[Listener] = []
        mesh.announce(lambda: list(found))
        assert mesh._announcement is not None
        mesh._announcement.cancel()  # it is the parent's
        mesh._forked()
        assert mesh._announcement is None
        found += ports(8000)
        assert not mesh._worker.running
        mesh.in_flight.end(mesh.in_flight.begin())
        wait(lambda: bool(mesh._registrations))

    def test_maintenance(self, mesh: Mesh) -> None:
        registration = mesh.register(8000)
        registration.wait(30)
        registration.maintenance()
        wait(lambda: mesh._standing().hindrance == "maintenance")
        registration.up()
        wait(lambda: mesh._standing().hindrance == "")


class TestRegistryThatDoesNotTakeUs:
    @pytest.mark.parametrize(
        ("problem", "hindrance"), [(RegistryUnavailable("no answer"), ""), (RegistryDenied("no such token"), "starting")]
    )
    def test_one_that_is_away_makes_nobody_unready(self, tmp_path: Path, problem: Exception, hindrance: str) -> None:
        settings = Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="orders", drain_timeout=0)
        with Mesh(settings) as mesh:

            async def refusing() -> Any:
                raise problem

            mesh._registry = refusing  # type: ignore[method-assign]
            registration = mesh.register(8000)
            wait(lambda: registration._reconciler.problem != "")
            standing = mesh._standing()
            assert standing.hindrance == hindrance
            assert standing.registration is not None
            assert standing.registration.status == "UNKNOWN"

    def test_one_that_goes_away_later_does_neither(self, tmp_path: Path) -> None:
        settings = Settings(registry=f"memory://{tmp_path}", state_dir=str(tmp_path), service="orders", drain_timeout=0)
        with Mesh(settings.changed(ttl=0.03)) as mesh:
            registration = mesh.register(8000)
            registration.wait(30)

            async def refusing() -> Any:
                raise RegistryDenied("no such token")

            mesh._registry = registration._reconciler._registry = refusing  # type: ignore[method-assign]
            wait(lambda: registration._reconciler.problem != "")
            assert mesh._standing().hindrance == ""


def wait(condition: Callable[[], bool]) -> None:
    """Until the control plane has done it."""
    eventually(condition, within=30)
