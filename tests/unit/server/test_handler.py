"""Requests as a framework has them, under the provider's layers, blocking and awaited."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from meshlib import ConfigError, bulkhead, keys, on, rate_limit, timeout
from meshlib.deadline import inherited, time_left
from meshlib.errors import DeadlineExceeded, RateLimited, Refused
from meshlib.policies.base import Policy
from meshlib.policies.match import Match
from meshlib.priorities import inherited as level
from meshlib.server import Handler, Incoming, InFlight
from tests.unit.server.serving import stack


@dataclass
class Response:
    """As frameworks have them."""

    status_code: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    dropped: bool = False

    def close(self) -> None:
        self.dropped = True


class Count:
    """Notes what it counts."""

    def __init__(self, verb: str, into: list[Any]) -> None:
        self.status, self._said, self._into = 0, [verb], into

    def failed(self, problem: BaseException) -> None:
        self._said.append(type(problem).__name__)

    def end(self, route: str) -> None:
        self._into.append((*self._said, self.status, route))


class Served:
    """A handler; ``endings`` are what is to be called when responses are over."""

    def __init__(self, *policies: Any, awaited: bool) -> None:
        self.in_flight, self.counted, self.refusals = InFlight(), list[Any](), list[Any]()
        self.endings: list[Callable[[], object]] = []
        self._awaited = awaited
        self._handler = Handler(stack(*policies), self.in_flight, self._refuse, lambda verb: Count(verb, self.counted))

    def _refuse(self, error: Refused | DeadlineExceeded) -> Response:
        self.refusals.append(type(error))
        return Response(429 if isinstance(error, RateLimited) else 503)

    def ask(
        self, answer: Callable[[], Any] = Response, *, path: str = "/orders/7", deadline: str = "", priority: str = ""
    ) -> Any:
        incoming = Incoming(
            method="GET", target=path, headers=lambda: [("X-Caller", "shop")], deadline=deadline, priority=priority,
            route=lambda: "/orders/{id}", when_over=self.endings.append,
        )  # fmt: skip
        if not self._awaited:
            return self._handler.serve(incoming, answer)

        async def awaited() -> Any:
            await asyncio.sleep(0)
            return answer()

        return asyncio.run(self._handler.aserve(incoming, awaited))

    def over(self) -> None:
        while self.endings:
            self.endings.pop(0)()


@pytest.fixture(params=[False, True], ids=["blocking", "awaited"])
def made(request: pytest.FixtureRequest) -> Callable[..., Served]:
    return lambda *policies: Served(*policies, awaited=request.param)


Made = Callable[..., Served]


def test_a_request_is_in_flight_and_counted_until_it_is_over(made: Made) -> None:
    served = made()
    assert served.ask(lambda: Response(201)).status_code == 201
    assert (len(served.in_flight), served.counted) == (1, [])
    served.over()
    assert (len(served.in_flight), served.counted) == (0, [("GET", 201, "/orders/{id}")])


def test_what_the_app_sees(made: Made) -> None:
    seen: list[Any] = []

    def answer() -> Response:
        seen.append((time_left(), level()))
        return Response()

    served = made(timeout(500.0))
    for said in ({"deadline": "600000", "priority": "sheddable"}, {}):
        served.ask(answer, **said)
        served.over()
    (first, second) = seen
    assert 0 < first[0] <= 500
    assert first[1] == "sheddable"
    assert second[1] == ""
    assert (inherited(), level()) == (None, "")


def test_one_that_is_collected_while_another_is_served_takes_nothing_from_it(made: Made) -> None:
    seen: list[str] = []

    def answer() -> Response:
        served.endings[0]()
        seen.append(level())
        return Response()

    served = made()
    served.ask()
    served.ask(answer, priority="critical")
    assert seen == ["critical"]


@pytest.mark.parametrize("policies", [(), (bulkhead(5),)], ids=["without layers", "under layers"])
def test_no_time_is_left(made: Made, policies: Any) -> None:
    served = made(*policies)
    served.ask(pytest.fail, deadline="0")
    assert served.refusals == [DeadlineExceeded]
    served.over()
    assert (len(served.in_flight), inherited()) == (0, None)


def test_what_is_held_is_held_until_it_is_over(made: Made) -> None:
    served = made(bulkhead(1))
    assert served.ask().status_code == 200
    assert served.ask(pytest.fail).status_code == 503
    served.over()
    assert served.ask().status_code == 200


def test_a_refusal_is_an_answer_and_tells_its_limits(made: Made) -> None:
    served = made(on(Match(path="/orders/*"), rate_limit("1/h", key=keys.header("X-Caller"))))
    first, second, other = served.ask(), served.ask(pytest.fail), served.ask(path="/users/7")
    assert (first.status_code, second.status_code, other.status_code) == (200, 429, 200)
    assert "RateLimit-Policy" in first.headers
    assert "RateLimit-Policy" not in other.headers
    served.over()
    assert served.counted == [("GET", 200, "/orders/{id}"), ("GET", 429, "/orders/{id}"), ("GET", 200, "/orders/{id}")]


@pytest.mark.parametrize("error", [ZeroDivisionError(), Refused("by what it called")], ids=repr)
@pytest.mark.parametrize("policies", [(), (bulkhead(1),)], ids=["without layers", "under layers"])
def test_errors_of_the_app_go_on(made: Made, policies: Any, error: Exception) -> None:
    def answer() -> Response:
        raise error

    served = made(*policies)
    for _ in range(2):
        if policies == () and isinstance(error, Refused):
            served.ask(answer)  # an answer as good as any
            served.over()
        else:
            with pytest.raises(type(error)):
                served.ask(answer)
    assert len(served.in_flight) == 0
    assert len(served.counted) == 2


@pytest.mark.parametrize("policies", [(), (bulkhead(1),)], ids=["without layers", "under layers"])
def test_an_answer_that_is_none_holds_nothing(made: Made, policies: Any) -> None:
    served = made(*policies)
    for _ in range(2):
        with pytest.raises(AttributeError):
            served.ask(object)
    assert len(served.in_flight) == 0
    assert [said[:2] for said in served.counted] == [("GET", "AttributeError")] * 2


def test_a_policy_that_wants_a_second_answer(made: Made) -> None:
    @dataclass(frozen=True)
    class Twice(Policy):
        kind = "twice"

        def bind(self, _: Any) -> Any:
            def layer(call: Any, proceed: Any) -> Any:
                yield from proceed(call)
                return (yield from proceed(call))

            return layer

    answers: list[Response] = []

    def answer() -> Response:
        answers.append(Response())
        return answers[-1]

    with pytest.raises(ConfigError, match="asked twice"):
        made(Twice()).ask(answer)
    assert [each.dropped for each in answers] == [True]


def test_it_holds_nothing_of_the_frameworks_request(made: Made) -> None:
    """Whose end may be what tells that it is over."""

    class Request:
        pass

    served, request = made(bulkhead(1)), Request()
    gone = weakref.ref(request)
    incoming = Incoming(
        method="GET", target="/", headers=list, deadline="", priority="",
        route=lambda request=request: "/", when_over=lambda over, request=request: served.endings.append(over),
    )  # fmt: skip
    served._handler.serve(incoming, Response)
    del incoming, request
    gc.collect()
    assert gone() is None
    served.over()
