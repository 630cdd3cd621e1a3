"""What a closed circuit breaker costs: asking it, and telling it how the call ended (its clock included), alone and around a
function, beside pybreaker's; and eight threads through a client with and without it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2

from benchmarks.call import answer
from benchmarks.measure import Row, interleaved, ratio
from meshlib import Mesh, Settings, circuit_breaker
from meshlib.backends.memory import store
from meshlib.flow import Call, Flow, Next, compose
from meshlib.model import Instance, ServiceUrl
from meshlib.policies.base import Site
from meshlib.testing import Reply

ROUNDS, CALLS = 31, 5000
BAR_NS = 350.0
THREADS, THREAD_CALLS, THREAD_ROUNDS = 8, 100, 61
BAR_THREADS = 1 / 0.95
ANSWER = Reply()
CALL = Call(ServiceUrl("orders"), "GET", b"/")
ASKED = "closed: asked and told"
LAYER = "closed: what its layer costs more than one that does nothing"


def rows() -> list[Row]:
    """In ns of CPU; then the time of eight threads, relative to the bare client's in the same rounds."""
    seconds = interleaved(_cases(), rounds=ROUNDS, calls=CALLS)
    bare, calls = seconds.pop("a layer that does nothing"), seconds.pop("nothing, called")
    seconds[LAYER] = _less(seconds.pop("a layer"), bare)
    seconds["pybreaker: what it costs more than the call itself"] = _less(seconds.pop("pybreaker"), calls)
    ours = [
        Row(case, statistics.median(times) * 1e9, "ns", None, BAR_NS if case in (ASKED, LAYER) else None)
        for case, times in seconds.items()
    ]
    return [*ours, *_threads()]


def _less(times: list[float], floor: list[float]) -> list[float]:
    return [one - other for one, other in zip(times, floor, strict=True)]


def _cases() -> dict[str, Callable[[], object]]:
    import pybreaker

    theirs: Any = pybreaker.CircuitBreaker()
    layered, idle = compose([circuit_breaker().bind(Site())], _nothing), compose([_Idle()], _nothing)
    return {
        ASKED: _asked_and_told(),
        "the same, of the last 100 calls": _asked_and_told(calls=100),
        "the same, with a failure in the window": _asked_and_told(failed=1),
        "closed: told of a failure": _told_of_failures(),
        "open: refused": _refused(),
        "a layer": lambda: _drive(layered(CALL)),
        "a layer that does nothing": lambda: _drive(idle(CALL)),
        "pybreaker": lambda: theirs.call(_return),
        "nothing, called": _return,
    }


class _Idle:
    def __call__(self, call: Call, proceed: Next) -> Flow:
        return (yield from proceed(call))


def _nothing(_: Call) -> Flow:
    return ANSWER
    yield


def _return() -> None:
    return None


def _drive(flow: Flow) -> None:
    for _ in flow:
        pass


def _asked_and_told(failed: int = 0, **options: Any) -> Callable[[], None]:
    """What the layer does around a call."""
    breaker = circuit_breaker(window=3600.0, **options).breaker_at(Site())
    for _ in range(failed):
        breaker.phase.enter(0.0)[0].bad(True, False)  # type: ignore[union-attr]

    def ask_and_tell() -> None:
        phase = breaker.phase
        permit: Any = phase if phase.passes else breaker.enter()[0]
        permit.good()

    return ask_and_tell


def _told_of_failures() -> Callable[[], None]:
    breaker = circuit_breaker(minimum=100_000).breaker_at(Site())

    def tell() -> None:
        permit: Any = breaker.phase
        permit.bad(True, False)
        if breaker.state == "open":
            breaker.close()

    return tell


def _refused() -> Callable[[], None]:
    breaker = circuit_breaker().breaker_at(Site())
    breaker.open(86_400.0)

    def ask() -> None:
        assert breaker.enter()[0] is None

    return ask


def _threads() -> list[Row]:
    shared = store("benchmark-breaker")
    instance = Instance("orders", "orders-1", "10.0.0.1", 8080)
    shared.instances["", "orders", instance.id] = (instance, float("inf"))
    mock = httpx2.MockTransport(answer)
    with Mesh(Settings(registry="memory://benchmark-breaker"), transport=lambda _: mock) as mesh:
        mesh.snapshot("orders")
        clients = {"bare": mesh.http("orders"), "broken": mesh.http("orders", policies=[circuit_breaker()])}
        times: dict[str, list[float]] = {name: [] for name in clients}
        cpu: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(THREAD_ROUNDS + 1):
            order = list(clients.items())
            for name, client in order if number % 2 else order[::-1]:  # who is first has no advantage in the long run
                begun = time.process_time()
                spent = _together(lambda client=client: client.get("/orders/7"), THREAD_CALLS)
                if number:  # the first round warms up
                    times[name].append(spent / (THREADS * THREAD_CALLS) * 1e6)
                    cpu[name].append((time.process_time() - begun) / (THREADS * THREAD_CALLS) * 1e6)
    bare, broken = times["bare"], times["broken"]
    worked = statistics.median(cpu["broken"])
    return [
        Row("8 threads: mesh.http()", statistics.median(bare), "us"),
        Row("8 threads: the same with it", statistics.median(broken), "us", ratio(broken, bare), BAR_THREADS),
        Row("8 threads: the same with it, in CPU", worked, "us", ratio(cpu["broken"], cpu["bare"])),
        *_contended(),
    ]


def _contended() -> list[Row]:
    """Nothing else than the breakers, as fast as eight threads can."""
    import pybreaker

    theirs: Any = pybreaker.CircuitBreaker()
    cases = {"ours": _asked_and_told(), "pybreaker's": lambda: theirs.call(_return)}
    return [
        Row(f"8 threads: {name} alone", statistics.median(
            _together(case, 2500) / (THREADS * 2500) * 1e9 for _ in range(THREAD_ROUNDS)), "ns")
        for name, case in cases.items()
    ]  # fmt: skip


def _together(case: Callable[[], object], calls: int) -> float:
    def work() -> None:
        for _ in range(calls):
            case()

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start
