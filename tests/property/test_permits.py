"""Whatever policies are stacked, and however calls end, every permit comes back.

A scenario is made of a number: a stack of policies in any order, calls that begin at random times and end in random ways. In
the end every place must be free, every queue empty, nobody fetching, and nothing in flight.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib import AttemptTimeout, ConnectFailed, ConnectionLost, MeshError, RetryBudget, circuit_breaker
from meshlib.balance.layer import Balance
from meshlib.client.stack import in_order
from meshlib.flow import Call, Close, Flow, Next, Send, Sleep, Wait, arun, compose, run
from meshlib.policies import bulkhead, cache, fallback, hedge, inject_fault, rate_limit, retry, timeout
from meshlib.policies.adaptive import AdaptiveConcurrency, adaptive_concurrency
from meshlib.policies.base import Policy, Site
from meshlib.policies.breaker_states import Probe
from meshlib.policies.bulkhead import Bulkhead
from meshlib.policies.cache import Cache
from meshlib.policies.circuit_breaker import CircuitBreaker
from meshlib.policies.failover import Failover
from meshlib.policies.rate_limit import Limit
from meshlib.policies.shed import Shed, shed
from meshlib.testing import FakeClock, VirtualLoop
from tests.unit.flows import Answer, AsyncScript, FakeSource, Script, call_to, fleet, idle, in_turn

BUDGET = RetryBudget(per_second=1000)
PATHS = (b"/1", b"/2")
SEEDS = st.integers(0, 2**48)

Made = Callable[[random.Random, float], Policy]
"""A policy by chance, whose times are of the order of the number."""

PARTS: dict[str, Made] = {
    "bulkhead": lambda chance, unit: bulkhead(chance.randint(1, 3), wait=chance.choice([0.0, unit, 3 * unit])),
    "rate_limit": lambda chance, unit: rate_limit(
        f"{chance.randint(1, 5)}/{max(1, round(unit * 1000))}ms", wait=chance.choice([0.0, unit, 5 * unit])
    ),
    "retry": lambda chance, unit: retry(
        attempts=chance.randint(2, 3), base=unit / 5, budget=BUDGET, statuses=[503],
    ),
    "hedge": lambda chance, unit: hedge(delay=chance.choice([unit / 5, unit]), budget=BUDGET),
    "timeout": lambda chance, unit: timeout(5 * unit, attempt=chance.choice([None, unit, 2 * unit])),
    "cache": lambda chance, unit: cache(max(unit, 0.002), stale_if_error=chance.choice([0.0, 2 * unit])),
    "fallback": lambda chance, unit: chance.choice([
        fallback(value=0), fallback(list), fallback(last_good=max(2 * unit, 0.002)), fallback(value=0, on=ConnectFailed),
    ]),
    "circuit_breaker": lambda chance, unit: circuit_breaker(
        failure_rate=0.3, slow=chance.choice([None, unit]), window=10 * unit, minimum=2, open_for=unit / 2,
        probes=chance.randint(1, 2), probe_for=1000.0, calls=chance.choice([None, 5]),
    ),
    "adaptive_concurrency": lambda chance, unit: limit_of(chance),
    "shed": lambda chance, unit: shed(concurrency=limit_of(chance), sheddable=0.5, priority=lambda _: chance.choice(["normal", "sheddable"])),
    "inject_fault": lambda chance, unit: inject_fault(
        delay=unit / 2, abort=chance.choice([None, 503, "ConnectFailed", ZeroDivisionError]), percent=chance.choice([20, 60])
    ),
}  # fmt: skip


def limit_of(chance: random.Random) -> adaptive_concurrency:
    return adaptive_concurrency(initial=chance.randint(1, 3), most=3, late=chance.random() < 0.5)


def stack_of(chance: random.Random, unit: float, without: frozenset[str] = frozenset()) -> list[Policy]:
    """Two to six policies, of a kind several; in THE ORDER or in any."""
    names = sorted(set(PARTS) - without)
    policies = [PARTS[chance.choice(names)](chance, unit) for _ in range(chance.randint(2, 6))]
    return list(in_order(policies)) if chance.random() < 0.3 else policies


def left_behind(layers: list[Any]) -> list[str]:
    """What is not as it was in the beginning."""
    return [f"{type(layer).__name__}: {left} left" for layer in layers if (left := _left(layer))]


def _left(layer: Any) -> int:
    if isinstance(layer, Bulkhead):
        state = layer.explain(call_to())
        return state.limit - state.free + state.waiting
    if isinstance(layer, Limit):
        return layer._gate.waiting
    if isinstance(layer, Cache):
        return len(layer.flights)
    if isinstance(layer, (AdaptiveConcurrency, Shed)):
        return len(layer.limiter)
    return len(getattr(layer.breaker.phase, "_under_way", ())) if isinstance(layer, CircuitBreaker) else 0


def collected(problems: Callable[[], list[str]]) -> list[str]:
    """``problems`` once what nobody finished has been collected. That takes time: only where there are some."""
    if problems():
        gc.collect()
    return problems()


class Scene:
    """A stack over two instances, and how a call ends there."""

    def __init__(self, seed: int, unit: float, *, clock: Any = None, without: frozenset[str] = frozenset()) -> None:
        self.chance, self.unit, self.fleet = random.Random(seed), unit, fleet("a", "b")
        site = Site(service="orders", uniform=self.chance.random, **({} if clock is None else {"clock": clock}))
        self.clock = site.clock
        self.policies = stack_of(self.chance, unit, without)
        self.layers: list[Any] = [policy.bind(site) for policy in self.policies]
        balance = Balance(FakeSource(self.fleet), in_turn, clock=site.clock)
        self.proceed: Next = compose([*self.layers, Failover(), balance])

    def call(self) -> Call:
        deadline = self.chance.choice([None, self.clock() + 4 * self.unit])
        return call_to(self.chance.choice(PATHS), self.chance.choice(["GET", "GET", "POST"]), deadline=deadline)

    def outcome(self, call: Call) -> Any:
        kind = self.chance.choice([200, 200, 200, 503, 404, ConnectFailed, ConnectionLost, AttemptTimeout, ZeroDivisionError])
        if isinstance(kind, int):
            return Answer(kind)
        if kind is ZeroDivisionError:
            return ZeroDivisionError()
        return kind("scripted", service=call.target, instance=call.endpoint.instance if call.endpoint else None)

    def problems(self) -> list[str]:
        return collected(lambda: left_behind(self.layers) + ([] if idle(self.fleet) else ["something is in flight"]))


def close(result: Any) -> None:
    if isinstance(result, Answer):
        result.close()


# -- tasks, on a clock of their own, some of which are cancelled


class Sender(AsyncScript):
    """An instance: it takes its time, and then answers or fails. A second close of what it answered does no harm."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(Script())
        self._scene = scene

    async def send(self, call: Call) -> Any:
        scene = self._scene
        seconds = scene.chance.choice([0.0, 0.1, 1.0, 3.0]) * scene.unit
        if call.deadline is not None and scene.clock() + seconds > call.deadline:
            await asyncio.sleep(max(0.0, call.deadline - scene.clock()))
            raise AttemptTimeout("scripted", service=call.target)
        await asyncio.sleep(seconds)
        outcome = scene.outcome(call)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def drop(self, response: Any) -> None:
        await asyncio.sleep(0)
        close(response)


async def one(scene: Scene, sender: Sender) -> None:
    await asyncio.sleep(scene.chance.random() * 3 * scene.unit)
    try:
        result = await arun(scene.proceed, scene.call(), sender)
    except (MeshError, ZeroDivisionError):
        return
    try:
        await asyncio.sleep(scene.chance.choice([0.0, 1.0]) * scene.unit)
    finally:
        close(result)


async def storm(scene: Scene, count: int) -> None:
    sender = Sender(scene)
    tasks = [asyncio.create_task(one(scene, sender)) for _ in range(count)]
    for task in scene.chance.sample(tasks, count // 2):
        await asyncio.sleep(scene.chance.random() * scene.unit)
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
            raise end


def in_tasks(seed: int) -> list[str]:
    clock = FakeClock()
    scene = Scene(seed, 1.0, clock=clock)
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner:
        runner.run(storm(scene, 12))
    return scene.problems()


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_tasks(seed: int) -> None:
    assert in_tasks(seed) == []


# -- flows by hand, step by step and one among others, some of which are closed or left unfinished


class Hand:
    """A shell for one flow that does one thing at a time, and can end at any."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.call = scene, scene.call()
        self.flow: Flow | None = scene.proceed(self.call)
        self.answers: list[Answer] = []
        self.effect: Any = None
        self.begun = False
        self.result: Any = None

    def step(self) -> None:
        """One effect further."""
        assert self.flow is not None
        try:
            if not self.begun:
                self.begun, self.effect = True, next(self.flow)
                return
            try:
                answer = self._perform(self.effect)
            except Exception as problem:
                self.effect = self.flow.throw(problem)
            else:
                self.effect = self.flow.send(answer)
        except StopIteration as done:
            self._over(done.value)
        except (MeshError, ZeroDivisionError):
            self._failed()

    def throw(self, problem: type[BaseException]) -> None:
        """As Ctrl-C does, or a cancellation."""
        assert self.flow is not None
        if not self.begun:
            return self.leave()
        try:
            self.effect = self.flow.throw(problem())
        except StopIteration as done:  # somebody has an answer all the same
            self._over(done.value)
        except BaseException:
            self._failed()

    def leave(self) -> None:
        """Nobody goes on with it."""
        assert self.flow is not None
        if self.scene.chance.random() < 0.5:
            self.flow.close()
        self.flow = None
        self._failed()

    def end(self) -> None:
        close(self.result)

    def _perform(self, effect: Any) -> Any:
        clock: Any = self.scene.clock
        if isinstance(effect, Send):
            return self._send(effect.call)
        if isinstance(effect, Close):
            self.answers = [each for each in self.answers if each is not effect.response]
            return effect.response.close()
        if isinstance(effect, Sleep):
            return clock.advance(effect.seconds)
        assert isinstance(effect, Wait), effect
        if not effect.future.done():
            clock.advance(effect.timeout)
        return effect.future.done()

    def _send(self, call: Call) -> Any:
        outcome = self.scene.outcome(call)
        if isinstance(outcome, Exception):
            call.close()
            raise outcome
        outcome.held.append(call)
        self.answers.append(outcome)
        return outcome

    def _over(self, result: Any) -> None:
        self.flow, self.result = None, result
        for each in self.answers:
            if each is not result:
                close(each)
        if isinstance(result, Answer) and not result.closed:
            result.held.append(self.call)
        else:
            self.call.close()

    def _failed(self) -> None:
        self.flow = None
        self.call.close()
        for each in self.answers:
            close(each)


def by_hand(seed: int) -> list[str]:
    scene = Scene(seed, 1.0, clock=FakeClock(), without=frozenset({"hedge"}))  # which has flows of its own
    chance, hands = scene.chance, [Hand(scene) for _ in range(6)]
    for _ in range(200):
        going = [hand for hand in hands if hand.flow is not None]
        if not going:
            break
        hand, act = chance.choice(going), chance.random()
        if act < 0.9:
            hand.step()
        elif act < 0.95:
            hand.throw(chance.choice([KeyboardInterrupt, asyncio.CancelledError, ZeroDivisionError, GeneratorExit]))
        else:
            hand.leave()
    for hand in hands:
        if hand.flow is not None:
            hand.leave()
        hand.end()
    return scene.problems()


@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_flows_by_hand(seed: int) -> None:
    assert by_hand(seed) == []


# -- threads


class Blocking(Script):
    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self._scene = scene

    def send(self, call: Call) -> Any:
        if self._scene.chance.random() < 0.1:
            raise KeyboardInterrupt
        outcome = self._scene.outcome(call)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def drop(self, response: Any) -> None:
        close(response)


def races_end() -> None:
    """Who lost a race ends with its attempt."""
    while racing := [each for each in threading.enumerate() if each.name == "meshlib-race"]:
        racing[0].join(60)


def in_threads(seed: int) -> list[str]:
    scene, problems = Scene(seed, 0.002), list[BaseException]()
    sender = Blocking(scene)

    def caller() -> None:
        for _ in range(6):
            try:
                close(run(scene.proceed, scene.call(), sender))
            except (MeshError, ZeroDivisionError, KeyboardInterrupt):
                continue
            except BaseException as problem:
                problems.append(problem)

    threads = [threading.Thread(target=caller) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), f"somebody waits for ever: {scene.policies}"
    races_end()
    assert problems == [], scene.policies
    return scene.problems()


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_threads(seed: int) -> None:
    assert in_threads(seed) == []


# -- functions: nested decorators, generators that are closed early


class Spied(Policy):
    """A policy that shows its layers."""

    def __init__(self, policy: Policy, layers: list[Any]) -> None:
        self.kind, self._policy, self._layers = policy.kind, policy, layers  # type: ignore[misc]

    def bind(self, site: Site) -> Any:
        layer = self._policy.bind(replace(site))
        self._layers.append(layer)
        return layer


def fate(chance: random.Random) -> None:
    problem = chance.choice([None, None, None, ZeroDivisionError, OSError, KeyboardInterrupt, GeneratorExit])
    if problem is not None:
        raise problem


class Functions:
    """A function, a generator and a coroutine function, and an async generator, each under policies of its own."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.layers = chance, list[Any]()
        self.nested = self._under(self._plain)
        self.items = self._under(self._numbers, "cache", "fallback")
        self.coroutine = self._under(self._waits)
        self.aitems = self._under(self._anumbers, "cache", "fallback", "hedge")

    def _under(self, method: Any, *without: str) -> Any:
        function = method.__func__
        for policy in reversed(stack_of(self.chance, 0.002, frozenset(without))):
            function = Spied(policy, self.layers)(function)
        return function

    def _plain(self, depth: int) -> int:
        fate(self.chance)
        return self.nested(self, depth - 1) if depth else depth  # type: ignore[no-any-return]

    def _numbers(self) -> Iterator[int]:
        for number in range(3):
            fate(self.chance)
            yield number

    async def _waits(self) -> int:
        await asyncio.sleep(self.chance.choice([0.0, 0.002]))
        fate(self.chance)
        return 1

    async def _anumbers(self) -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            fate(self.chance)
            yield number

    def nest(self) -> None:
        self.nested(self, self.chance.randint(0, 3))

    def iterate(self) -> None:
        made = self.items(self)
        for _ in range(self.chance.randint(0, 4)):
            next(made, None)
        if self.chance.random() < 0.5:
            made.close()

    def await_(self) -> None:
        asyncio.run(self._many())

    async def _many(self) -> None:
        tasks = [asyncio.create_task(_quiet(lambda: self.coroutine(self))) for _ in range(3)]
        tasks.append(asyncio.create_task(_quiet(self._some)))
        await asyncio.sleep(self.chance.choice([0.0, 0.001, 0.003]))
        self.chance.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _some(self) -> None:
        made = self.aitems(self)
        try:
            for _ in range(self.chance.randint(0, 4)):
                await anext(made, None)
        finally:
            await made.aclose()


async def _quiet(call: Callable[[], Any]) -> None:
    """Exceptions that would end an event loop stay in their task."""
    try:
        await call()
    except (KeyboardInterrupt, GeneratorExit):
        return


def in_functions(seed: int) -> list[str]:
    made = Functions(random.Random(seed))
    for _ in range(12):
        try:
            made.chance.choice([made.nest, made.iterate, made.await_])()
        except (MeshError, ZeroDivisionError, OSError, KeyboardInterrupt, GeneratorExit):
            continue
    races_end()
    return collected(lambda: left_behind(made.layers))


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_functions(seed: int) -> None:
    assert in_functions(seed) == []


# -- negative controls


def forgetful(self: Bulkhead, call: Call, proceed: Next) -> Flow:
    """As the bulkhead is, but that only an Exception gives a place back: a cancellation is none."""
    place = self.permits.take()
    if place is None:
        place = yield from self._wait(call)
    try:
        answer = yield from proceed(call)
    except Exception:
        place()
        raise
    call.on_close(place)
    return answer


def hoarding(self: Cache, key: Any, flight: Any, call: Call, proceed: Next) -> Flow:
    """As the cache is, but that who is cancelled lets nobody else fetch."""
    try:
        answer, found = yield from self._fetch(key, call, proceed)
    except Exception:
        self.flights.land(key, flight, None)
        raise
    self.flights.land(key, flight, found)
    return answer


@pytest.mark.parametrize("scenario", [in_tasks, by_hand])
def test_the_negative_control_a_bulkhead_that_forgets(scenario: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bulkhead, "__call__", forgetful)
    assert any("Bulkhead" in each for seed in range(60) for each in scenario(seed))


@pytest.mark.parametrize("scenario", [in_tasks, by_hand])
def test_the_negative_control_a_cache_that_is_fetched_for_ever(scenario: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "_lead", hoarding)
    assert any("Cache" in each for seed in range(60) for each in scenario(seed))


@pytest.mark.parametrize("scenario", [in_tasks, by_hand])
def test_the_negative_control_a_probe_that_is_not_given_back(scenario: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "nothing", lambda _self: None)
    assert any("CircuitBreaker" in each for seed in range(150) for each in scenario(seed))


def test_all_kinds_are_met() -> None:
    kinds = {policy.kind for seed in range(50) for policy in Scene(seed, 1.0).policies}
    assert kinds == set(PARTS)
