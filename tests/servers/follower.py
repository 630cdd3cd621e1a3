"""Processes under policy documents, and who puts those."""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from meshlib.backends import KeyValue, open_backend
from meshlib.governance.policies import Policies
from meshlib.model import Instance
from meshlib.settings import Settings

T = TypeVar("T")

ROOT = Path(__file__).parent.parent.parent


class Process:
    """See :mod:`tests.integration.policy_process`. ``environment`` is what it is told beside."""

    def __init__(self, url: str, state: Path, **environment: str) -> None:
        command = [sys.executable, "-m", "tests.integration.policy_process", url]
        with (state / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, bufsize=0,
                env={**os.environ, "MESH_STATE_DIR": str(state), **environment},
            )  # fmt: skip
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line.decode().strip())
        self._lines.put("ended")

    def until(self, wanted: str, *, within: float = 60.0) -> str:
        """The next line that begins so; those before it are dropped."""
        seen: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=within)
            except queue.Empty:
                raise AssertionError(f"no line {wanted!r} within {within} s, only {seen}") from None
            if f"{line} ".startswith(f"{wanted} "):
                return line
            seen.append(line)
            assert line != "ended", seen

    def refused(self, calls: int) -> int:
        """How many of so many calls it refuses."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"call {calls}\n".encode())
        return int(self.until("refused").split()[1])

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(10)


def with_kv(settings: Settings, work: Callable[[KeyValue], Awaitable[T]]) -> T:
    """Do ``work`` with the store of ``settings``."""

    async def do() -> T:
        backend = open_backend(settings)
        try:
            assert backend.kv is not None
            return await work(backend.kv)
        finally:
            await backend.close()

    return asyncio.run(do())


def put(settings: Settings, content: Any) -> int:
    """Put a document of ``orders``; its version."""
    return with_kv(settings, lambda kv: Policies(kv).put("orders", content)).version


def list_one(settings: Settings) -> None:
    """Have an instance of ``orders`` listed."""

    async def register() -> None:
        backend = open_backend(settings)
        await backend.registry.register(Instance("orders", "orders-1", "10.0.0.5", 8080), 3600.0)
        await backend.close()

    asyncio.run(register())
