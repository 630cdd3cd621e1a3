"""Instances in Consul: registered with an agent, looked up in the catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from meshlib.backends import consul_wire as wire
from meshlib.backends.base import Listing
from meshlib.backends.consul_http import Api, Params, follow, whole
from meshlib.errors import CasConflict, InvalidAnswer, RegistryDenied, RegistryError, RegistryUnavailable
from meshlib.model import Instance, ServiceUrl, Status
from meshlib.settings import Settings

ELSEWHERE = 1.0
"""Seconds that the agents from before a failover have, for which the heartbeat of the present one waits."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A listing as Consul sent it, and how far its server was behind the leader (seconds; infinite with no leader)."""

    index: int
    body: bytes
    behind: float

    @classmethod
    def of(cls, response: Any) -> Answer:
        """The callback for the hook."""
        index = response.headers.get("X-Consul-Index")
        if response.code != 200 or index is None:
            raise InvalidAnswer("this is no answer of a Consul")
        if response.headers.get("X-Consul-Results-Filtered-By-ACLs") == "true" and response.body.strip() in (b"[]", b"null"):
            raise RegistryDenied("the token may not see any instance of the service")  # else it would pass for "none left"
        led = response.headers.get("X-Consul-KnownLeader") != "false"
        behind = whole(response.headers.get("X-Consul-LastContact")) / 1000 if led else float("inf")
        return cls(whole(index), response.body, behind)


class ConsulRegistry:
    """:class:`~meshlib.backends.base.Registry` over Consul."""

    def __init__(self, api: Api, settings: Settings, wait: float, hosts: tuple[tuple[str, int], ...] = ()) -> None:
        self.routes = hosts
        self._api, self._settings, self._wait = api, settings, wait
        self._told: set[ServiceUrl] = set()
        self._agents: dict[str, set[str]] = {}

    async def register(self, instance: Instance, ttl: float) -> None:
        self._taken(instance)
        agent, before = self._api.agent, await self._definition(instance)
        done = await agent.service.register(
            wire.service_name(instance.url),
            service_id=instance.id,
            address=instance.host,
            port=instance.port,
            tags=wire.tags(instance),
            meta=wire.meta(instance),
            check=self._check(instance, ttl),
        )
        if not done:
            raise InvalidAnswer("the registry's agent has no way to register a service: is it a Consul?")
        self._taken(instance)
        await self._maintain(instance, before)
        # A check begins critical, and Spring registers without a status: so do we, and pass at once.
        if not await self._pass(instance):
            raise RegistryUnavailable(f"{instance.id} was gone as soon as it was registered")

    async def heartbeat(self, instance: Instance, ttl: float) -> bool:  # noqa: ARG002 - the check knows its ttl
        # Two names may lead to one agent: what was left elsewhere may be what has just been found here.
        return await self._stands(instance) and (not await self._leave_others(instance) or await self._stands(instance))

    async def _stands(self, instance: Instance) -> bool:
        """True when the agent lists it as it is, and has prolonged it."""
        known = await self._definition(instance)
        wanted = {
            "Service": wire.service_name(instance.url),
            "Address": instance.host,
            "Port": instance.port,
            "Meta": wire.meta(instance),
        }
        same = {key: known.get(key) for key in wanted} == wanted and (known.get("Tags") or []) == wire.tags(instance)
        return same and await self._pass(instance)

    async def deregister(self, instance: Instance) -> None:
        await self._leave_others(instance)
        await self._api.agent.service.deregister(instance.id)
        self._agents.pop(instance.id, None)

    async def fetch(self, service: ServiceUrl) -> Listing:
        index, instances = await self._listing(wire.Reader(service), 0)
        return Listing(instances, str(index))

    async def watch(self, service: ServiceUrl) -> AsyncIterator[Listing]:
        async with aclosing(follow(partial(self._listing, wire.Reader(service)))) as listings:
            async for index, instances in listings:
                yield Listing(instances, str(index))

    async def services(self, namespace: str) -> list[str]:
        _, catalogue = await self._api.catalog.services(consistency="stale")
        return wire.names(catalogue, namespace)

    async def close(self) -> None:
        await self._api.http.close()

    async def maintain(self, instance: Instance, on: bool) -> None:
        """See :class:`~meshlib.backends.base.Maintains`. Only the agent that an instance is registered with can do it; it keeps
        it until it is told otherwise, whatever the instance registers meanwhile."""
        path = f"/v1/agent/service/maintenance/{instance.id}"
        params: Params = [("enable", "true"), ("reason", "meshlib: by an operator")] if on else [("enable", "false")]
        for agent in self._api.http.agents:
            if await self._api.http.put(lambda response: response.code == 200, path, params, agent=agent):
                return
        _, found = await self._api.catalog.service(wire.service_name(instance.url))
        nodes = {one.get("ServiceID"): f"{one.get('Node')} ({one.get('Address')})" for one in found or ()}
        where = nodes.get(instance.id)
        held = f"is registered with the agent of the node {where}: ask that one" if where else "is not registered"
        raise RegistryError(f"{instance.url} {held}")

    async def try_register(self, service: ServiceUrl) -> None:
        """See :class:`~meshlib.backends.base.Trial`: a transaction that is allowed or not, and fails then."""
        trial = {"ID": "meshlib-trial", "Service": wire.service_name(service), "ModifyIndex": 1}
        operation = {"Service": {"Verb": "cas", "Node": "meshlib-trial", "Service": trial}}
        body = msgspec.json.encode([operation])
        try:
            await self._api.http.put(lambda response: response.code == 200, "/v1/txn", self._api.where, body)
        except CasConflict as answer:
            if "ermission denied" in str(answer):
                raise RegistryDenied(f"the token may not register {service}") from None

    def _taken(self, instance: Instance) -> None:
        """The agent of this moment may hold it from now on."""
        self._agents.setdefault(instance.id, set()).add(self._api.http.agent)

    async def _leave_others(self, instance: Instance) -> bool:
        """Have the agents from before a failover forget it, which would list it, perhaps as it no longer is, until its ttl.
        Who does not answer is asked again next time. True when anybody answered."""
        here, agents = self._api.http.agent, self._agents.get(instance.id, set())

        async def leave(agent: str) -> bool:
            with suppress(RegistryError, TimeoutError):
                async with asyncio.timeout(ELSEWHERE):
                    path = f"/v1/agent/service/deregister/{instance.id}"
                    await self._api.http.put(lambda response: response.code, path, agent=agent)
                agents.discard(agent)
                return True
            return False

        return any(await asyncio.gather(*(leave(agent) for agent in agents - {here})))

    async def _definition(self, instance: Instance) -> dict[str, Any]:
        """What the agent knows under the instance's id; empty for nothing."""
        known = await self._api.agent.service_definition(instance.id)
        return known if isinstance(known, dict) else {}

    def _check(self, instance: Instance, ttl: float) -> dict[str, str]:
        # Long enough that a partition of Consul, which fails every heartbeat, does not remove what still runs.
        check = {"DeregisterCriticalServiceAfter": seconds(max(60.0, 20 * ttl))}
        if self._settings.check == "ttl":
            return {"TTL": seconds(ttl), **check}
        url = self._settings.health_url(instance.scheme, instance.host, instance.port)
        interval = seconds(max(1.0, ttl / 3))
        return {"HTTP": url, "Interval": interval, "Timeout": interval, **check}

    async def _maintain(self, instance: Instance, before: dict[str, Any]) -> None:
        """Tell Consul, for those who read it without knowing our Meta. What an operator ordered is not undone."""
        ours = (before.get("Meta") or {}).get("mesh-status") == Status.MAINTENANCE.value
        if instance.status is Status.MAINTENANCE or ours:
            enable = instance.status is Status.MAINTENANCE
            await self._api.agent.service.maintenance(instance.id, enable, reason="meshlib" if enable else None)

    async def _pass(self, instance: Instance) -> bool:
        """Prolong the registration; False when the agent has no such check."""
        if self._settings.check != "ttl":
            return True
        return bool(await self._api.agent.check.ttl_pass(f"service:{instance.id}"))

    async def _listing(self, reader: wire.Reader, index: int) -> tuple[int, tuple[Instance, ...]]:
        """Ask any server, so that look-ups outlive the leader. An answer that is too old is no answer (see _fresh)."""
        answer = await self._ask(reader.service, [("stale", "1")], index)
        if answer.behind > self._settings.stale_max:
            answer = await self._fresh(reader, answer)
        self._told.add(reader.service)
        return answer.index, reader.read(answer.body)

    async def _fresh(self, reader: wire.Reader, old: Answer) -> Answer:
        """The leader's answer instead of the ``old`` one.

        Without it, unavailable: our caller keeps the list it has, and knows its age. Only where it has none yet the old
        answer is better than nothing, unless it is empty: a server that was left behind may not have heard of the service.
        """
        if old.behind < float("inf"):
            with suppress(RegistryUnavailable):
                return await self._ask(reader.service, [], 0)
        if reader.service in self._told or not reader.read(old.body):
            raise RegistryUnavailable(f"no server of Consul knows {reader.service} as of the last {self._settings.stale_max} s")
        return old

    async def _ask(self, service: ServiceUrl, params: Params, index: int) -> Answer:
        if index:
            params = [*params, ("index", index), ("wait", f"{self._wait:g}s")]
        path = f"/v1/health/service/{wire.service_name(service)}"
        answer: Answer = await self._api.http.get(Answer.of, path, params=[*params, *self._api.where])
        return answer


def seconds(number: float) -> str:
    """As Go reads a duration."""
    return f"{number:.3f}".rstrip("0").rstrip(".") + "s"
