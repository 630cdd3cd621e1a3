"""``mesh doctor`` finds each seeded fault, says what to do, and finds nothing in the same setup without it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshlib.backends import open_backend
from meshlib.backends.base import Backend
from meshlib.cli import run
from meshlib.cli.setup_facts import Diagnosis
from meshlib.discovery.address import source_address
from meshlib.discovery.siblings import file_of
from meshlib.discovery.store import SnapshotStore
from meshlib.model import Instance, ServiceUrl, Snapshot
from meshlib.settings import Settings
from tests.servers.base import eventually, free_port
from tests.servers.consul import ConsulServer
from tests.servers.etcd import LIMITED, PASSWORD, EtcdServer
from tests.servers.fake_consul import FakeConsul
from tests.servers.sibling import Sibling

TOKEN = "6a4cd5a0-2f5e-4bd0-8c3a-0a4b8d4f8a11"
NODES = 'node_prefix "" { policy = "read" }\n'
READ = 'service_prefix "" { policy = "read" }\n' + NODES
WRITE = 'service_prefix "" { policy = "write" }\n' + NODES
KEYS = 'key_prefix "" { policy = "%s" }\n'


@dataclass
class Setup:
    """A provider of "orders" that is well: it listens, is listed, has its snapshot and a policy document."""

    room: Path
    say: Callable[[], str]
    listener: socket.socket
    env: dict[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def state(self) -> Path:
        return self.room / "state"

    def settings(self, **env: str) -> Settings:
        return Settings.load(environ={**self.env, **env})

    def ask(self, work: Callable[[Backend], Any], **env: str) -> Any:
        async def asked() -> Any:
            backend = open_backend(self.settings(**env))
            try:
                return await work(backend)
            finally:
                await backend.close()

        return asyncio.run(asked())

    def lists(self, *, port: int | None = None, id: str = "", status: str = "up", **env: str) -> Instance:
        """Have an instance listed."""
        one = Instance.parse({"service": "orders", "id": id or f"orders-127.0.0.1-{self.port}", "host": "127.0.0.1",
                              "port": port or self.port, "status": status, "generation": "g"})  # fmt: skip

        async def listed(backend: Backend) -> None:
            await backend.registry.register(one, 600.0)
            while one not in (await backend.registry.fetch(one.url.name)).instances:  # Consul's agent tells its servers later
                await asyncio.sleep(0.02)

        self.ask(lambda backend: asyncio.wait_for(listed(backend), 30), **env)
        return one

    def saves(self, age: float, **env: str) -> Path:
        """Have a disk snapshot of that age."""
        settings = self.settings(**env)
        store = SnapshotStore(settings.state_path, registry=str(settings.registry), max_age=1e9)
        store.save(Snapshot(ServiceUrl("orders"), (), confirmed=time.time() - age))
        return store.directory / "orders.json"

    def puts(self, content: bytes, **env: str) -> None:
        """Have something in the place of the policy document."""
        self.ask(lambda backend: backend.kv.put("policies/-/orders/current", content), **env)

    def doctor(self, *words: str, **env: str) -> tuple[int, Diagnosis]:
        for name in [name for name in os.environ if name.startswith("MESH_")]:
            del os.environ[name]
        os.environ.update({**self.env, **env})
        self.say()
        code = run(["doctor", "--json", *words])
        return code, msgspec.json.decode(self.say(), type=Diagnosis)

    def well(self, **env: str) -> None:
        """The control: nothing is found."""
        code, found = self.doctor(**env)
        assert (code, found.findings) == (0, []), found.findings

    def finds(self, *codes: str, **env: str) -> str:
        """It finds these and nothing else, each with a hint; what it says of them."""
        code, found = self.doctor(**env)
        assert code == 1, found.checks
        assert {one.code for one in found.findings} == set(codes), found.findings
        assert all(one.what and one.hint for one in found.findings)
        return "\n".join(f"{one.what}: {one.hint}" for one in found.findings)


@pytest.fixture
def setup(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    before = dict(os.environ)
    tmp_path.chmod(0o700)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Setup(tmp_path, lambda: capsys.readouterr().out, listener)
        made.env = {
            "MESH_SERVICE": "orders", "MESH_PORT": str(made.port), "MESH_ADVERTISE": "127.0.0.1",
            "MESH_STATE_DIR": str(made.state), "MESH_REGISTRY": f"local://{tmp_path}/registry/registry.db",
            "MESH_CONNECT_TIMEOUT": "10", "MESH_REGISTRY_TIMEOUT": "15",
        }  # fmt: skip
        yield made
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def local(setup: Setup) -> Setup:
    """It on the embedded registry."""
    setup.lists()
    setup.saves(60)
    setup.puts(b'{"version": 1, "consumer": {"policies": {"retry": {"attempts": 5}}}}')
    setup.well()
    return setup


@pytest.fixture(scope="module")
def acl() -> Iterator[ConsulServer]:
    with closing(ConsulServer(token=TOKEN)) as server:
        server.start()
        yield server


def token(server: ConsulServer, rules: str) -> str:
    name = f"rules-{abs(hash(rules))}"
    server.call("PUT", "/v1/acl/policy", {"Name": name, "Rules": rules})
    status, made = server.call("PUT", "/v1/acl/token", {"Policies": [{"Name": name}]})
    assert status == 200, made
    return str(made["SecretID"])


@pytest.fixture
def consul(setup: Setup, acl: ConsulServer) -> Setup:
    """It on a Consul with ACLs, with a token that may do what a provider and operator does."""
    setup.env |= {"MESH_REGISTRY": acl.url, "MESH_REGISTRY_TOKEN": token(acl, WRITE + KEYS % "write")}
    setup.lists()
    setup.well()
    return setup


# -- settings and libraries


def test_an_unknown_variable_with_a_near_miss(local: Setup) -> None:
    assert "MESH_REGISTRY?" in local.finds("settings.unknown", MESH_REGISTR="x")


def test_invalid_settings_all_at_once(local: Setup) -> None:
    said = local.finds("settings.invalid", MESH_NAMESPACE="nonsense!", MESH_TTL="soon", MESH_TLS_CERT=__file__)
    assert "MESH_NAMESPACE" in said
    assert "MESH_TTL" in said
    assert "MESH_TLS_KEY" in said


def test_a_missing_extra(consul: Setup) -> None:
    code = "import sys; sys.modules['consul'] = None; from meshlib.cli import run; sys.exit(run(['doctor', '--json']))"
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")} | consul.env
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False)
    (found,) = json.loads(done.stdout)["findings"]
    assert (done.returncode, found["code"]) == (1, "extras.missing")
    assert "pip install 'meshlib-cloud[consul]'" in found["hint"]


def test_settings_and_where_each_is_from(local: Setup) -> None:
    _, found = local.doctor("--registry-timeout", "5")
    known = {one.name: (one.value, one.source) for one in found.settings}
    assert known["MESH_REGISTRY_TIMEOUT"] == ("5.0", "command line")
    assert known["MESH_SERVICE"] == ("orders", "environment")
    assert known["MESH_TTL"] == ("15.0", "default")
    _, found = local.doctor(MESH_REGISTRY_TOKEN="hush")
    assert "hush" not in str(found)


# -- the state directory


def test_a_state_directory_that_others_can_write_to(local: Setup) -> None:
    local.state.chmod(0o777)
    assert f"chmod go-w {local.state}" in local.finds("state.writable_by_others")


def test_a_state_directory_that_cannot_be_written(local: Setup) -> None:
    local.finds("state.not_writable", MESH_STATE_DIR="/proc/meshlib-state")


def test_a_state_directory_of_another_user(local: Setup) -> None:
    if os.geteuid() == 0:
        other = local.room / "other"
        other.mkdir(mode=0o700)
        os.chown(other, 12345, 12345)
        local.finds("state.foreign_owner", MESH_STATE_DIR=str(other))
    else:
        local.finds("state.foreign_owner", "state.not_writable", MESH_STATE_DIR="/usr")


def test_an_expired_snapshot(local: Setup) -> None:
    local.finds("snapshot.expired", MESH_SNAPSHOT_MAX_AGE="30")


def test_a_damaged_snapshot_which_stays_where_it_is(local: Setup) -> None:
    path = local.saves(30)
    path.write_bytes(path.read_bytes()[:-9])
    assert str(path) in local.finds("snapshot.damaged")
    assert path.exists()


def test_a_quarantined_snapshot(local: Setup) -> None:
    path = local.saves(30)
    path.rename(path.with_name(path.name + ".quarantined-20260101T000000.000000"))
    local.finds("snapshot.quarantined")


def test_processes_that_are_stuck(local: Setup) -> None:
    file = file_of(local.settings(), Instance("orders", f"orders-127.0.0.1-{local.port}", "127.0.0.1", local.port))
    with Sibling() as sibling:
        sibling.ask(file, "look")
        local.well()
        eventually(lambda: local.doctor(MESH_TTL="0.1")[0] == 1, what="quiet for longer than three times its ttl")
        said = local.finds("processes.stuck", MESH_TTL="0.1")
        assert f"process {sibling.process.pid}" in said


# -- the registry


def test_an_unreachable_registry(consul: Setup) -> None:
    consul.finds("registry.unreachable", MESH_REGISTRY=f"consul://127.0.0.1:{free_port()}")


def test_one_of_its_servers_is_down(consul: Setup) -> None:
    dead = f"127.0.0.1:{free_port()}"
    url = f"{consul.env['MESH_REGISTRY']},{dead}"
    assert dead in consul.finds("registry.server_down", MESH_REGISTRY=url)


@pytest.mark.parametrize("skew", [120.0, -120.0])
def test_clocks_that_are_apart(skew: float, local: Setup) -> None:
    with FakeConsul() as fake:
        url = {"MESH_REGISTRY": fake.url, "MESH_SERVICE": ""}
        local.well(**url)
        fake.skew = skew
        said = local.finds("clock.skew", **url)
    assert ("ahead of" if skew > 0 else "behind") in said


def test_a_wrong_token(consul: Setup) -> None:
    said = consul.finds("registry.denied", MESH_REGISTRY_TOKEN="6a4cd5a0-2f5e-4bd0-8c3a-0a4b8d4f8aff")
    assert "MESH_REGISTRY_TOKEN" in said


def test_a_token_that_sees_nobody(consul: Setup, acl: ConsulServer) -> None:
    code, found = consul.doctor(MESH_REGISTRY_TOKEN=token(acl, NODES + KEYS % "write"))
    # Consul says that it left something out from release 1.11 on; before, nothing seems to be there.
    assert {one.code for one in found.findings} & {"registry.denied", "registry.cannot_register"}
    assert code == 1


def test_a_token_that_may_not_register(consul: Setup, acl: ConsulServer) -> None:
    assert "service:write" in consul.finds("registry.cannot_register", MESH_REGISTRY_TOKEN=token(acl, READ + KEYS % "write"))


def test_a_token_that_may_not_write_keys(consul: Setup, acl: ConsulServer) -> None:
    limited = token(acl, WRITE + KEYS % "read")
    consul.finds("kv.read_only", MESH_REGISTRY_TOKEN=limited)
    code, found = consul.doctor("--ignore", "kv.read_only", MESH_REGISTRY_TOKEN=limited)
    assert (code, found.findings) == (0, [])


def test_a_token_that_may_not_read_keys(consul: Setup, acl: ConsulServer) -> None:
    consul.finds("kv.denied", MESH_REGISTRY_TOKEN=token(acl, WRITE))


def test_looking_for_rights_changes_nothing(consul: Setup, acl: ConsulServer) -> None:
    _, before = acl.call("GET", "/v1/catalog/services")
    consul.doctor()
    assert acl.call("GET", "/v1/catalog/services")[1] == before
    assert acl.call("GET", "/v1/kv/policies/?keys")[0] == 404
    _, nodes = acl.call("GET", "/v1/catalog/nodes")
    assert len(nodes) == 1


def test_nobody_passes(consul: Setup, acl: ConsulServer) -> None:
    acl.call("PUT", "/v1/agent/service/register", {"Name": "users", "ID": "users-1", "Port": 1, "Check": {"TTL": "60s"}})

    def known() -> bool:
        return "users" in acl.call("GET", "/v1/catalog/services")[1]

    eventually(known)
    try:
        assert "users" in consul.finds("service.not_passing")
    finally:
        acl.call("PUT", "/v1/agent/service/deregister/users-1")
        eventually(lambda: not known())


def test_everybody_is_in_maintenance(local: Setup) -> None:
    local.lists(status="maintenance")
    assert "maintenance" in local.finds("service.not_passing")


@pytest.mark.parametrize(
    ("content", "field"),
    [(b'{"version": 2, "consumer": {"policies": {"retry": {"atempts": 5}}}}', "consumer.policies.retry.atempts"),
     (b"{broken", "document")],
)  # fmt: skip
def test_a_policy_document_that_is_rejected(content: bytes, field: str, local: Setup) -> None:
    local.puts(content)
    assert field in local.finds("policy.rejected")


# -- the provider


def test_a_loopback_address_with_a_registry_elsewhere(local: Setup) -> None:
    own = source_address((("198.51.100.1", 9),))
    with FakeConsul(own) as fake, socket.create_server((own, 0)) as there:
        port = str(there.getsockname()[1])
        # Nobody is listed in it, which is told, too.
        local.finds("instance.missing", MESH_REGISTRY=fake.url, MESH_ADVERTISE=f"{own}:{port}")
        said = local.finds("address.loopback", "instance.missing", MESH_REGISTRY=fake.url)
    assert "MESH_ADVERTISE" in said


def test_an_advertised_address_that_is_not_reachable(local: Setup) -> None:
    assert "bind 0.0.0.0" in local.finds("address.unreachable", MESH_ADVERTISE="127.0.0.2")


def test_nobody_listens(local: Setup) -> None:
    local.finds("port.silent", MESH_PORT=str(free_port()))


def test_listening_and_not_registered(local: Setup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        local.finds("instance.missing", MESH_PORT=str(other.getsockname()[1]))


def test_the_same_id_at_another_address(local: Setup) -> None:
    local.lists(id="orders-1")
    local.well(MESH_INSTANCE_ID="orders-1")
    local.lists(id="orders-1", port=free_port())
    assert "orders-1" in local.finds("instance.duplicate", MESH_INSTANCE_ID="orders-1")


# -- etcd


@pytest.fixture(scope="module")
def users() -> Iterator[EtcdServer]:
    with closing(EtcdServer()) as server:
        server.start()
        server.enable_auth()
        yield server


@pytest.fixture
def etcd(setup: Setup, users: EtcdServer) -> Setup:
    """It on an etcd with users, as one that may do everything below /meshlib/."""
    setup.env |= {
        "MESH_REGISTRY": f"etcd://127.0.0.1:{users.port}", "MESH_REGISTRY_USER": LIMITED, "MESH_REGISTRY_PASSWORD": PASSWORD,
    }  # fmt: skip
    setup.lists()
    setup.well()
    return setup


def test_etcd_without_a_user(etcd: Setup) -> None:
    assert "MESH_REGISTRY_USER" in etcd.finds("registry.denied", MESH_REGISTRY_USER="", MESH_REGISTRY_PASSWORD="")


def test_etcd_with_a_wrong_password(etcd: Setup) -> None:
    etcd.finds("registry.denied", MESH_REGISTRY_PASSWORD="wrong")


def test_etcd_elsewhere_than_we_may(etcd: Setup) -> None:
    etcd.finds("registry.denied", MESH_REGISTRY=f"{etcd.env['MESH_REGISTRY']}/elsewhere")


def test_etcd_read_only(etcd: Setup, users: EtcdServer) -> None:
    from tests.servers.etcd import b64

    users.call("/v3/auth/user/add", name="reader", password=PASSWORD)
    users.call("/v3/auth/role/add", name="reader")
    users.call("/v3/auth/user/grant", user="reader", role="reader")
    users.call(
        "/v3/auth/role/grant", name="reader", perm={"permType": "READ", "key": b64("/meshlib/"), "range_end": b64("/meshlib0")}
    )
    etcd.finds("registry.cannot_register", "kv.read_only", MESH_REGISTRY_USER="reader")
