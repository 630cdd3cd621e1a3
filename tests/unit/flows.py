"""A scripted world for flows: a fleet, a sender that plays outcomes, and the shells that play a flow against them.

A row of a test is layers, a script, the outcome and the effects; every shell of :data:`SHELLS` plays it, and another one
joins by standing in that table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.fleet import Fleet
from meshlib.balance.layer import Balance
from meshlib.balance.tiers import Pool
from meshlib.errors import AttemptTimeout, ConnectFailed, ConnectionLost
from meshlib.flow import Call, Flow, Layer, Next, Sleep, Wait, arun, compose, run
from meshlib.model import Instance, ServiceUrl, Snapshot, Status
from meshlib.policies.failover import Failover

ORDERS = ServiceUrl("orders")


def instance(name: str = "a", **fields: Any) -> Instance:
    number = sum(name.encode()) % 250 + 1
    return Instance("orders", name, f"10.0.0.{number}", 8000, **fields)


def fleet(*names: str | Instance, **options: Any) -> Fleet:
    made = Fleet(ORDERS, **options)
    update(made, *names)
    return made


def update(target: Fleet, *names: str | Instance, suspects: Iterable[str] = ()) -> None:
    listed = tuple(one if isinstance(one, Instance) else instance(one) for one in names)
    target.update(Snapshot(ORDERS, listed, suspects=frozenset(suspects)))


def in_turn(pool: Pool) -> Callable[[Call], Endpoint]:
    """A picker without chance: the first by id."""
    return lambda _call: min(pool.endpoints, key=lambda one: one.instance.id)


def prime(known: Fleet) -> Pool:
    """The healthy ones of ``known``, for a picker."""
    return Pool(known.tiers.prime, known.tiers.members)


class FakeSource:
    """Where Balance gets its fleet from: known at once, or after ``wait``."""

    def __init__(self, known: Fleet, wait: Wait | None = None) -> None:
        self.fleet, self.wait = known, wait

    def attend(self) -> Wait | None:
        return self.wait

    def missing(self) -> str:
        return "nobody is registered"


class Answer:
    """A response that knows whether it was closed, and releases what it holds then."""

    def __init__(self, status: int = 200) -> None:
        self.status_code, self.headers = status, {}
        self.closed = 0
        self.held: list[Call] = []

    def close(self) -> None:
        self.closed += 1
        for call in self.held:
            call.close()


class Script:
    """Plays ``outcomes`` in turn: an exception (class) is raised, anything else is the answer. ``log`` is what happened."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.log = list(outcomes), []
        self.calls: list[Call] = []

    def send(self, call: Call) -> Any:
        self.calls.append(call)
        self.log.append(f"send {call.endpoint.instance.id if call.endpoint else '-'}")
        if isinstance(self.outcomes[0], (BaseException, type)):
            raise _made(self.outcomes.pop(0), call)  # held by no local: its traceback leads here
        return self.outcomes.pop(0)

    def hold(self, response: Any, call: Call) -> None:
        if isinstance(response, Answer) and not response.closed:
            response.held.append(call)
        else:
            call.close()

    def drop(self, response: Any) -> None:
        response.close()
        self.log.append("drop")


def _made(outcome: Any, call: Call) -> BaseException:
    if outcome in (ConnectFailed, ConnectionLost, AttemptTimeout):
        return outcome("scripted", service=call.target, instance=call.endpoint.instance if call.endpoint else None)
    return outcome() if isinstance(outcome, type) else outcome


class AsyncScript:
    def __init__(self, script: Script) -> None:
        self._script, self.hold = script, script.hold

    async def send(self, call: Call) -> Any:
        await asyncio.sleep(0)
        return self._script.send(call)

    async def drop(self, response: Any) -> None:
        await asyncio.sleep(0)
        self._script.drop(response)


Shell = Callable[[Next, Call, Script], Any]


def _arun(proceed: Next, call: Call, script: Script) -> Any:
    return asyncio.run(arun(proceed, call, AsyncScript(script)))


SHELLS: dict[str, Shell] = {
    "run": lambda proceed, call, script: run(proceed, call, script, sleep=lambda _: None),
    "arun": _arun,
}


def noted(script: Script) -> Layer:
    """A layer, to stand outermost, that writes the effects other than Send into the script's log as they pass."""

    def layer(call: Call, proceed: Next) -> Flow:
        inner = proceed(call)
        try:
            effect = next(inner)
            while True:
                if isinstance(effect, (Sleep, Wait)):
                    script.log.append(f"sleep {effect.seconds:g}" if isinstance(effect, Sleep) else f"wait {effect.timeout:g}")
                try:
                    answer = yield effect
                except BaseException as problem:
                    effect = inner.throw(problem)
                else:
                    effect = inner.send(answer)
        except StopIteration as done:
            return done.value

    return layer


def call_to(path: bytes = b"/", method: str = "GET", **options: Any) -> Call:
    return Call(options.pop("target", ORDERS), method, path, **options)


def governed(
    known: Fleet | FakeSource, *above: Layer, picker: Any = in_turn, below: Iterable[Layer] = (), **options: Any
) -> Next:
    """Failover and Balance over ``known``, with layers above and below them."""
    source = known if isinstance(known, FakeSource) else FakeSource(known)
    return compose([*above, Failover(), Balance(source, picker, **options), *below])


def idle(*fleets: Fleet) -> bool:
    return all(not endpoint.in_flight for one in fleets for endpoint in one._endpoints.values())


__all__ = ["ORDERS", "SHELLS", "Answer", "AsyncScript", "FakeSource", "Script", "Status", "call_to", "fleet", "governed",
           "idle", "in_turn", "instance", "noted", "prime", "update"]  # fmt: skip
