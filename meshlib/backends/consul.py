"""``consul://host[:8500][,host…][?dc=…&tls=true&wait=10]``: Consul's HTTP API, by Spring Cloud's conventions.

Options: ``dc`` the datacentre to read from (default: the agent's own), ``tls`` whether to speak HTTPS, ``wait`` the seconds
that Consul may hold a question of a watch (1 to 12, default 10: a watch that hangs is noticed in about 13).

A registration belongs to the agent that took it, so name the agents of this machine's own datacentre, nearest first.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshlib.backends.base import Backend
from meshlib.backends.http import ControlClient, tls_context
from meshlib.errors import MissingExtra
from meshlib.settings import Settings

EXAMPLE = "consul://127.0.0.1:8500"
PORT = 8500


@dataclass(frozen=True, slots=True)
class Options:
    """What the URL's options say."""

    dc: str = ""
    wait: float = 10.0

    @classmethod
    def of(cls, settings: Settings) -> Options:
        """Raises ValueError for unusable ones."""
        url = settings.registry
        if url.path.strip("/"):
            raise ValueError(f"a Consul has no path {url.path[:40]!r}")
        if unknown := set(url.options) - {"dc", "tls", "wait"}:
            raise ValueError(f"unknown option {min(unknown)[:40]!r} (known: dc, tls, wait)")
        if url.options.get("tls", "true") not in ("true", "false"):
            raise ValueError("option tls is neither true nor false")
        try:
            wait = float(url.options.get("wait", 10.0))
        except ValueError:
            wait = 0.0
        if not 1 <= wait <= 12:
            raise ValueError("option wait is not a number of seconds from 1 to 12")
        return cls(url.options.get("dc", ""), wait)


def open_backend(settings: Settings) -> Backend:
    """See :func:`meshlib.backends.open_backend`."""
    hosts = tuple((host, port or PORT) for host, port in settings.registry.hosts)
    client = ControlClient(hosts, timeout=settings.registry_timeout, tls=tls_context(settings))
    return backend_over(client, settings, hosts)


def backend_over(client: ControlClient, settings: Settings, hosts: tuple[tuple[str, int], ...] = ()) -> Backend:
    """The backend over a ``client`` that exists. Raises ValueError, and :class:`MissingExtra` without py-consul."""
    options = Options.of(settings)
    try:
        # Here and not above: py-consul takes 70 ms to import, and may not be there.
        from meshlib.backends.consul_http import Api  # noqa: PLC0415
        from meshlib.backends.consul_kv import ConsulKeyValue  # noqa: PLC0415
        from meshlib.backends.consul_registry import ConsulRegistry  # noqa: PLC0415
    except ModuleNotFoundError as problem:
        if problem.name != "consul":
            raise
        source = settings.sources.get("registry", "code")
        raise MissingExtra("MESH_REGISTRY", "consul", "py-consul", source=source) from None
    api = Api(client, token=settings.token, dc=options.dc)
    return Backend(ConsulRegistry(api, settings, options.wait, hosts), ConsulKeyValue(api, options.wait))
