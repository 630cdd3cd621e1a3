"""Apps of web frameworks under their real servers: registered at the port that is listened on, without being told it; ready,
draining, gone. The lease outlasts every test, so only who deregisters is gone."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from meshlib import Mesh, Settings
from meshlib.model import Instance
from tests.servers.base import eventually, free_port
from tests.servers.consul import ConsulServer

TOP = Path(__file__).parents[2]
SERVERS = {
    "werkzeug": "-m tests.integration.apps.flask_app {port}",
    "gunicorn": "-m gunicorn tests.integration.apps.flask_app:app --no-control-socket --workers 2 --bind 127.0.0.1:{port}",
    "uvicorn": "-m uvicorn tests.integration.apps.fastapi_app:app --port {port} --timeout-graceful-shutdown 5",
    "hypercorn x2": "-m hypercorn tests.integration.apps.fastapi_app:app --workers 2 --bind 127.0.0.1:{port}",
    "granian x2": "-m granian tests.integration.apps.fastapi_app:app --interface asgi --workers 2 --port {port}",
    "litestar uvicorn": "-m uvicorn tests.integration.apps.litestar_app:app --port {port}",
    "litestar granian x2": "-m granian tests.integration.apps.litestar_app:app --interface asgi --workers 2 --port {port}",
    "django": "-m tests.integration.apps.django_app runserver --noreload {port}",
    "django gunicorn": "-m gunicorn tests.integration.apps.django_app --no-control-socket --workers 2 --bind 127.0.0.1:{port}",
    "django uvicorn": "-m uvicorn tests.integration.apps.django_app:asgi --port {port}",
    "django uvicorn x2": "-m uvicorn tests.integration.apps.django_app:asgi --workers 2 --port {port}",
    "django hypercorn x2": "-m hypercorn tests.integration.apps.django_app:asgi --workers 2 --bind 127.0.0.1:{port}",
    "django granian x2": "-m granian tests.integration.apps.django_app:asgi --interface asgi --workers 2 --port {port}",
    "django granian wsgi x2": "-m granian tests.integration.apps.django_app:application --interface wsgi --workers 2 --port {port}",
}
UVICORN_RELOADING = "-m uvicorn tests.integration.apps.fastapi_app:app --port {port} --reload --reload-dir {room}"
DJANGO_RELOADING = "-m tests.integration.apps.django_app runserver {port}"
IN_SOAK = {"litestar granian x2", "django hypercorn x2", "django granian x2", "django granian wsgi x2"}
"""Every framework and every server is in CI, not every combination."""
AT_ONCE = 3
"""They mostly wait: as many stories are told at a time; each test looks at its own."""


class Served:
    """A server, and what the registry says of it."""

    def __init__(self, room: Path, server: str, **env: str) -> None:
        self.port, self._log = free_port(), room / "log"
        command = SERVERS.get(server, server)
        own = {
            "SERVES": command,
            "MESH_STATE_DIR": str(room),
            "MESH_SERVICE": "shop",
            "MESH_TTL": "60",
            "MESH_DRAIN_TIMEOUT": "5",
            **env,
        }
        with self._log.open("wb") as log:
            words = [sys.executable, *command.format(port=self.port, room=room).split()]
            self.process = subprocess.Popen(words, env={**os.environ, **own}, cwd=TOP, stdout=log, stderr=log)
        self._mesh = Mesh(Settings(state_dir=str(room), registry=env.get("MESH_REGISTRY", "local://")))

    def listed(self) -> list[Instance]:
        snapshot = self._mesh.snapshot("shop", timeout=0.5)
        return list(snapshot.instances) if snapshot else []

    def get(self, path: str, port: int = 0) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def await_registered(self) -> None:
        eventually(lambda: [each.port for each in self.listed()] == [self.port], within=60, what=self.log)

    def log(self) -> str:
        return f"its log: {self._log.read_text()[-3000:]}"

    def close(self) -> None:
        self.process.terminate()  # gunicorn's workers end by themselves once it has
        self.process.wait(60)
        self._mesh.close()


@pytest.fixture
def room(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def served(room: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    server, env = request.param
    served = Served(room, server, **env)
    yield served
    served.close()


@pytest.fixture(scope="module")
def stories(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Future[None]]]:
    chosen = [item.callspec.params["server"] for item in request.session.items
              if isinstance(item, pytest.Function) and item.module is request.module and "stories" in item.fixturenames]  # fmt: skip
    rooms = {server: tmp_path_factory.mktemp("room") for server in chosen}
    with ThreadPoolExecutor(AT_ONCE) as executor:
        running = {server: executor.submit(story, server, room) for server, room in rooms.items()}
        yield lambda server: running[server]
        for each in running.values():
            each.cancel()


@pytest.mark.parametrize(
    "server", [pytest.param(each, id=each, marks=pytest.mark.soak if each in IN_SOAK else ()) for each in SERVERS]
)
def test_registered_ready_draining_gone(server: str, stories: Callable[[str], Future[None]]) -> None:
    stories(server).result()


def story(server: str, room: Path) -> None:
    """Of a server's life."""
    room.chmod(0o700)
    with closing(Served(room, server)) as served:
        live(served, workers=2 if "--workers 2" in SERVERS[server] else 1)


def live(served: Served, *, workers: int) -> None:
    """It is registered where it listens, calls, is drained, and gone."""
    served.await_registered()
    pids: set[bytes] = set()  # Granian's workers are deaf to a signal that comes before they serve
    eventually(lambda: pids.add(served.get("/pid")[1]) or len(pids - {b""}) == workers, within=60, what=served.log)
    eventually(lambda: served.get("/readyz")[0] == 200, what=served.log)
    status, answer = served.get("/call")
    assert (status, answer.isdigit()) == (200, True), f"{answer!r} {served.log()}"
    # Of two workers one may not have registered yet, and would have nothing to drain.
    eventually(lambda: b"draining" in served.get("/drain")[1], what=served.log)
    eventually(lambda: [each.status.value for each in served.listed()] == ["draining"], what=served.log)
    # The other one hears of it at its next look, within four seconds.
    eventually(lambda: served.get("/readyz")[0] == 503, what=served.log)
    assert served.get("/healthz")[0] == 200
    served.process.send_signal(signal.SIGTERM)
    eventually(lambda: served.listed() == [], what=served.log)
    assert served.process.wait(60) in (0, -signal.SIGTERM), served.log()


def test_the_reloader_of_django_registers_its_child_only(room: Path) -> None:
    with closing(Served(room, DJANGO_RELOADING)) as served:
        served.await_registered()
        eventually(lambda: served.get("/pid")[0] == 200, what=served.log)
        child = int(served.get("/pid")[1])
        assert child != served.process.pid
        # Whoever keeps the entry holds the first lock of the file that siblings share.
        # (The kernel's list may skip one while others come and go.)
        eventually(lambda: holders(room) == [child], what=served.log)
        os.kill(child, signal.SIGINT)  # as a terminal would, to both
        eventually(lambda: served.listed() == [], what=served.log)


def test_the_reloader_of_uvicorn(room: Path) -> None:
    """What is restarted is registered once, and gone in the end."""
    (room / "changed.py").write_text("")
    with closing(Served(room, UVICORN_RELOADING)) as served:
        served.await_registered()
        eventually(lambda: served.get("/pid")[0] == 200, what=served.log)
        before = int(served.get("/pid")[1])
        (room / "new").write_text("again = True\n")
        os.utime(room / "new", (1.0, time.time() + 10.0))
        (room / "new").rename(room / "changed.py")  # one change, however often it looks
        eventually(lambda: served.get("/pid")[1] not in (b"", b"%d" % before), within=60, what=served.log)
        eventually(lambda: before not in holders(room) != [], what=served.log)
        served.await_registered()
        served.process.send_signal(signal.SIGTERM)
        eventually(lambda: served.listed() == [], what=served.log)


def holders(room: Path) -> list[int]:
    """The processes with a lock on the files of siblings."""
    files = {str(path.stat().st_ino) for path in (room / "siblings").glob("shop-*")}
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sorted({int(fields[4]) for fields in lines if fields[1] == "POSIX" and fields[5].rpartition(":")[2] in files})


@pytest.mark.parametrize("served", [("werkzeug", {})], indirect=True, ids=["werkzeug"])
def test_the_negative_control(served: Served) -> None:
    """Who is killed stays listed: that nothing is listed above is not the lease's end."""
    served.await_registered()
    served.process.kill()
    served.process.wait()
    assert served._mesh.snapshot("shop") is not None
    assert [each.port for each in served.listed()] == [served.port]


@pytest.mark.parametrize("served", [("django uvicorn", {"MESH_DRAIN_WAIT": "10"})], indirect=True, ids=["django uvicorn"])
def test_it_leaves_while_it_still_serves(served: Served) -> None:
    """With one worker, uvicorn has loaded the app before it handles signals."""
    served.await_registered()
    # One that goes without a word would stay listed here for as long as it answers.
    eventually(lambda: served.get("/drain") == (200, b"draining"), what=served.log)
    eventually(lambda: [each.status.value for each in served.listed()] == ["draining"], what=served.log)
    served.process.send_signal(signal.SIGTERM)
    eventually(lambda: served.listed() == [], what=served.log)
    assert served.get("/pid")[0] == 200, served.log()
    assert served.process.wait(60) in (0, -signal.SIGTERM), served.log()


MANAGEMENT = free_port()


@pytest.mark.parametrize("served", [("uvicorn", {"MESH_MANAGEMENT_PORT": str(MANAGEMENT)})], indirect=True, ids=["uvicorn"])
def test_management_at_a_port_of_its_own(served: Served) -> None:
    """It is not taken for the port to register, either."""
    served.await_registered()
    eventually(lambda: served.get("/readyz", MANAGEMENT)[0] == 200, what=served.log)
    status, body = served.get("/actuator/health", MANAGEMENT)
    assert (status, json.loads(body)["components"]["registration"]["status"]) == (200, "UP")
    assert served.get("/readyz")[0] == 404
    assert served.get("/orders", MANAGEMENT)[0] == 404


@pytest.fixture(scope="module")
def consul() -> Iterator[ConsulServer]:
    with closing(ConsulServer()) as server:
        server.start()
        yield server


@pytest.mark.parametrize(("management", "status", "answer"), [("on", "passing", 200), ("off", "critical", 404)])
def test_consul_asks_for_the_health(consul: ConsulServer, room: Path, management: str, status: str, answer: int) -> None:
    """The path that is registered by default is served; the negative control serves none."""
    env = {"MESH_REGISTRY": consul.url, "MESH_CHECK": "http", "MESH_TTL": "3", "MESH_MANAGEMENT": management}

    def said() -> list[str]:
        return [each["Status"] for each in consul.call("GET", "/v1/health/checks/shop")[1]]

    with closing(Served(room, "uvicorn", **env)) as served:
        eventually(lambda: f'"GET /actuator/health HTTP/1.1" {answer}' in served.log(), within=60, what=served.log)
        eventually(lambda: said() == [status], what=lambda: f"{said()} {served.log()}")
