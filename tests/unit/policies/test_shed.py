"""shed: who is left out first, and what is not begun because it would not be done in time; and how priorities travel."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from meshlib import ConfigError, Mesh, Overloaded, Settings, adaptive_concurrency, priorities, priority, shed
from meshlib.events import Events
from meshlib.policies.base import Site
from meshlib.server import governed_asgi, governed_wsgi
from meshlib.testing import FakeClock, Reply, play
from tests.unit.flows import call_to
from tests.unit.server.serving import Started, ask, environ, scope, stack
from tests.unit.server.test_asgi import tea

LEVELS = ("sheddable", "normal", "critical")


class Place:
    """The layer at one place, with a limit of ten."""

    def __init__(self, **options: Any) -> None:
        self.clock, self.events = FakeClock(), Events()
        policy = shed(concurrency=adaptive_concurrency(initial=10), **options)
        self.layer: Any = policy.bind(Site(service="orders", clock=self.clock, events=self.events))
        self.limiter = self.layer.limiter

    def play(self, level: str = "", *, left: float | None = None) -> Any:
        headers = [(b"X-Mesh-Priority", level.encode())] if level else []
        call = call_to(headers=headers, deadline=None if left is None else self.clock.now + left)
        return play([self.layer], [Reply()], call=call, clock=self.clock)

    def fill(self, level: str) -> int:
        """How many requests of a level find place."""
        count = 0
        while self.play(level).error is None:
            count += 1
        return count


class TestPriorities:
    def test_the_unimportant_are_left_out_first(self) -> None:
        place = Place()
        assert [place.fill(level) for level in LEVELS] == [6, 3, 1]
        assert [place.fill(level) for level in LEVELS] == [0, 0, 0]

    @pytest.mark.parametrize(("said", "places"), [("", 9), ("normal", 9), ("urgent", 9), (" CRITICAL ", 10), ("sheddable", 6)])
    def test_what_is_said(self, said: str, places: int) -> None:
        assert Place().fill(said) == places

    def test_a_function_says_it(self) -> None:
        by_path = shed(concurrency=adaptive_concurrency(initial=10), priority=lambda call: call.path[1:].decode())
        layer: Any = by_path.bind(Site())
        for path, level in ((b"/critical", "critical"), (b"/whatever", "normal")):
            assert layer.explain(call_to(path)).startswith(f"{level}; ")

    def test_a_function_is_what_it_is_called_for(self) -> None:
        place = Place()
        with priority("sheddable"):
            assert place.fill("") == 6

    def test_a_refusal_says_what_and_why(self) -> None:
        place = Place()
        place.fill("sheddable")
        refused = place.play("sheddable").error
        assert isinstance(refused, Overloaded)
        assert str(refused) == "6 calls of orders are under way, no more than 6.0 at once are good for sheddable ones"
        assert place.events.counts() == {("shed.refused", "orders", ""): 2}


class TestHopeless:
    """Ten are under way where one is served in 10 ms, one after the other: who comes now waits for about 100 ms."""

    @staticmethod
    def queueing(under_way: int, **options: Any) -> Place:
        place = Place(**options)
        gradient = place.limiter.gradient
        gradient.base, gradient.short, place.limiter.fastest, place.limiter._usual = 0.01, 0.1, 0.01, 10.0
        for _ in range(under_way):
            place.limiter.take(0.0)
        return place

    @pytest.mark.parametrize(
        ("under_way", "left", "begun"),
        [(5, 0.2, True), (5, 0.05, False), (0, 0.001, True), (5, None, True), (1, 0.05, True), (5, -1.0, False)],
    )
    def test_by_what_is_left(self, under_way: int, left: float | None, begun: bool) -> None:
        played = self.queueing(under_way).play("critical", left=left)
        assert (played.error is None) is begun
        if not begun:
            assert "s left and would take 0.06 s" in str(played.error)

    def test_it_can_be_left_out(self) -> None:
        assert self.queueing(5, hopeless=False).play(left=0.001).error is None

    def test_what_has_waited_for_the_loop(self) -> None:
        place = self.queueing(0)
        place.limiter.lag = lambda: 0.05
        assert isinstance(place.play("critical", left=0.055).error, Overloaded)
        assert place.play("critical", left=0.065).error is None

    def test_requests_that_differ_are_no_queue(self) -> None:
        """Most take 100 ms, as ever, and some 1 ms: those need no more."""
        place = self.queueing(5)
        place.limiter.gradient.base, place.limiter.fastest = 0.1, 0.001
        assert place.play(left=0.005).error is None

    def test_nobody_is_locked_out(self) -> None:
        """However slow it was: one after the other they are begun, and tell that it is over."""
        place = self.queueing(0)
        place.limiter.gradient.short = place.limiter.fastest = 60.0
        for _ in range(40):
            place.clock.advance(0.05)
            answered = place.play(left=0.1)
            assert answered.error is None
            answered.result.close()
        assert place.limiter.gradient.short < 0.1
        assert place.limiter.fastest < 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"normal": 0}, "shed(normal=) (from code): 0 is not a share from 0 to 1"),
        ({"sheddable": 1.0}, "1 is more than normal=0.9"),
        ({"concurrency": 7}, "7 is neither"),
        ({"priority": "critical"}, "'critical' is not a function of a call"),
    ],
)
def test_bad_options(options: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shed(**options)
    assert said in str(caught.value)


def test_policies_compare() -> None:
    assert len({shed(), shed(), shed(normal=0.8)}) == 2


class TestTravelling:
    """From the header of a request to those of the calls that are made for it."""

    def test_asgi(self) -> None:
        seen: list[str] = []

        async def app(*given: Any) -> None:
            seen.append(priorities.inherited())
            await tea(*given)

        for provider in (stack(), stack(shed())):
            for headers in ([(b"x-mesh-priority", b"Sheddable")], [], [(b"x-mesh-priority", b"urgent")]):
                asyncio.run(ask(governed_asgi(app, provider), scope(headers=headers)))
        assert seen == ["sheddable", "", ""] * 2

    def test_wsgi_though_a_body_was_not_closed(self) -> None:
        seen: list[str] = []

        def app(_environ: Any, start: Any) -> Any:
            start("200 OK", [])
            seen.append(priorities.inherited())
            yield b"a"

        bodies: list[Any] = []
        for provider in (stack(), stack(shed())):
            for said in ("critical", ""):
                bodies.append(
                    governed_wsgi(app, provider)(environ(**({"HTTP_X_MESH_PRIORITY": said} if said else {})), Started())
                )
                assert next(iter(bodies[-1])) == b"a"
        assert seen == ["critical", ""] * 2
        for body in reversed(bodies):
            body.close()
        assert priorities.inherited() == ""

    @pytest.mark.parametrize(
        ("level", "given", "sent"),
        [("sheddable", {}, "sheddable"), ("", {}, None), ("critical", {"x-mesh-priority": "normal"}, "normal")],
    )
    def test_to_the_next_hop(self, level: str, given: dict[str, str], sent: str | None) -> None:
        seen: list[str | None] = []

        def answer(request: httpx2.Request) -> httpx2.Response:
            seen.append(request.headers.get("x-mesh-priority"))
            return httpx2.Response(200)

        settings = Settings(registry="static://orders=127.0.0.1:8081")
        with Mesh(settings, transport=lambda _: httpx2.MockTransport(answer)) as mesh, mesh.http("orders") as http:
            if level:
                with priority(level):
                    http.get("/", headers=given)
            else:
                http.get("/", headers=given)
        assert seen == [sent]

    def test_no_level(self) -> None:
        with pytest.raises(ConfigError, match="'urgent' is none of critical, normal, sheddable"):
            with priority("urgent"):
                pass
