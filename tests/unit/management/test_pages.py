"""What is answered to whom."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from meshlib import Settings
from meshlib.management.health import Component
from meshlib.management.pages import Answer, Ask, Pages, Standing

UP = {"status": "UP"}


class Inline:
    """A worker that does it at once."""

    def spawn(self, work: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(asyncio.run(work()))
        return future


class World:
    def __init__(self, *, metrics: Any = None, **settings: Any) -> None:
        self.standing = Standing()
        made = Settings(registry="memory://", **settings)
        self.pages = Pages(made, Inline(), lambda: self.standing, metrics)  # type: ignore[arg-type]

    def ask(self, path: str, method: str = "GET", token: str = "", client: str = "10.1.1.1") -> Answer:
        answer = self.pages.answer(Ask(method, path, f"Bearer {token}" if token else "", client))
        return answer.result(60) if isinstance(answer, Future) else answer

    def seen(self, path: str, **asked: Any) -> tuple[int, Any]:
        answer = self.ask(path, **asked)
        return answer.status, json.loads(answer.body)


class Measured:
    """Metrics of a mesh."""

    def prometheus(self) -> str:
        return "up 1\n# EOF\n"


def refuses() -> None:
    raise OSError("db.example: no such user")


class TestStatuses:
    def test_all_is_well(self) -> None:
        world = World()
        ready = {"readinessState": UP}
        assert world.seen("/healthz") == (200, UP)
        assert world.seen("/actuator/health/liveness") == (200, UP)
        assert world.seen("/readyz") == (200, {**UP, "components": ready})
        assert world.seen("/actuator/health/readiness") == (200, {**UP, "components": ready})
        whole = {**UP, "components": {"livenessState": UP, **ready}, "groups": ["liveness", "readiness"]}
        assert world.seen("/actuator/health") == (200, whole)
        assert "actuator" in world.ask("/actuator/health").kind

    @pytest.mark.parametrize("path", ["/readyz", "/actuator/health", "/actuator/health/readiness"])
    def test_what_hinders(self, path: str) -> None:
        world = World()
        world.standing = Standing("draining", Component())
        status, document = world.seen(path)
        assert (status, document["status"]) == (503, "OUT_OF_SERVICE")
        readiness = {"status": "OUT_OF_SERVICE", "details": {"reason": "draining"}}
        assert document["components"]["readinessState"] == readiness
        assert world.seen("/healthz") == (200, UP), "alive all the same: it is not to be restarted"

    def test_an_unknown_registration_keeps_nobody_away(self) -> None:
        world = World()
        world.standing = Standing("", Component("UNKNOWN", "not accepted yet"))
        status, document = world.seen("/actuator/health")
        assert (status, document["status"]) == (200, "UP")
        assert document["components"]["registration"]["status"] == "UNKNOWN"

    def test_a_check_that_fails(self) -> None:
        world = World()
        world.pages.checks.add("database", refuses, timeout=60.0, readiness=True)
        for path in ("/readyz", "/actuator/health"):
            status, document = world.seen(path)
            assert (status, document["status"]) == (503, "DOWN")
            assert document["components"]["database"] == {"status": "DOWN", "details": {"reason": "failed"}}
        assert world.seen("/healthz")[0] == 200

    def test_a_check_that_readiness_does_not_depend_on(self) -> None:
        world = World()
        world.pages.checks.add("mail", refuses, timeout=60.0, readiness=False)
        assert world.seen("/readyz")[0] == 200
        assert world.seen("/actuator/health")[0] == 503


class TestWho:
    @pytest.mark.parametrize("path", ["/healthz", "/readyz", "/actuator/health", "/actuator/info"])
    @pytest.mark.parametrize(
        ("client", "status"),
        [("10.9.9.9", 200), ("::ffff:10.9.9.9", 200), ("fd00::1%eth0", 200), ("192.0.2.1", 403), ("", 403), ("unix:", 403)],
    )
    def test_the_list(self, path: str, client: str, status: int) -> None:
        assert World(management_allow="10.0.0.0/8,fd00::/8").ask(path, client=client).status == status

    @pytest.mark.parametrize(("path", "without"), [("/readyz", 200), ("/actuator/info", 401), ("/metrics", 401)])
    def test_the_token(self, path: str, without: int) -> None:
        world = World(management_token="s3cret", metrics=Measured)
        assert world.ask(path).status == world.ask(path, token="other").status == without
        assert world.ask(path, token="s3cret").status == 200

    def test_a_token_of_a_file_that_changes(self, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text("one\n")
        world = World(management_token_file=str(file))
        assert world.ask("/actuator/info", token="one").status == 200
        file.write_text("another")
        assert world.ask("/actuator/info", token="one").status == 401
        assert world.ask("/actuator/info", token="another").status == 200

    @pytest.mark.parametrize("content", ["", None])
    def test_a_token_that_is_nothing_opens_nothing(self, tmp_path: Path, content: str | None) -> None:
        file = tmp_path / "token"
        file.write_text("")
        world = World(management_token_file=str(file))
        if content is None:
            file.unlink()
        answer = world.pages.answer(Ask("GET", "/actuator/info", "Bearer "))
        assert isinstance(answer, Answer)
        assert answer.status == 401

    @pytest.mark.parametrize(
        ("settings", "asked", "shown"),
        [
            ({}, {}, False),
            ({"management_token": "s3cret"}, {}, False),
            ({"management_token": "s3cret"}, {"token": "s3cret"}, True),
            ({"management_allow": "10.0.0.0/8"}, {}, True),
            ({"management_allow": "10.0.0.0/8", "management_token": "s3cret"}, {}, False),
        ],
    )
    def test_who_sees_what_an_error_says(self, settings: Any, asked: Any, shown: bool) -> None:
        world = World(**settings)
        world.pages.checks.add("database", refuses, timeout=60.0, readiness=True)
        assert (b"db.example" in world.ask("/actuator/health", **asked).body) is shown


class TestWhat:
    def test_info(self) -> None:
        world = World(service="orders", version="1.2")
        world.pages.info |= {"build": {"commit": "abc"}, "queue": lambda: 7}
        status, document = world.seen("/actuator/info")
        assert status == 200
        assert document["app"] == {"name": "orders", "version": "1.2"}
        assert document["mesh"]["registry"] == "memory"
        assert (document["build"], document["queue"]) == ({"commit": "abc"}, 7)

    def test_an_info_that_fails_is_said_to_and_harms_no_other(self) -> None:
        world = World(service="orders")
        world.pages.info |= {"build": lambda: 1 / 0, "queue": lambda: 7}
        status, document = world.seen("/actuator/info")
        assert (status, document["queue"], document["build"]) == (200, 7, {"error": "ZeroDivisionError"})
        assert document["app"] == {"name": "orders"}

    def test_metrics_where_there_are_any(self) -> None:
        assert World().ask("/metrics").status == 404
        answer = World(metrics=Measured).ask("/metrics")
        assert (answer.status, answer.body) == (200, b"up 1\n# EOF\n")
        assert answer.kind.startswith("application/openmetrics-text; version=1.0.0")

    def test_paths(self) -> None:
        world = World(management_path="/ops")
        assert world.ask("/ops/healthz").status == 200
        assert world.ask("/healthz").status == 404
        assert not World(management="off").pages.paths

    def test_nothing_can_be_changed(self) -> None:
        answer = World().ask("/actuator/health", method="POST")
        assert answer.status == 405
        assert dict(answer.headers)["Allow"] == "GET, HEAD"
        assert json.loads(answer.body)["title"] == "Method Not Allowed"

    def test_nothing_is_kept_by_caches(self) -> None:
        assert dict(World().ask("/readyz").headers)["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "https://10.0.0.5:80/actuator/health"),
        ({"health_path": "/mine"}, "https://10.0.0.5:80/mine"),
        ({"management_path": "/ops"}, "https://10.0.0.5:80/ops/actuator/health"),
        ({"management_port": 9090}, "http://10.0.0.5:9090/actuator/health"),
        ({"management_port": 9090, "health_path": "/mine"}, "https://10.0.0.5:80/mine"),
    ],
)
def test_where_a_registry_asks(settings: Any, url: str) -> None:
    assert Settings(**settings).health_url("https", "10.0.0.5", 80) == url


def test_where_a_registry_asks_over_ipv6() -> None:
    assert Settings().health_url("http", "fd00::1", 80) == "http://[fd00::1]:80/actuator/health"
