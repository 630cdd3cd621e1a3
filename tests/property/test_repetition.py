"""However a call ends that is retried and hedged, in whatever order: what was taken for its attempts is given back, once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.balance.layer import Balance
from meshlib.errors import AttemptTimeout, CallError, ConnectFailed, ConnectionLost
from meshlib.flow import Call, Flow, Layer, Next, Sleep, arun, compose, run
from meshlib.policies import hedge, retry, timeout
from meshlib.policies.base import Site
from meshlib.policies.failover import Failover
from meshlib.testing import run_virtual
from tests.unit.flows import Answer, FakeSource, Script, call_to, fleet, idle, in_turn

ENDS: dict[str, Any] = {
    "ok": 200, "busy": 503, "refused": ConnectFailed, "lost": ConnectionLost, "slow": AttemptTimeout, "bug": ZeroDivisionError,
}  # fmt: skip


class World:
    """Calls under all three policies; ``held`` counts what each attempt took, and gave back."""

    def __init__(self, ends: list[str]) -> None:
        self.ends, self.held, self.lock = list(ends), Counter[str](), threading.Lock()
        self.fleet = fleet("a", "b", "c")
        site = Site(uniform=lambda: 0.0)
        rules = [timeout(60.0), retry(3, budget=None), hedge(delay=0.0, attempts=3, budget=None)]
        layers = [*(rule.bind(site) for rule in rules), self.permit, Failover(), Balance(FakeSource(self.fleet), in_turn)]
        self.proceed = compose(layers)

    @property
    def permit(self) -> Layer:
        def layer(call: Call, proceed: Next) -> Flow:
            self.count("taken")
            call.on_close(lambda: self.count("given back"))
            yield Sleep(0.0)
            return (yield from proceed(call))

        return layer

    def count(self, what: str) -> None:
        with self.lock:
            self.held[what] += 1

    def end(self) -> Any:
        with self.lock:
            end = ENDS[self.ends.pop() if self.ends else "ok"]
        if isinstance(end, int):
            self.count("answers")
            return Answer(end)
        raise end("scripted")

    def hold(self, response: Any, call: Call) -> None:
        Script().hold(response, call)

    def drop(self, response: Any) -> None:
        response.close()

    def check(self) -> None:
        assert self.held["taken"] == self.held["given back"]
        assert idle(self.fleet)


class Network:
    """For the blocking shell, and with a turn of the loop in between for the other."""

    def __init__(self, world: World) -> None:
        self._world, self.hold, self.drop = world, world.hold, world.drop

    def send(self, _call: Call) -> Any:
        return self._world.end()


class AsyncNetwork(Network):
    async def send(self, _call: Call) -> Any:
        await asyncio.sleep(0)
        return self._world.end()

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.drop = self._drop  # type: ignore[assignment]

    async def _drop(self, response: Any) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            response.close()  # as the engine does: what it holds is released, however closing a connection goes


scripts = st.lists(st.sampled_from(sorted(ENDS)), max_size=12)


@settings(deadline=None)
@given(st.lists(scripts, min_size=1, max_size=4), st.lists(st.integers(0, 40), min_size=4, max_size=4))
def test_tasks_that_are_cancelled_at_any_time(made: list[list[str]], turns: list[int]) -> None:
    worlds = [World(script) for script in made]

    async def one(world: World) -> None:
        try:
            answer = await arun(world.proceed, call_to(), AsyncNetwork(world))
        except (CallError, ZeroDivisionError):
            return
        answer.close()

    async def main() -> None:
        tasks = [asyncio.ensure_future(one(world)) for world in worlds]
        for turn in range(max(turns) + 1):
            for task, when in zip(tasks, turns, strict=False):
                if when == turn and turn % 3:
                    task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtual(main())
    for world in worlds:
        world.check()


@settings(deadline=None, max_examples=40)
@given(scripts)
def test_threads(script: list[str]) -> None:
    world, before = World(script), {*threading.enumerate()}
    try:
        run(world.proceed, call_to(), Network(world)).close()
    except (CallError, ZeroDivisionError):
        pass
    for thread in threading.enumerate():
        if thread.name == "meshlib-race" and thread not in before:
            thread.join(60)  # the losers
            assert not thread.is_alive(), "who has lost ends"
    world.check()


def test_the_control_what_no_attempt_gives_back() -> None:
    """A layer that keeps what it takes would be seen."""
    world = World(["lost"])
    world.count("taken")
    try:
        world.check()
    except AssertionError:
        return
    raise AssertionError("not seen")
