"""The command line on real registries, and with processes that it has to reach."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshlib.cli import run
from meshlib.cli.facts import Change, Instances, Registered, Services, Wishes
from meshlib.cli.policy_facts import Plan, PolicyDocument
from meshlib.discovery.wishes import groups
from meshlib.settings import Settings
from tests.servers.base import Server, eventually, free_port
from tests.servers.consul import ConsulServer
from tests.servers.etcd import EtcdServer

TOP = Path(__file__).parents[2]
TTL = "4"
"""Seconds: somebody who is killed is gone soon, and nobody else, however slow the machine is at times."""


class Line:
    """The command line in processes of its own, and providers."""

    def __init__(self, room: Path, registry: str) -> None:
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        self.env |= {"MESH_REGISTRY": registry, "MESH_STATE_DIR": str(room / "state"), "MESH_TTL": TTL}
        self.started: list[subprocess.Popen[str]] = []

    def run(self, *words: object, **env: str) -> tuple[int, str]:
        """In this process: starting one for each command would take most of the time."""
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            for name in [name for name in os.environ if name.startswith("MESH_")]:
                patch.delenv(name)
            for name, value in (self.env | env).items():
                patch.setenv(name, value)
            code = run([str(word) for word in words])
        assert code in (0, 1)
        out.seek(0)
        return code, out.read()

    def start(self, *words: object, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", *map(str, words)]
        process = subprocess.Popen(command, env=self.env | env, cwd=TOP, text=True, stdout=subprocess.PIPE)
        self.started.append(process)
        return process

    def provider(self) -> str:
        """Start one of "orders" and return its instance's name."""
        process = self.start(
            "meshlib.cli.demo.provider", MESH_SERVICE="orders", MESH_HOST="127.0.0.1", MESH_ADVERTISE="127.0.0.1"
        )
        assert process.stdout is not None
        own = f"orders-127.0.0.1-{process.stdout.readline().split()[-1]}"
        # Nobody else: one of the test before may be listed for a moment.
        eventually(lambda: [one["id"] for one in self.instances()] == [own], within=60, what="the provider is listed alone")
        return f"orders/{own}"

    def instances(self) -> Any:
        return json.loads(self.run("instances", "orders", "--json")[1])["instances"]

    def wish(self, *words: object, **env: str) -> tuple[int, Any]:
        code, out = self.run(*words, "--json", **env)
        (told,) = msgspec.json.decode(out, type=Wishes).told
        return code, told

    def confirmed(self) -> float:
        """When the provider's process last saw that it is listed."""
        (group,) = groups(Settings.load(environ=self.env))
        return group.record.confirmed

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def consul() -> Iterator[ConsulServer]:
    with closing(ConsulServer()) as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with closing(EtcdServer()) as server:
        server.start()
        yield server


@pytest.fixture(params=["consul", "etcd"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    server: Server = request.getfixturevalue(request.param)
    tmp_path.chmod(0o700)
    with closing(Line(tmp_path, f"{request.param}://127.0.0.1:{server.port}")) as made:  # type: ignore[attr-defined]
        yield made


def test_a_provider_from_its_registration_to_its_end(line: Line) -> None:
    name = line.provider()
    assert "orders" in msgspec.json.decode(line.run("services", "--json")[1], type=Services).services
    code, body = line.run("call", "orders", "get", "/orders/7")
    assert (code, json.loads(body)["id"]) == (0, 7)
    assert line.run("explain", "orders")[0] == 0

    code, told = line.wish("drain", name)
    assert (code, told.how, told.seen) == (0, "siblings", True)
    assert [one["status"] for one in line.instances()] == ["draining"]
    assert line.wish("drain", "--undo", "--service", "orders")[0] == 0
    code, told = line.wish("maintenance", name.partition("/")[2])
    assert (code, told.how) == (0, "siblings")
    assert line.run("call", "orders", "get", "/orders/7")[0] == 1
    assert line.wish("maintenance", "--off", name)[0] == 0
    assert line.run("call", "orders", "get", "/orders/7")[0] == 0


def test_rules_of_many_services(line: Line, tmp_path: Path) -> None:
    room = tmp_path / "rules"
    room.mkdir()
    (room / "orders.yaml").write_text("consumer: {policies: {retry: {attempts: 5}}}\n")
    (room / "users.yaml").write_text("consumer: {policies: {timeout: {seconds: 2}}}\n")
    code, out = line.run("apply", "-f", room, "--json")
    assert (code, [one.action for one in msgspec.json.decode(out, type=Plan).steps]) == (0, ["create", "create"])
    assert line.run("apply", "-f", room, "--dry-run", "--exit-code")[0] == 0
    assert msgspec.json.decode(line.run("policy", "get", "orders", "--json")[1], type=PolicyDocument).version == 1
    (room / "users.yaml").unlink()
    code, out = line.run("apply", "-f", room, "--prune", "--json")
    assert (code, [one.action for one in msgspec.json.decode(out, type=Plan).steps]) == (0, ["unchanged", "delete"])
    assert "retry" in line.run("explain", "orders")[1]


def test_register_until_sigterm(line: Line) -> None:
    port = free_port()
    process = line.start("meshlib", "register", "legacy", "--port", port, "--force", "--advertise", "127.0.0.1", "--json",
                         "--label", "team=pay", "--version", "1.4")  # fmt: skip
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n}\n"):
        text += (line_of := process.stdout.readline())
        assert line_of, text
    made = msgspec.json.decode(text, type=Registered).instance
    assert (made.port, made.version, made.labels) == (port, "1.4", {"team": "pay"})

    def found() -> list[str]:
        return [one.id for one in msgspec.json.decode(line.run("instances", "legacy", "--json")[1], type=Instances).instances]

    eventually(lambda: found() == [made.id], what="it is listed")

    watch = line.start("meshlib", "watch", "legacy", "--json")
    assert watch.stdout is not None
    assert [one.id for one in msgspec.json.decode(watch.stdout.readline(), type=Change).added] == [made.id]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0

    def removed() -> bool:
        assert watch.stdout is not None
        return msgspec.json.decode(watch.stdout.readline(), type=Change).removed == [made.id]

    eventually(removed, what="the watch tells it")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(60) == 0


class TestFromElsewhere:
    """No process of ours serves it here: another state directory stands for another machine."""

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> dict[str, str]:
        return {"MESH_STATE_DIR": str(tmp_path / "elsewhere")}

    def test_consul_has_a_maintenance_mode_of_its_own(
        self, consul: ConsulServer, tmp_path: Path, elsewhere: dict[str, str]
    ) -> None:
        tmp_path.chmod(0o700)
        with closing(Line(tmp_path, consul.url)) as line:
            name = line.provider()
            code, told = line.wish("maintenance", name, **elsewhere)
            assert (code, told.how, told.seen) == (0, "registry", True)
            seen = line.confirmed()
            eventually(
                lambda: line.confirmed() > seen + 1.0, what="its process goes on with its heartbeats, and does not undo it"
            )
            assert [one["status"] for one in line.instances()] == ["maintenance"]
            code, told = line.wish("drain", name, **elsewhere)
            assert (code, told.how) == (1, "")
            assert "maintenance" in told.problem
            assert line.wish("maintenance", "--off", name, **elsewhere)[0] == 0
            assert [one["status"] for one in line.instances()] == ["up"]

    def test_that_of_another_agent_is_named(self, consul: ConsulServer, tmp_path: Path, elsewhere: dict[str, str]) -> None:
        tmp_path.chmod(0o700)
        with closing(ConsulServer(join=consul)) as agent, closing(Line(tmp_path, agent.url)) as line:
            agent.start()
            name = line.provider()
            code, told = line.wish("maintenance", name, MESH_REGISTRY=consul.url, **elsewhere)
            assert (code, told.how) == (1, "")
            assert f"node-{agent.port}" in told.problem

    def test_etcd_has_none(self, etcd: EtcdServer, tmp_path: Path, elsewhere: dict[str, str]) -> None:
        tmp_path.chmod(0o700)
        with closing(Line(tmp_path, f"etcd://127.0.0.1:{etcd.port}")) as line:
            name = line.provider()
            code, told = line.wish("maintenance", name, **elsewhere)
            assert (code, told.how) == (1, "")
            assert "MESH_STATE_DIR" in told.problem
