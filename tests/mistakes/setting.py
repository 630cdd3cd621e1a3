"""Settings with wrong names, wrong values, and libraries that are not there."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from meshlib import ConfigError, Mesh, MissingExtra, Settings, rate_limit
from meshlib.policies.base import Site
from tests.mistakes.corpus import raises, warns


def loaded(**environ: str) -> Settings:
    return Settings.load(environ={f"MESH_{name}": value for name, value in environ.items()})


@raises(ConfigError, "MESH_PORT (from environment)", "'80a' is not a port (0 to 65535", "8080")
def port_that_is_no_number() -> None:
    loaded(PORT="80a")


@raises(ConfigError, "MESH_PORT (from environment)", "'70000' is not a port", "8080")
def port_that_is_too_high() -> None:
    loaded(PORT="70000")


@warns("MESH_REGISTY is not a setting of meshlib", "did you mean MESH_REGISTRY?")
def variable_with_a_typo() -> None:
    loaded(REGISTY="memory://")


@raises(ConfigError, "REGISTY (from settings.MESH)", "is not a setting", "for example registry")
def setting_of_a_framework_with_a_typo() -> None:
    Settings.load(environ={}, framework={"REGISTY": "memory://"}, source="settings.MESH")


@raises(ConfigError, "servce (from code)", "is not a setting", "for example service")
def setting_in_code_with_a_typo() -> None:
    Settings(servce="orders")


@raises(ConfigError, "servce (from code)", "is not a setting", "for example service")
def setting_over_the_environment_with_a_typo() -> None:
    Mesh.from_env(servce="orders")


@raises(ConfigError, "MESH_REGISTRY (from environment)", "not a URL", "consul://10.0.0.1:8500")
def registry_without_a_scheme() -> None:
    loaded(REGISTRY="localhost:8500")


@raises(ConfigError, "MESH_REGISTRY (from environment)", "'consol', did you mean consul://", "consul://10.0.0.1:8500")
def registry_with_an_unknown_scheme() -> None:
    loaded(REGISTRY="consol://localhost:8500")


@raises(ConfigError, "MESH_REGISTRY (from environment)", "no user or password in it", "use MESH_REGISTRY_USER and _PASSWORD")
def registry_with_credentials() -> None:
    loaded(REGISTRY="etcd://bob:hunter2@localhost:2379")


@raises(ConfigError, "MESH_REGISTRY (from environment)", "unknown option 'tokn' (known: dc", "consul://127.0.0.1:8500")
def registry_with_an_unknown_option() -> None:
    Mesh(loaded(REGISTRY="consul://localhost:8500?tokn=1"))


@raises(ConfigError, "MESH_REGISTRY (from environment)", "port '99999' is not in 1..65535", "consul://10.0.0.1:8500")
def registry_at_a_port_that_is_none() -> None:
    loaded(REGISTRY="consul://localhost:99999")


@raises(ConfigError, "MESH_SERVICE (from environment)", "'My_Orders' is no service name", "(try 'my-orders')", "orders")
def service_that_cannot_be_registered() -> None:
    loaded(SERVICE="My_Orders")


@raises(ConfigError, "MESH_NAMESPACE (from environment)", "'prod' is not of the form app.env", "shop.prod")
def namespace_with_one_part() -> None:
    loaded(NAMESPACE="prod")


@raises(ConfigError, "MESH_ADVERTISE (from environment)", "0.0.0.0 is not an address that others can call", "10.0.0.5:8080")
def address_that_nobody_can_call() -> None:
    loaded(ADVERTISE="0.0.0.0:8080")


@raises(ConfigError, "MESH_TIMEOUT (from environment)", "'2s' is not a number of seconds", "for example 2")
def seconds_with_a_unit() -> None:
    loaded(TIMEOUT="2s")


@raises(ConfigError, "MESH_TIMEOUT (from environment)", "0 is not a positive number of seconds", "for example 2")
def no_time() -> None:
    loaded(TIMEOUT="0")


@warns("MESH_TIMEOUT is 2000 seconds, which is 33 minutes", "milliseconds?", "for example 2")
def milliseconds() -> None:
    loaded(TIMEOUT="2000")


@raises(ConfigError, "MESH_PICKER (from environment)", "'round-robin' is none of peak_ewma", "for example round_robin")
def picker_with_a_dash() -> None:
    Mesh(loaded(PICKER="round-robin", REGISTRY="memory://"))


@raises(ConfigError, "MESH_REGISTRY_TOKEN_FILE (from environment)", "there is no file of that name", "/run/secrets/token")
def token_in_place_of_its_file() -> None:
    loaded(REGISTRY_TOKEN_FILE="9b1f-secret")


@raises(ConfigError, "MESH_TLS_KEY (from environment)", "is missing, but MESH_TLS_CERT is set", "both or neither")
def certificate_without_its_key(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").touch()
    loaded(TLS_CERT=str(tmp_path / "cert.pem"))


@raises(ConfigError, "MESH_METRICS (from environment)", "'yes' is none of on, off, shared", "shared")
def choice_that_is_none() -> None:
    loaded(METRICS="yes")


@raises(ConfigError, "MESH_LABELS (from environment)", "'canary' is not of the form key=value", "track=canary")
def label_without_a_value() -> None:
    loaded(LABELS="canary")


@raises(ConfigError, "MESH_MANAGEMENT_ALLOW (from environment)", "is no network", "127.0.0.0/8")
def network_that_is_none() -> None:
    loaded(MANAGEMENT_ALLOW="10.0.0.1/8")


# -- libraries that are not there


@raises(MissingExtra, "MESH_REGISTRY (from environment)", "'py-consul', which is not installed", "'meshlib-cloud[consul]'")
def consul_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "consul", None)
    monkeypatch.delitem(sys.modules, "meshlib.backends.consul_http", raising=False)
    Mesh(loaded(REGISTRY="consul://localhost:8500"))


@raises(MissingExtra, 'rate_limit(scope="redis") (from code)', "needs the library 'limits'", "'meshlib-cloud[redis]'")
def redis_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("limits", "limits.aio", "limits.storage", "limits.strategies", "redis"):
        monkeypatch.setitem(sys.modules, name, None)
    rate_limit("10/s", scope="redis", url="redis://localhost").bind(Site())


@raises(MissingExtra, "meshlib_contrib.flask (from code)", "'flask', which is not installed", "'meshlib-cloud[flask]'")
def flask_without_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flask", None)
    monkeypatch.delitem(sys.modules, "meshlib_contrib.flask", raising=False)
    import_module("meshlib_contrib.flask")


@raises(MissingExtra, "meshlib_contrib.fastapi (from code)", "'fastapi', which is not installed", "'meshlib-cloud[fastapi]'")
def fastapi_without_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "meshlib_contrib.fastapi", raising=False)
    import_module("meshlib_contrib.fastapi")


@raises(MissingExtra, "meshlib_contrib.litestar (from code)", "'litestar', which is not installed", "'meshlib-cloud[litestar]'")
def litestar_without_litestar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litestar", None)
    monkeypatch.delitem(sys.modules, "meshlib_contrib.litestar", raising=False)
    import_module("meshlib_contrib.litestar")


@raises(MissingExtra, "meshlib_contrib.prometheus (from code)", "'prometheus_client'", "'meshlib-cloud[prometheus]'")
def prometheus_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prometheus_client", "prometheus_client.registry"):
        monkeypatch.setitem(sys.modules, name, None)
    from meshlib_contrib.prometheus import collector

    collector(Mesh(loaded(REGISTRY="memory://")))
