"""What every command has: settings, a mesh, a registry, and two ways to say what it found."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from meshlib.backends import Backend, open_backend
from meshlib.errors import ConfigError
from meshlib.governance.policies import Policies
from meshlib.mesh import Mesh
from meshlib.settings import Settings, env_name

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

SOURCE = "command line"
PATIENCE = 1.0
"""Seconds for which a command waits for the registry before it uses what is on disk: its first call is its only one, so it is
to be made by the rules that hold now."""
WIDE = 4096
"""Columns of what is not shown at a terminal: nothing is cut or folded there."""


class Session:
    """One command's. ``given`` are the settings that the command line says, over those of the app whose mesh is ``host``, or
    of the environment. ``json`` is true when documents are wanted."""

    def __init__(self, host: Mesh | None, given: Mapping[str, Any], *, json: bool) -> None:
        self._host, self.given, self.json = host, dict(given), json

    @cached_property
    def settings(self) -> Settings:
        """Those in force. Raises :class:`ConfigError`."""
        return self.settings_with()

    def settings_with(self, **more: Any) -> Settings:
        """The same with ``more`` from the command line; None says nothing."""
        given = {**self.given, **{name: value for name, value in more.items() if value is not None}}
        try:
            settings = Settings.load(**given) if self._host is None else self._host.settings.changed(**given)
        except ConfigError as wrong:
            raise told_here(wrong, given) from None
        return replace(settings, sources={**settings.sources, **dict.fromkeys(given, SOURCE)})

    @property
    def host_settings(self) -> Settings | None:
        """Those of the app, with what the command line says; None without an app."""
        return None if self._host is None else self.settings

    @contextmanager
    def mesh(self) -> Iterator[Mesh]:
        """The app's, else one that lives as long as the command."""
        if self._host is not None and not self.given:
            yield self._host
            return
        settings = self.settings
        if "cold_start_grace" not in settings.sources:
            settings = settings.changed(cold_start_grace=min(PATIENCE, settings.cold_start_timeout))
        with Mesh(settings) as mesh:
            yield mesh

    def ask(self, work: Callable[[Backend], Awaitable[T]]) -> T:
        """What ``work`` finds in the registry, or in its key-value store."""

        async def asked() -> T:
            backend = open_backend(self.settings)
            try:
                return await work(backend)
            finally:
                await backend.close()

        return asyncio.run(asked())

    def policies(self, work: Callable[[Policies], Awaitable[T]]) -> T:
        """What ``work`` does with the policy documents. Raises :class:`ConfigError` where there is no place for any."""

        async def asked(backend: Backend) -> T:
            if backend.kv is None:
                what = f"{self.settings.registry.scheme}:// has no key-value store, so there are no policy documents"
                source = self.settings.sources.get("registry", "default")
                raise ConfigError("MESH_REGISTRY", what, source=source, example="consul://10.0.0.1:8500")
            return await work(Policies(backend.kv, namespace=self.settings.namespace))

        return self.ask(asked)

    def say(self, fact: Any, *, to_stderr: bool = False) -> None:
        """Print ``fact``: as the document, or as text."""
        if self.json:
            sys.stdout.write(document(fact))
        else:
            self._print(fact, to_stderr)
        sys.stdout.flush()

    def _print(self, fact: Any, to_stderr: bool) -> None:
        from meshlib.cli.render import aside, raw, text  # noqa: PLC0415 - only where there is somebody to read it

        beside, content = aside(fact), raw(fact)
        if beside is not None:
            console(stderr=True).print(beside)
        if content is None:
            console(stderr=to_stderr).print(text(fact))
        else:
            sys.stdout.buffer.write(content)

    def line(self, fact: Any) -> None:
        """Print ``fact`` as one of many documents, one a line."""
        sys.stdout.write(msgspec.json.encode(fact).decode() + "\n")
        sys.stdout.flush()

    @contextmanager
    def busy(self, what: str) -> Iterator[Callable[[str], None]]:
        """Show on standard error, at a terminal, that ``what`` goes on; the function that it gives says how far it is."""
        if not sys.stderr.isatty():
            yield lambda _: None
            return
        with console(stderr=True).status(what) as status:
            yield lambda now: status.update(f"{what}: {now}")


def told_here(wrong: ConfigError, given: Mapping[str, Any]) -> ConfigError:
    """``wrong`` with the command line as its source, where it is that."""
    names = {env_name(name) for name in given}
    if wrong.source == "code" and wrong.name in names:
        return ConfigError(wrong.name, wrong.problem, source=SOURCE, example=wrong.example)
    return wrong


def document(fact: Any) -> str:
    """``fact`` as a JSON document for programs and people."""
    return msgspec.json.format(msgspec.json.encode(fact), indent=2).decode() + "\n"


def console(*, stderr: bool = False) -> Console:
    """Where text goes. What others wrote is text and no markup."""
    from rich.console import Console  # noqa: PLC0415 - of an extra

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(file=stream, width=width, markup=False, highlight=False, soft_wrap=width is not None)
