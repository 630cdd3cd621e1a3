"""``etcd://host[:2379][,host…][/prefix][?wait=seconds&tls=true]``: etcd 3.4 or newer, through its v3 JSON gateway.

Keys, below ``/meshlib`` or the ``prefix`` given instead:

    /meshlib/{namespace or "default"}/services/{service}/{instance id}    an instance, as codec.encode writes it
    /meshlib/kv/{key}                                                     the key-value store
    /meshlib/locks/{key}                                                  locks that are held

A limited user needs read and write permission for that prefix and nothing else. An instance hangs on a lease of its ttl,
rounded up to whole seconds (etcd 3.4 grants 2 s at least) and, while a leader is being elected, prolonged by etcd.

**Age of what is read.** ``fetch``, ``services`` and the first listing of the first watch of a service are answered by any
member from its own state (a *serializable* read): in 3 ms also without a quorum, but as old as that member is out of touch.
A watch bounds that: at once, and then within ``wait`` seconds (default 10) of silence, it asks the leader, and raises when
there is none. A watch that is opened again asks the leader first. Key-value ``get`` and ``list`` always ask the leader
(*linearizable*), because compare-and-set loops need it; the first listing of a key-value watch does not.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Final

from meshlib.backends.base import CONFIRM, Backend, Listing
from meshlib.backends.codec import decode, encode
from meshlib.backends.etcd_gateway import Gateway
from meshlib.backends.etcd_kv import EtcdKeyValue
from meshlib.backends.etcd_watch import Change, follow
from meshlib.backends.etcd_wire import Pair
from meshlib.backends.http import ControlClient, tls_context
from meshlib.errors import ConfigError, InvalidAnswer, RegistryError
from meshlib.model import Instance, ServiceUrl
from meshlib.settings import Settings

log = logging.getLogger(__name__)

EXAMPLE = "etcd://127.0.0.1:2379"
PORT: Final = 2379
WAIT: Final = 10.0
"""Seconds of silence after which a watch is checked and opened anew."""
TRIAL: Final = b"meshlib-trial"
NEVER: Final = 2**62
"""A revision that no key has."""
MAX_TOLD: Final = 1000
"""Unusable instances that are warned of, each once."""


def open_backend(settings: Settings) -> Backend:
    """See :func:`meshlib.backends.open_backend`."""
    url = settings.registry
    idle = _wait(url.options.get("wait", str(WAIT)))
    hosts = tuple((host, port or PORT) for host, port in url.hosts)
    client = ControlClient(hosts, timeout=settings.registry_timeout, tls=tls_context(settings))
    gateway = _gateway(client, settings)
    root = url.path.rstrip("/") or "/meshlib"
    return Backend(EtcdRegistry(gateway, routes=hosts, root=root, idle=idle), EtcdKeyValue(gateway, root=root, idle=idle))


def _wait(text: str) -> float:
    try:
        wait = float(text)
    except ValueError:
        wait = 0.0
    if not 0 < wait < CONFIRM:
        raise ValueError(f"wait={text[:20]} is not a number of seconds between 0 and {CONFIRM:.0f}")
    return wait


def _gateway(client: ControlClient, settings: Settings) -> Gateway:
    password = settings.password
    if settings.registry_user and password is None:
        source = settings.sources.get("registry_user", "code")
        raise ConfigError("MESH_REGISTRY_PASSWORD", "is missing, but MESH_REGISTRY_USER is set", source=source, example="…")
    if password is not None:
        password.reveal()  # a file that cannot be read is told now; later, the last good content is kept
    return Gateway(client, user=settings.registry_user, password=password)


class EtcdRegistry:
    """:class:`~meshlib.backends.base.Registry` under ``root``; ``idle`` as in :func:`~meshlib.backends.etcd_watch.follow`."""

    def __init__(
        self, gateway: Gateway, *, routes: tuple[tuple[str, int], ...] = (), root: str = "/meshlib", idle: float = WAIT
    ) -> None:
        self.gateway, self.routes, self.idle = gateway, routes, idle
        self._root = root
        self._leases: dict[bytes, int] = {}
        self._told: set[bytes] = set()
        self._listed: set[ServiceUrl] = set()

    async def register(self, instance: Instance, ttl: float) -> None:
        key = self._key(instance)
        former = self._leases.get(key)
        # Remembered before the write: should its answer get lost, the next heartbeat finds out what became of it.
        lease = self._leases[key] = await self.gateway.grant(ttl)
        await self.gateway.put(key, encode(instance), lease=lease)
        if former is not None:
            await self._drop(former)

    async def heartbeat(self, instance: Instance, ttl: float) -> bool:  # noqa: ARG002 - the lease knows its time
        key = self._key(instance)
        lease = self._leases.get(key)
        if lease is None or not await self.gateway.keepalive(lease):
            return False
        found = (await self.gateway.range(key)).kvs
        return [(pair.lease, pair.value) for pair in found] == [(lease, encode(instance))]

    async def deregister(self, instance: Instance) -> None:
        key = self._key(instance)
        await self.gateway.delete(key)
        if (lease := self._leases.pop(key, None)) is not None:
            await self._drop(lease)

    async def _drop(self, lease: int) -> None:
        with suppress(RegistryError):  # nothing hangs on it any more, so it may as well expire
            await self.gateway.revoke(lease)

    async def fetch(self, service: ServiceUrl) -> Listing:
        prefix = self._prefix(service)
        answer = await self.gateway.prefix(prefix, serializable=True)
        view = View(service, prefix, self._told)
        return view.apply(Change(answer.header.revision, {pair.key: pair for pair in answer.kvs}, whole=True))

    async def watch(self, service: ServiceUrl) -> AsyncIterator[Listing]:
        prefix = self._prefix(service)
        view = View(service, prefix, self._told)
        # Whoever has been told of the service keeps that: nothing is gained by a list that may be older.
        hasty = service not in self._listed
        async with aclosing(follow(self.gateway, prefix, idle=self.idle, hasty=hasty)) as changes:
            async for change in changes:
                self._listed.add(service)
                yield view.apply(change)

    async def services(self, namespace: str) -> list[str]:
        prefix = self._services(namespace)
        answer = await self.gateway.prefix(prefix, keys_only=True, serializable=True)
        names = {pair.key.removeprefix(prefix).partition(b"/")[0].decode("utf-8", "replace") for pair in answer.kvs}
        return sorted(name for name in names if _usable(name))

    async def try_register(self, service: ServiceUrl) -> None:
        """See :class:`~meshlib.backends.base.Trial`: a write that is allowed or not; its condition never holds."""
        key = self._prefix(service) + TRIAL
        await self.gateway.write_if(key, NEVER, {"request_put": {"key": key, "value": b""}})

    async def close(self) -> None:
        await self.gateway.aclose()

    def _services(self, namespace: str) -> bytes:
        return f"{self._root}/{namespace or 'default'}/services/".encode()

    def _prefix(self, service: ServiceUrl) -> bytes:
        return self._services(service.namespace) + f"{service.service}/".encode()

    def _key(self, instance: Instance) -> bytes:
        return self._prefix(instance.url) + instance.id.encode()


def _usable(name: str) -> bool:
    try:
        return ServiceUrl.parse(name) == ServiceUrl(name)
    except ConfigError:
        return False


class View:
    """The instances of ``service`` under ``prefix``, kept up change by change, in order: only what changed is decoded.

    ``told`` are the keys that a warning has been given for already.
    """

    def __init__(self, service: ServiceUrl, prefix: bytes, told: set[bytes]) -> None:
        self._service, self._prefix, self._told = service, prefix, told
        self._instances: dict[bytes, Instance] = {}

    def apply(self, change: Change) -> Listing:
        """Take ``change`` in and return the listing after it."""
        if change.whole:
            self._instances.clear()
        before = self._instances.keys() & change.keys.keys()
        for key, pair in change.keys.items():
            instance = self._read(pair) if pair else None
            if instance:
                self._instances[key] = instance
            else:
                self._instances.pop(key, None)
        if len(before) < len(change.keys):  # new ones stand at the end
            self._instances = dict(sorted(self._instances.items()))
        return Listing(tuple(self._instances.values()), str(change.revision))

    def _read(self, pair: Pair) -> Instance | None:
        """The instance, or None (and one warning for its key) when it is unusable."""
        try:
            instance = decode(pair.value, self._service)
            if self._prefix + instance.id.encode() != pair.key:
                raise InvalidAnswer(f"instance {instance.id} is stored under another id")
        except InvalidAnswer as problem:
            if pair.key not in self._told and len(self._told) < MAX_TOLD:
                self._told.add(pair.key)
                log.warning("%s: left out: %s", self._service, problem)
            return None
        return instance
