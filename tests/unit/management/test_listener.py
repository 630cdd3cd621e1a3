"""The port of the pages, as it is opened and closed at once. That it serves is shown with real ones."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from meshlib import Settings
from meshlib.management import Answer, Ask, Management, Standing, listener
from meshlib.management.listener import Listener
from meshlib.worker import Worker
from tests.servers.base import eventually
from tests.unit.wiring import Contended


class Socket:
    """Bound already. A server has it, or is told that it is closed. ``meanwhile`` another thread is at it."""

    closed = False

    def meanwhile(self) -> None:
        """Nobody is."""

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 9090

    def close(self) -> None:
        self.closed = True


class Server:
    """Starts in two steps, as asyncio's does."""

    def __init__(self, socket: Socket) -> None:
        self._socket, self.close = socket, socket.close

    async def start_serving(self) -> None:
        assert not self._socket.closed, "Invalid file descriptor: -1"
        self._socket.meanwhile()
        await asyncio.sleep(0)


async def start(*_: Any, sock: Socket, start_serving: bool = True, **__: Any) -> Server:
    assert not sock.closed, "Invalid file descriptor: -1"
    made = Server(sock)
    if start_serving:
        await made.start_serving()
    return made


async def answer(_: Ask) -> Answer:
    raise NotImplementedError


@pytest.fixture
def socket(monkeypatch: pytest.MonkeyPatch) -> Socket:
    made = Socket()
    monkeypatch.setattr(listener, "_bound", lambda _: made)
    monkeypatch.setattr(asyncio, "start_server", start)
    return made


def test_it_is_closed_before_it_serves(socket: Socket) -> None:
    opened = Listener(Settings(), answer)
    opened.close()
    asyncio.run(opened.serve())
    assert socket.closed


def test_it_is_closed_while_the_server_starts(socket: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[object] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        opened = Listener(Settings(), answer)
        monkeypatch.setattr(socket, "meanwhile", opened.close)
        await opened.serve()
        await asyncio.sleep(0)
        assert socket.closed

    asyncio.run(story())
    assert not problems


def test_it_is_cancelled_while_the_server_starts_and_closed_then(socket: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        opened = Listener(Settings(), answer)
        serving = asyncio.create_task(opened.serve())
        monkeypatch.setattr(socket, "meanwhile", serving.cancel)
        with pytest.raises(asyncio.CancelledError):
            await serving
        opened.close()
        await asyncio.sleep(0)
        assert socket.closed

    asyncio.run(story())


def test_it_is_closed_when_the_loop_is_known_and_nothing_else(socket: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        opened, running = Listener(Settings(), answer), asyncio.get_running_loop

        def known() -> asyncio.AbstractEventLoop:
            opened._loop = running()
            opened.close()  # by another thread
            return opened._loop

        monkeypatch.setattr(asyncio, "get_running_loop", known)
        serving = opened.serve()
        await serving
        monkeypatch.undo()
        await asyncio.sleep(0)
        assert socket.closed

    asyncio.run(story())


def test_it_is_closed_after_the_loop(socket: Socket) -> None:
    opened = Listener(Settings(), answer)
    asyncio.run(opened.serve())
    opened.close()
    assert socket.closed


def test_two_threads_open_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's first request, and whoever registers."""
    pages = Management(Settings(management_port=9090), Worker(), Standing)
    lock, made, begun = Contended(), list[Listener](), list[object]()
    other = threading.Thread(target=pages.open)

    def listening(*given: Any) -> Listener:
        made.append(Listener(*given))
        if len(made) == 1:
            other.start()
            eventually(lambda: lock.waited > 0 or not other.is_alive())
        return made[-1]

    monkeypatch.setattr(listener, "_bound", lambda _: Socket())
    monkeypatch.setattr("meshlib.management.Listener", listening)
    monkeypatch.setattr(pages, "_lock", lock, raising=False)
    monkeypatch.setattr(pages._worker, "report", begun.append)
    pages.open()
    other.join(30)
    assert (len(made), len(begun)) == (1, 1)
