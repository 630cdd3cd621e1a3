"""The Django integration, by Django's own clients (blocking and async), its checks and its commands."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import django
import httpx2
import pytest
from django.apps import apps
from django.conf import settings
from django.core import checks as djangos
from django.core.management import call_command
from django.core.signals import request_started
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, AsyncRequestFactory, Client, RequestFactory, override_settings
from django.test.utils import setup_test_environment, teardown_test_environment
from django.urls import include, path

from meshlib import ConfigError, Mesh, Settings, bulkhead, get, rate_limit, service_client, time_left
from meshlib.errors import DeadlineExceeded, Refused

SECURITY = "django.middleware.security.SecurityMiddleware"
OURS = "meshlib_contrib.django.MeshMiddleware"
URLS = ModuleType("tests_django_urls")
sys.modules[URLS.__name__] = URLS
if not settings.configured:
    settings.configure(
        SECRET_KEY="secret", ROOT_URLCONF=URLS.__name__, INSTALLED_APPS=["meshlib_contrib.django"], ALLOWED_HOSTS=["testserver"],
        MIDDLEWARE=[OURS, SECURITY], LOGGING_CONFIG=None,
    )  # fmt: skip
    django.setup()

from meshlib_contrib.django import MeshMiddleware, checks, client, get_mesh, middleware, own  # noqa: E402
from meshlib_contrib.django.management.commands.mesh import Command  # noqa: E402


@service_client("stock")
class Stock(Protocol):
    @get("/stock/{item}")
    def level(self, item: str) -> int: ...

    @get("/stock/{item}")
    async def alevel(self, item: str) -> int: ...


stock = client(Stock)
LIMITED = rate_limit("1/h")(lambda request: HttpResponse("passed"))
BOTH = pytest.mark.parametrize("ask", ["blocking", "async"], indirect=True)


def level(request: HttpRequest, item: str) -> HttpResponse:
    return JsonResponse({"level": stock.level(item), "left": time_left(), "in flight": len(get_mesh().in_flight)})


async def alevel(request: HttpRequest, item: str) -> HttpResponse:
    return JsonResponse({"level": await stock.alevel(item), "left": time_left(), "in flight": len(get_mesh().in_flight)})


def fail(request: HttpRequest, how: str) -> HttpResponse:
    raise {"late": DeadlineExceeded("late"), "refused": Refused("nobody at 10.1.1.1"), "broken": ZeroDivisionError()}[how]


async def afail(request: HttpRequest, how: str) -> HttpResponse:
    return fail(request, how)


def limited(request: HttpRequest) -> HttpResponse:
    return LIMITED(request)


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        for _ in range(2):
            yield f"{len(get_mesh().in_flight)}"

    return StreamingHttpResponse(parts())


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(f"{len(get_mesh().in_flight)}" for _ in range(2))


URLS.urlpatterns = [  # type: ignore[attr-defined]
    path("stock/<str:item>", level), path("astock/<str:item>", alevel), path("fail/<str:how>", fail),
    path("afail/<str:how>", afail), path("limited", limited), path("stream", stream), path("astream", astream),
    path("ops/", include("meshlib_contrib.django.urls")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    """The project's, as its settings would make it, but that nobody is really called."""
    answering = httpx2.MockTransport(lambda _: httpx2.Response(200, json=7))

    def made(loaded: Settings) -> Mesh:
        return Mesh(loaded, transport=lambda _: answering, async_transport=lambda _: answering)

    monkeypatch.setattr(own, "Mesh", made)
    setup_test_environment()
    with override_settings(MESH={"REGISTRY": "static://stock=10.0.0.1:80", "STATE_DIR": str(tmp_path)}):
        yield get_mesh()
    own.forget()
    teardown_test_environment()


Ask = Callable[..., Any]


@pytest.fixture
def ask(request: pytest.FixtureRequest) -> Ask:
    """A GET by Django's client, blocking or awaited; the latter by asgiref, as a test of Django's would."""
    from asgiref.sync import async_to_sync

    if request.param == "blocking":
        return Client(raise_request_exception=False).get
    return async_to_sync(AsyncClient(raise_request_exception=False).get)


class TestRequests:
    @BOTH
    @pytest.mark.parametrize("view", ["stock", "astock"])
    def test_what_views_see(self, ask: Ask, view: str) -> None:
        answer = ask(f"/{view}/tea", headers={"X-Mesh-Deadline": "60000"}).json()
        assert (answer["level"], answer["in flight"]) == (7, 1)
        assert 0 < answer["left"] <= 60
        assert ask(f"/{view}/tea").json()["left"] is None
        assert time_left() is None
        assert len(get_mesh().in_flight) == 0

    @BOTH
    def test_no_time_is_left(self, ask: Ask) -> None:
        answer = ask("/stock/tea", headers={"X-Mesh-Deadline": "0"})
        assert (answer.status_code, answer.headers["Content-Type"]) == (504, "application/problem+json")

    @BOTH
    @pytest.mark.parametrize(("how", "status"), [("late", 504), ("refused", 503), ("broken", 500)])
    @pytest.mark.parametrize("view", ["fail", "afail"])
    def test_a_view_that_fails(self, ask: Ask, view: str, how: str, status: int) -> None:
        answer = ask(f"/{view}/{how}")
        assert answer.status_code == status
        assert b"10.1.1.1" not in answer.content
        assert (answer.headers["Content-Type"] == "application/problem+json") is (how != "broken")
        assert len(get_mesh().in_flight) == 0

    @BOTH
    def test_a_view_over_its_limit(self, ask: Ask) -> None:
        global LIMITED
        LIMITED = rate_limit("1/h")(lambda request: HttpResponse("passed"))
        assert ask("/limited").content == b"passed"
        answer = ask("/limited")
        assert (answer.status_code, answer.json()["status"]) == (429, 429)
        assert 3500 < int(answer.headers["Retry-After"]) <= 3600

    @BOTH
    def test_policies_of_the_settings(self, ask: Ask) -> None:
        with override_settings(MESH={**settings.MESH, "POLICIES": [rate_limit("1/h")]}):
            first, second = ask("/stock/tea"), ask("/stock/tea")
            assert (first.status_code, second.status_code, ask("/healthz").status_code) == (200, 429, 200)
            assert "RateLimit" in first.headers

    @pytest.mark.parametrize(("ask", "view"), [("blocking", "stream"), ("async", "astream")], indirect=["ask"])
    def test_places_are_held_until_the_end_of_a_stream(self, ask: Ask, view: str) -> None:
        """That of the request, and what policies hold."""
        with override_settings(MESH={**settings.MESH, "POLICIES": [bulkhead(1)]}):
            answer = ask(f"/{view}")
            assert (len(get_mesh().in_flight), ask("/stock/tea").status_code) == (1, 503)
            parts = self.read(answer)
            assert parts == [b"1", b"1"]
            answer.close()
            assert (len(get_mesh().in_flight), ask("/stock/tea").status_code) == (0, 200)

    @staticmethod
    def read(answer: Any) -> list[bytes]:
        from asgiref.sync import async_to_sync

        async def everything() -> list[bytes]:
            return [part async for part in answer]

        return async_to_sync(everything)() if answer.is_async else list(answer)

    def test_a_request_that_nobody_closes(self) -> None:
        """As ASGI's clients that hang up leave some behind."""
        request = RequestFactory().get("/stock/tea")
        response = MeshMiddleware(lambda _: HttpResponse("done"))(request)
        assert len(get_mesh().in_flight) == 1
        del request, response
        gc.collect()
        assert len(get_mesh().in_flight) == 0

    def test_in_an_async_chain_no_thread_is_changed(self) -> None:
        """What is awaited is awaited, where Django itself is in between no thread."""
        import asyncio
        import threading

        async def answer(_: HttpRequest) -> HttpResponse:
            return HttpResponse(str(threading.get_ident()))

        async def both() -> bytes:
            response = await MeshMiddleware(answer)(RequestFactory().get("/"))
            response.close()
            return response.content

        assert asyncio.run(both()) == str(threading.get_ident()).encode()

    def test_requests_are_counted_by_route(self) -> None:
        Client().get("/stock/tea")
        Client().get("/nowhere")
        text = get_mesh().metrics().prometheus()
        assert 'http_route="/stock/<str:item>",http_response_status_code="200"' in text
        assert 'http_request_method="GET",http_response_status_code="404"' in text


class TestManagement:
    @BOTH
    def test_pages(self, ask: Ask) -> None:
        """Outside of the project: there the host is refused, and plain HTTP redirected."""
        with override_settings(ALLOWED_HOSTS=[], SECURE_SSL_REDIRECT=True):
            assert ask("/readyz").json()["status"] == "UP"
            assert ask("/stock/tea").status_code == 400
        assert ask("/actuator/info").json()["mesh"]["registry"] == "static"
        get_mesh().in_flight.draining = True
        assert (ask("/readyz").status_code, ask("/healthz").status_code) == (503, 200)
        get_mesh().in_flight.draining = False

    @BOTH
    def test_checks_of_the_apps_own(self, ask: Ask) -> None:
        get_mesh().management.check("database", lambda: False)
        answer = ask("/actuator/health")
        assert (answer.status_code, answer.json()["components"]["database"]["status"]) == (503, "DOWN")

    def test_head(self) -> None:
        answer = Client().head("/healthz")
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["Content-Length"]) > 0

    def test_as_routes(self) -> None:
        client = Client()
        assert client.get("/ops/actuator/health/readiness").json()["status"] == "UP"
        assert client.get("/ops/actuator/nothing").status_code == 404

    def test_draining_sends_keep_alive_clients_elsewhere(self) -> None:
        from asgiref.sync import async_to_sync

        get = async_to_sync(AsyncClient().get)
        assert "Connection" not in get("/stock/tea").headers
        get_mesh().in_flight.draining = True
        assert get("/stock/tea").headers["Connection"] == "close"
        assert "Connection" not in Client().get("/stock/tea").headers  # which WSGI leaves to the server
        get_mesh().in_flight.draining = False


class TestMesh:
    def test_clients(self) -> None:
        """Taken when the module was imported; each mesh has one."""
        assert stock.level("tea") == 7
        assert repr(stock) == "<client of Stock>"
        first = own._made[Stock]
        assert stock.level("tea") == 7
        assert own._made[Stock] is first
        with override_settings(MESH={**settings.MESH, "PICKER": "random"}):
            assert stock.level("tea") == 7
            assert own._made[Stock] is not first

    def test_looking_a_client_over_makes_no_mesh(self) -> None:
        """As pytest does with all that is in a module: it would be one on the registry of whoever runs the tests."""
        own.forget()
        looked = [hasattr(stock, name) for name in ("pytestmark", "__test__", "__name__", "__wrapped__", "levels")]
        assert (any(looked), own._made) == (False, {})
        assert stock.level("tea") == 7
        assert Stock in own._made, "the control: a method does"

    def test_a_test_that_overrides_something_else(self, mesh: Mesh) -> None:
        with override_settings(DEBUG=True):
            assert get_mesh() is mesh

    def test_settings_are_below_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MESH_ZONE", "b")
        with override_settings(MESH={"ZONE": "a", "PICKER": "random"}):
            found = get_mesh().settings
            assert (found.zone, found.picker) == ("b", "random")
            assert dict(found.sources) == {"zone": "environment", "picker": "settings.MESH"}

    @pytest.mark.parametrize(("tests", "announced"), [(True, False), (False, True)])
    def test_who_serves_announces(self, tests: bool, announced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And not the handler of a test."""
        told: list[str] = []
        monkeypatch.setattr(Mesh, "announce", lambda mesh: told.append(mesh.settings.service))
        monkeypatch.setattr(middleware.stopping, "leave_first", lambda _: told.append("sigterm"))
        with override_settings(MESH={"SERVICE": "shop", "REGISTRY": f"memory://{tmp_path}"}), monkeypatch.context() as patch:
            if not tests:
                patch.delattr("django.core.mail.outbox")
            MeshMiddleware(lambda _: HttpResponse())
        assert told == (["shop", "sigterm"] if announced else [])

    @pytest.mark.parametrize("tests", [True, False])
    def test_who_awaits_looks_at_the_signal_again_with_the_first_request(
        self, tests: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By then the server handles it, whenever it has loaded the app."""
        told: list[str] = []
        monkeypatch.setattr(Mesh, "announce", lambda _: None)
        monkeypatch.setattr(middleware.stopping, "leave_first", lambda _: told.append("sigterm"))

        async def answer(_: HttpRequest) -> HttpResponse:
            return HttpResponse()

        async def serve(made: MeshMiddleware) -> None:
            for _ in range(2):
                await made(AsyncRequestFactory().get("/"))

        with override_settings(MESH={"SERVICE": "shop", "REGISTRY": f"memory://{tmp_path}"}), monkeypatch.context() as patch:
            if not tests:
                patch.delattr("django.core.mail.outbox")
            asyncio.run(serve(MeshMiddleware(answer)))
        assert told == ([] if tests else ["sigterm", "sigterm"])


CASES: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("well", {}, []),
    ("no dict", {"MESH": ["SERVICE"]}, [("E001", "is a list, not a dict")]),
    ("keys that are no text", {"MESH": {1: 2}}, [("E001", "not a dict of settings")]),
    ("an unknown setting", {"MESH": {"REGISTRI": "memory://"}}, [("E002", "REGISTRI (from settings.MESH): is not a setting")]),
    ("a wrong value", {"MESH": {"PORT": "many"}}, [("E002", "MESH_PORT (from settings.MESH)")]),
    ("policies that are none", {"MESH": {"POLICIES": "shed"}}, [("E004", "is a str, not a list")]),
    ("a policy that cannot stand here", {"MESH": {"POLICIES": [3]}}, [("E004", "policies")]),
    ("no middleware", {"MESH": {"SERVICE": "shop"}, "MIDDLEWARE": []}, [("W001", "not registered")]),
    ("no middleware, and none needed", {"MIDDLEWARE": []}, []),
    ("twice", {"MIDDLEWARE": [OURS, OURS]}, [("E003", "more than once")]),
    ("too low", {"MIDDLEWARE": [SECURITY, OURS]}, [("W002", SECURITY)]),
    ("below another's", {"MIDDLEWARE": ["tests.unit.contrib.test_django.passing", OURS]}, []),
    ("a port alone", {"MESH": {"PORT": 80}}, [("W004", "nothing is registered")]),
    ("debugging in public", {"DEBUG": True, "MESH": {"SERVICE": "shop", "REGISTRY": "etcd://10.0.0.1"}}, [("W005", "'shop'")]),
    ("debugging at home", {"DEBUG": True, "MESH": {"SERVICE": "shop", "REGISTRY": "local://"}}, []),
    ("outside of the dict", {"MESH_SERVICE": "shop"}, [("W006", "settings.MESH_SERVICE is not read")]),
]


def passing(get_response: Any) -> Any:
    return get_response


class TestChecks:
    @pytest.mark.parametrize(("overrides", "found"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
    def test_check(self, overrides: dict[str, Any], found: list[tuple[str, str]]) -> None:
        with override_settings(**overrides):
            messages = [each for each in djangos.run_checks() if (each.id or "").startswith("meshlib.")]
        assert [each.id for each in messages] == [f"meshlib.{number}" for number, _ in found]
        for message, (_, text) in zip(messages, found, strict=True):
            assert text in message.msg
            assert message.hint

    def test_nobody_can_tell_the_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "listeners", lambda: None)
        with override_settings(MESH={"SERVICE": "shop"}):
            assert [each.id for each in checks.checks()] == ["meshlib.W003"]
        with override_settings(MESH={"SERVICE": "shop", "PORT": 80}):
            assert checks.checks() == []

    @pytest.mark.parametrize("ran", [False, True])
    def test_again_where_nobody_has_run_them(
        self, ran: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(checks, "_told", ran)
        with override_settings(MIDDLEWARE=[SECURITY, OURS]):
            Client().get("/stock/tea")
        assert ("meshlib.W002" in caplog.text) is not ran

    def test_what_is_wrong_is_said_at_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "_told", False)
        with override_settings(MIDDLEWARE=[OURS, OURS]), pytest.raises(ConfigError, match="meshlib.E003"):
            Client().get("/stock/tea")

    def test_with_no_middleware_it_is_said_with_the_first_request(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(checks, "_told", False)
        with override_settings(MIDDLEWARE=[], MESH={**settings.MESH, "SERVICE": "shop"}):
            apps.get_app_config("meshlib").ready()
            try:
                Client().get("/stock/tea")
            finally:
                request_started.disconnect(dispatch_uid="meshlib")
        assert "meshlib.W001" in caplog.text

    def test_the_middleware_without_the_app(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(middleware.apps, "is_installed", lambda _: False)
        with pytest.raises(ConfigError, match="INSTALLED_APPS"):
            MeshMiddleware(lambda _: HttpResponse())


class TestCommands:
    @staticmethod
    def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            Command().run_from_argv(["manage.py", "mesh", *words])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out + said.err

    def test_services(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, said = self.run(capsys, "services", "--json")
        assert code == 0
        assert '"stock"' in said

    def test_options_are_those_of_the_command_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, said = self.run(capsys, "explain", "--help")
        assert code == 0
        assert "manage.py mesh explain" in said

    def test_exit_codes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(capsys, "instances", "nothing")[0] == 1
        assert self.run(capsys, "no-such-command")[0] == 2
        with override_settings(MESH={"PORT": "many"}):
            code, said = self.run(capsys, "services")
        assert (code, "MESH_PORT (from settings.MESH)" in said) == (2, True)

    def test_from_code(self, capsys: pytest.CaptureFixture[str]) -> None:
        call_command("mesh", "services", "--json")
        assert '"stock"' in capsys.readouterr().out
        with pytest.raises(SystemExit):
            call_command("mesh", "instances", "nothing")
