"""Lifecycle and wiring: the only composition root. It decides nothing.

A mesh is what a process knows (:mod:`~meshlib.mesh.plane`), what calls others (:mod:`~meshlib.mesh.consuming`) and what others
call (:mod:`~meshlib.mesh.providing`), each on top of the one before."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Self

from meshlib.mesh import providing
from meshlib.mesh.providing import Providing
from meshlib.settings import Settings
from meshlib.transport import MakeAsyncTransport, MakeTransport

__all__ = ["Mesh", "meshes"]


class Mesh(Providing):
    """A service mesh inside this process.

    ``settings`` default to the environment's. ``transport`` and ``async_transport`` make the httpx2 transport for an
    instance (default: real connections); tests put mocks or WSGI/ASGI apps there. Creating a mesh starts nothing and
    contacts nobody; close it, or use it as a context manager. Raises :class:`ConfigError`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        transport: MakeTransport | None = None,
        async_transport: MakeAsyncTransport | None = None,
    ) -> None:
        super().__init__(settings, transport, async_transport)
        providing.meshes.add(self)

    @classmethod
    def from_env(cls, **code: Any) -> Self:
        """A mesh with the ``MESH_*`` variables' settings; ``code`` overrides single ones. Never blocks on the registry."""
        return cls(Settings.load(**code))

    def close(self) -> None:
        """Close registrations (see :meth:`Registration.close`), the control plane and connections. It can be used again.
        Calls made meanwhile go on with what is known; a second close meanwhile returns at once."""
        self._check_pid()
        self.leave()
        if self._management is not None:
            self._management.close()
        if not self._stop():
            return
        if self._provider_stacks:  # what follows for them has ended; the next request has it begin again
            self.in_flight.on_serving = self._serving
        self._engine.close()
        self._async_engine.close()

    async def aclose(self) -> None:
        """The same for asyncio: the running loop's connections are closed in it, and it goes on while the rest closes."""
        await self._async_engine.aclose()
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def meshes() -> list[Providing]:
    """Those of this process."""
    return list(providing.meshes)


def _after_fork() -> None:
    for mesh in meshes():
        mesh._forked()


os.register_at_fork(after_in_child=_after_fork)
