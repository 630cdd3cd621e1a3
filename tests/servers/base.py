"""A server process under test: start, SIGKILL, SIGSTOP, SIGCONT, restart; only ever by the pid we started."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

BLOCK = 50
"""Ports that a process of the tests claims at a time, by listening on the first of them until it ends: another one at the same
time, which looks for a free port as well, takes none of them."""
MEMORY, ENOUGH = Path("/dev/shm"), 4 << 30
"""Where the data of servers lie, if so many bytes are free there: a disk may take a second to write down what is put. No server
is killed by more than a signal, which memory survives."""
_claims: list[socket.socket] = []
_handing_out = threading.Lock()


def free_port() -> int:
    """A port that nobody listens on, never the same twice in one run, nor in two at a time. Below the ephemeral range, so that
    no outgoing connection of a test takes it before the server does."""
    with _handing_out:
        return next(_ports)


def _free_ports() -> Iterator[int]:
    first = 20_000 + os.getpid() * BLOCK % 12_000
    for block in (*range(first, 32_000, BLOCK), *range(20_000, first, BLOCK)):
        claim = socket.socket()
        try:
            claim.bind(("127.0.0.1", block))
            claim.listen(1)
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        yield from filter(_is_free, range(block + 1, block + BLOCK))
    raise RuntimeError("no free port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


_ports = _free_ports()


def need(program: str) -> str:
    """The path of ``program``; see :func:`lacking`."""
    return shutil.which(program) or lacking(program)


def lacking(what: str) -> NoReturn:
    """The test is skipped, saying so; under CI=true it fails."""
    reason = f"{what} is not installed (scripts/install-servers installs it)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def eventually(check: Callable[[], bool], *, within: float = 30.0, what: str | Callable[[], str] = "") -> float:
    """Poll ``check`` until it is true and return the seconds it took; fail after ``within`` seconds, saying ``what``, which
    may be a function: what there is to say then."""
    start = time.monotonic()
    while not check():
        if time.monotonic() - start > within:
            pytest.fail(f"not within {within} s: {(what() if callable(what) else what) or check}")
        time.sleep(0.02)
    return time.monotonic() - start


def _roomy() -> Path | None:
    """:data:`MEMORY`; None for where temporary files are otherwise."""
    there = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH
    return MEMORY if there else None


class Server:
    """One server process with a data directory of its own that survives restarts until :meth:`close`."""

    name = "server"
    host = "127.0.0.1"
    within: tuple[str, ...] = ()
    """What the command line is put behind, to run it elsewhere (in a network namespace, at another ``host``)."""

    def __init__(self) -> None:
        self.data = Path(tempfile.mkdtemp(prefix=f"meshlib-{self.name}-", dir=_roomy()))
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The command line."""
        raise NotImplementedError

    def ready(self) -> bool:
        """True when it serves."""
        raise NotImplementedError

    def start(self) -> None:
        """Start and wait until it serves."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Start, and do not wait."""
        with (self.data / "log").open("ab") as log:
            self.process = subprocess.Popen([*self.within, *self.command()], stdout=log, stderr=log, start_new_session=True)

    def await_ready(self) -> None:
        """Wait until it serves."""
        eventually(self._up, within=60, what=lambda: f"{self.name} is ready; the end of its log:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last that it logged."""
        return (self.data / "log").read_text(errors="replace")[-2000:]

    @property
    def alive(self) -> bool:
        """True while its process runs, frozen or not."""
        return self.process is not None and self.process.poll() is None

    def _up(self) -> bool:
        if not self.alive:
            pytest.fail(f"{self.name} ended; the end of its log:\n{self.log_tail()}")
        return self.ready()

    def stop(self) -> None:
        """SIGTERM, as for an upgrade, and wait until it has ended."""
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} does not stop; the end of its log:\n{self.log_tail()}")

    def kill(self) -> None:
        """SIGKILL and reap."""
        if self.process is not None and self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Lose all state (while stopped)."""
        log = (self.data / "log").read_bytes()
        shutil.rmtree(self.data)
        self.data.mkdir()
        (self.data / "log").write_bytes(log)

    def close(self) -> None:
        """Stop and remove the data."""
        self.kill()
        shutil.rmtree(self.data, ignore_errors=True)
