"""Settings: what they accept and refuse, who wins, and what errors say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.errors import ConfigError
from meshlib.model import parse_host
from meshlib.security.secret import Secret
from meshlib.settings import RegistryUrl, Settings, default_state_dir, env_name, knobs, table
from scripts import generate_docs

HERE = str(Path(__file__))

GOOD: dict[str, list[tuple[str, Any]]] = {
    "service": [("orders", "orders"), ("o2-x", "o2-x")],
    "namespace": [("shop.prod", "shop.prod"), ("Shop.Prod", "shop.prod")],
    "registry": [("memory://x", RegistryUrl("memory", (), "x"))],
    "registry_token": [(" t\n", Secret("t"))],
    "registry_token_file": [(HERE, HERE)],
    "registry_user": [(" u ", "u")],
    "registry_password": [("p", Secret("p"))],
    "registry_password_file": [(HERE, HERE)],
    "registry_ca": [(HERE, HERE)],
    "registry_cert": [],
    "registry_key": [],
    "host": [("127.0.0.1", "127.0.0.1"), ("::", "::"), ("[::1]", "::1"), ("localhost", "localhost")],
    "port": [("0", 0), ("8080", 8080), ("65535", 65535)],
    "advertise": [("10.0.0.5", "10.0.0.5"), ("a.example:80", "a.example:80")],
    "scheme": [("https", "https")],
    "instance_id": [("orders-1", "orders-1")],
    "version": [(" 1.4.2", "1.4.2")],
    "zone": [("eu-1a", "eu-1a"), ("Düsseldorf", "Düsseldorf")],
    "weight": [("0", 0), ("10000", 10_000)],
    "labels": [("team=pay, track=canary,", {"team": "pay", "track": "canary"}), ("a=b=c", {"a": "b=c"})],
    "ttl": [("30", 30.0), ("0.5", 0.5)],
    "check": [("http", "http")],
    "health_path": [("/healthz?full=1", "/healthz?full=1")],
    "state_dir": [("/var/lib/x", "/var/lib/x")],
    "snapshot_max_age": [("86400", 86_400.0)],
    "cold_start_grace": [("0.05", 0.05)],
    "cold_start_timeout": [("1", 1.0)],
    "policies": [("off", "off")],
    "policy_max_age": [("86400", 86_400.0)],
    "watch_idle": [("3600", 3600.0)],
    "stale_max": [("5", 5.0)],
    "registry_timeout": [("5", 5.0)],
    "connect_timeout": [("0.5", 0.5)],
    "timeout": [("2", 2.0)],
    "picker": [("round_robin", "round_robin")],
    "probe": [("tcp", "tcp"), ("/healthz", "/healthz")],
    "ping": [("10", 10.0), ("0", 0.0)],
    "ejection_time": [("10", 10.0)],
    "ejection_share": [("0.2", 0.2), ("0", 0.0), ("1", 1.0)],
    "panic_threshold": [("0.5", 0.5)],
    "metrics": [("off", "off"), ("shared", "shared")],
    "host_header": [("service", "service")],
    "tls_ca": [(HERE, HERE)],
    "tls_cert": [],
    "tls_key": [],
    "drain_wait": [("35", 35.0), ("0", 0.0)],
    "drain_timeout": [("10", 10.0), ("0", 0.0)],
    "management": [("off", "off")],
    "management_path": [("/ops/", "/ops"), ("/", "")],
    "management_port": [("9090", 9090)],
    "management_token": [],
    "management_token_file": [(HERE, HERE)],
    "management_allow": [("10.0.0.0/8, ::1,", ("10.0.0.0/8", "::1/128"))],
    "management_metrics": [("on", "on")],
}

NOT_SECONDS = [
    ("soon", "not a number of seconds"),
    ("nan", "positive"),
    ("inf", "positive"),
    ("-1", "positive"),
    ("1e9", "positive"),
]
NO_FILE = [("/nowhere/token", "there is no file '/nowhere/token'"), ("/", "there is no file '/'")]
POSITIVE = [*NOT_SECONDS, ("0", "0 is not a positive number of seconds")]
NO_TEXT = [("a\nb", "control characters"), ("x" * 513, "longer than 512")]
BAD: dict[str, list[tuple[str, str]]] = {
    "service": [
        ("Orders", "try 'orders'"),
        ("order_items", "try 'order-items'"),
        ("-", "no service name"),
        ("1st", "try 's-1st'"),
        ("x" * 64, "no service name"),
    ],
    "namespace": [
        ("shop", "not of the form app.env"),
        ("a.b.c", "app.env"),
        ("shop..prod", "app.env"),
        ("shop.prod/x", "app.env"),
    ],
    "registry": [
        ("10.0.0.1:8500", "not a URL"),
        ("consl://h", "unknown scheme 'consl', did you mean consul:// (known: memory, local, static, consul, etcd)"),
        ("zookeeper://h", "unknown scheme 'zookeeper'"),
        ("consul://", "a host is missing"),
        ("consul://h:99999", "port '99999' is not in 1..65535"),
        ("consul://h:1,", "a host is missing"),
        ("consul://h:x", "port 'x'"),
        ("consul://2130706433", "read as a number"),
        ("consul://h?=1", "name=value"),
        ("consul://h?a b=1", "name=value"),
        ("etcd://u:p@h", "no user or password"),
    ],
    "registry_token": [],
    "registry_token_file": [*NO_FILE, ("hunter2", "there is no file of that name")],
    "registry_user": [],
    "registry_password": [],
    "registry_password_file": NO_FILE,
    "registry_ca": NO_FILE,
    "registry_cert": NO_FILE,
    "registry_key": NO_FILE,
    "host": [
        ("not a host", "neither an IP address nor a host name"),
        ("127.1", "read as a number"),
        ("10.0.0.5:80", "neither"),
    ],
    "port": [
        ("http", "not a port"),
        ("-1", "not a port"),
        ("65536", "not a port"),
        ("80.0", "not a port"),
        ("²", "not a port"),
        ("٣", "not a port"),
        ("9" * 5000, "not a port"),
    ],
    "advertise": [("0.0.0.0", "not an address that others can call")],
    "scheme": [("ftp", "'ftp' is none of http, https")],
    "instance_id": [("a b", "no id"), ("ü", "no id"), ("x" * 256, "no id")],
    "version": NO_TEXT,
    "zone": NO_TEXT,
    "weight": [
        ("heavy", "not a whole number from 0 to 10000"),
        ("10001", "0 to 10000"),
        ("-1", "0 to 10000"),
        ("1.5", "0 to 10000"),
    ],
    "labels": [
        ("team", "'team' is not of the form key=value"),
        ("a b=c", "unusable label 'a b'"),
        ("a=\x07", "unusable label 'a'"),
        (",".join(f"k{n}=v" for n in range(65)), "unusable label 'k64'"),
    ],
    "ttl": POSITIVE,
    "check": [("tcp", "none of ttl, http")],
    "health_path": [("healthz", "no path"), ("/a b", "no path"), ("/\r\nX: 1", "no path")],
    "state_dir": [],
    "snapshot_max_age": POSITIVE,
    "cold_start_grace": POSITIVE,
    "cold_start_timeout": POSITIVE,
    "policies": [("yes", "none of on, off")],
    "policy_max_age": POSITIVE,
    "watch_idle": POSITIVE,
    "stale_max": POSITIVE,
    "registry_timeout": POSITIVE,
    "connect_timeout": POSITIVE,
    "timeout": POSITIVE,
    "picker": [],
    "probe": [("http", "starts with a slash"), ("/a b", "no path")],
    "ping": NOT_SECONDS,
    "ejection_time": POSITIVE,
    "ejection_share": [
        ("half", "not a share from 0 to 1"),
        ("1.1", "not a share"),
        ("-0.1", "not a share"),
        ("nan", "not a share"),
    ],
    "panic_threshold": [("30", "not a share from 0 to 1")],
    "metrics": [("1", "none of on, off, shared")],
    "host_header": [("name", "none of instance, service")],
    "tls_ca": NO_FILE,
    "tls_cert": NO_FILE,
    "tls_key": NO_FILE,
    "drain_wait": NOT_SECONDS,
    "drain_timeout": NOT_SECONDS,
    "management": [("yes", "none of on, off")],
    "management_path": [("ops", "no path")],
    "management_port": [("http", "not a port")],
    "management_token": [],
    "management_token_file": NO_FILE,
    "management_allow": [
        ("10.0.0.0/99", "'10.0.0.0/99' is no network"),
        ("10.0.0.1/8", "host bits set"),
        ("all", "no network"),
    ],
    "management_metrics": [("yes", "none of on, off")],
}


def rows(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, *row, id=f"{name}={str(row[0])[:20]!r}") for name, each in table.items() for row in each]


def test_every_knob_has_its_rows() -> None:
    assert list(GOOD) == list(BAD) == [knob.name for knob in knobs()]


@pytest.mark.parametrize(("name", "text", "value"), rows(GOOD))
def test_accepted(name: str, text: str, value: Any) -> None:
    settings = Settings.load(environ={env_name(name): text})
    assert getattr(settings, name) == value
    assert settings.sources == {name: "environment"}
    assert getattr(settings.changed(weight=settings.weight), name) == value, "what was read can be read again"


@pytest.mark.parametrize(("name", "text", "why"), rows(BAD))
def test_refused(name: str, text: str, why: str) -> None:
    example = next(knob.metadata["example"] for knob in knobs() if knob.name == name)
    with pytest.raises(ConfigError) as caught:
        Settings.load(environ={env_name(name): text})
    said = str(caught.value)
    assert said.startswith(f"{env_name(name)} (from environment): ")
    assert said.endswith(f"; for example {example}")
    assert why in said
    assert len(said) < 400
    assert (caught.value.name, caught.value.source, caught.value.example) == (env_name(name), "environment", example)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("name", [knob.name for knob in knobs()])
@pytest.mark.parametrize("value", [b"bytes", 1.5j, object()], ids=["bytes", "complex", "object"])
def test_a_value_of_no_use_is_a_config_error(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**{name: value})
    assert str(caught.value).startswith(f"{env_name(name)} (from code): ")


@pytest.mark.parametrize("name", [knob.name for knob in knobs()])
def test_empty_is_unset(name: str) -> None:
    default = getattr(Settings(), name)
    assert getattr(Settings.load(environ={env_name(name): ""}), name) == default
    assert getattr(Settings(**{name: ""}), name) == default
    assert getattr(Settings(**{name: None}), name) == default


# -- who wins


@pytest.mark.parametrize(
    ("framework", "environ", "code", "port", "source"),
    [
        ({}, {}, {}, 0, None),
        ({"port": 1}, {}, {}, 1, "django settings"),
        ({"PORT": 1}, {}, {}, 1, "django settings"),
        ({"MESH_PORT": "1"}, {}, {}, 1, "django settings"),
        ({"port": 1}, {"MESH_PORT": "2"}, {}, 2, "environment"),
        ({"port": 1}, {"MESH_PORT": "2"}, {"port": 3}, 3, "code"),
        ({"port": 1}, {}, {"port": 3}, 3, "code"),
        ({"port": 1}, {"MESH_PORT": ""}, {}, 1, "django settings"),
        ({"port": None}, {}, {}, 0, None),
        ({}, {"MESH_PORT": "2"}, {"port": None}, 2, "environment"),
    ],
)
def test_precedence(framework: Any, environ: Any, code: Any, port: int, source: str | None) -> None:
    settings = Settings.load(environ=environ, framework=framework, source="django settings", **code)
    assert (settings.port, settings.sources.get("port")) == (port, source)


def test_an_error_names_where_the_value_came_from() -> None:
    with pytest.raises(ConfigError, match=r"^MESH_PORT \(from django settings\)"):
        Settings.load(environ={}, framework={"port": "x"}, source="django settings")
    with pytest.raises(ConfigError, match=r"^MESH_PORT \(from code\)"):
        Settings.load(environ={"MESH_PORT": "1"}, port="x")


def test_changes_in_code() -> None:
    settings = Settings.load(environ={"MESH_PORT": "1", "MESH_SERVICE": "orders"}).changed(port=2)
    assert (settings.port, settings.service) == (2, "orders")
    assert settings.sources == {"port": "code", "service": "environment"}


# -- what is none of ours


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("MESH_PROT", "MESH_PROT is not a setting of meshlib; did you mean MESH_PORT?"),
        ("MESH_REGISTRY_TOKEN_PATH", "MESH_REGISTRY_TOKEN_PATH is not a setting of meshlib; did you mean MESH_REGISTRY_TOKEN?"),
        ("MESH_XQZ", "MESH_XQZ is not a setting of meshlib"),
    ],
)
def test_unknown_variables_are_warned_of(variable: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    Settings.load(environ={variable: "hunter2", "PATH": "/bin", "mesh_port": "x"})
    assert [record.getMessage() for record in caplog.records] == [said]


def test_unknown_names_in_code_or_a_framework_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"prot \(from code\): is not a setting; for example port"):
        Settings.load(environ={}, prot=1)
    with pytest.raises(ConfigError, match=r"MESH_PROT \(from a file\): is not a setting; for example port"):
        Settings.load(environ={}, framework={"MESH_PROT": 1}, source="a file")


@pytest.mark.parametrize(("one", "other"), [("registry_cert", "registry_key"), ("tls_key", "tls_cert")])
def test_half_of_a_pair(one: str, other: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{env_name(other)} \(from environment\): is missing, but {env_name(one)} is set"):
        Settings.load(environ={env_name(one): HERE})
    assert Settings.load(environ={env_name(one): HERE, env_name(other): HERE})


# -- the registry's URL


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("local://", RegistryUrl("local")),
        ("local:///var/lib/x@y.db", RegistryUrl("local", (), "/var/lib/x@y.db")),
        ("static://a=1.2.3.4:80;b=c:81", RegistryUrl("static", (), "a=1.2.3.4:80;b=c:81")),
        ("consul://h", RegistryUrl("consul", (("h", 0),))),
        (
            "consul://H:1,[2001:DB8::1]:2,[::1],::2/p?dc=x&wait=5",
            RegistryUrl("consul", (("h", 1), ("2001:db8::1", 2), ("::1", 0), ("::2", 0)), "/p", {"dc": "x", "wait": "5"}),
        ),
        ("etcd://h?a=b=c", RegistryUrl("etcd", (("h", 0),), "", {"a": "b=c"})),
    ],
)
def test_a_url_taken_apart(text: str, url: RegistryUrl) -> None:
    assert RegistryUrl.parse(text) == url
    assert RegistryUrl.parse(str(url)) == url


hosts = st.one_of(
    st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,10}[a-z0-9])?){0,2}", fullmatch=True),
    st.ip_addresses().map(str),
).map(parse_host)
paths = st.from_regex(r"(/[a-zA-Z0-9._~-]{0,8}){0,3}", fullmatch=True)
options = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), st.from_regex(r"[a-zA-Z0-9=.:]{0,9}", fullmatch=True), max_size=3
)
urls = st.one_of(
    st.builds(
        RegistryUrl, st.sampled_from(["consul", "etcd"]),
        st.lists(st.tuples(hosts, st.integers(0, 65535)), min_size=1, max_size=3).map(tuple), paths, options,
    ),
    st.builds(RegistryUrl, st.sampled_from(["memory", "local", "static"]), st.just(()), paths, options),
)  # fmt: skip


@given(urls)
def test_a_url_survives_its_text(url: RegistryUrl) -> None:
    assert RegistryUrl.parse(str(url)) == url


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_value_error(text: str) -> None:
    for candidate in (text, f"consul://{text}", f"etcd://{text}", f"static://{text}"):
        try:
            url = RegistryUrl.parse(candidate)
        except ValueError:
            continue
        assert RegistryUrl.parse(str(url)) == url


# -- the rest


def test_heartbeats_are_a_third_of_the_ttl() -> None:
    assert Settings(ttl=30.0).heartbeat == 10.0


def test_where_state_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state_dir() == str(tmp_path / "meshlib")
    assert Settings().state_path == tmp_path / "meshlib"
    assert Settings(state_dir="/x").state_path == Path("/x")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert "/meshlib-" in default_state_dir()


def test_a_home_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def exists(path: Path) -> bool:
        return str(path) in ("/root", "/")

    monkeypatch.setenv("XDG_STATE_HOME", "/root/.local/state")
    monkeypatch.setattr("meshlib.settings.os.path.exists", exists)
    monkeypatch.setattr("meshlib.settings.os.access", lambda path, _: False)
    assert "/meshlib-" in default_state_dir()


def test_the_table_names_every_knob_once() -> None:
    lines = table().splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == [env_name(knob.name) for knob in knobs()]
    assert all(line.count(" | ") == 3 and line.startswith("| ") and line.endswith(" |") for line in lines if "---" not in line)


def test_examples_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isfile", lambda _: True)
    Settings.load(environ={env_name(knob.name): knob.metadata["example"] for knob in knobs()})


def test_the_module_prints_the_table() -> None:
    done = subprocess.run([sys.executable, "-m", "meshlib.settings"], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n") == table()


@pytest.mark.parametrize("path", generate_docs.pages(), ids=lambda path: path.name)
def test_the_generated_docs_are_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generate_docs.pages()[path], "run `make docs`"
