"""``MESH_*`` → one frozen :class:`Settings`. Every knob of the library is declared here, once.

Precedence, strongest first: arguments given in code to :class:`Settings`; the environment; a framework's own settings;
defaults. An error names the variable, where its value came from, what is wrong, and an example.

``python -m meshlib.settings`` prints the table of docs/settings.md.
"""

# ruff: noqa: RUF009 - _knob() is a field()
from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshlib import values as read
from meshlib.errors import ConfigError
from meshlib.fields import doubt
from meshlib.model import NO_LABELS, parse_host
from meshlib.security.secret import Secret
from meshlib.text import nearest
from meshlib.values import RegistryUrl

__all__ = ["RegistryUrl", "Settings", "default_state_dir", "env_name", "knobs", "table"]

log = logging.getLogger(__name__)


def default_state_dir() -> str:
    """Where snapshots live: the XDG state directory, or a directory of this user's under the temporary one."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    base = Path(home) / "meshlib"
    probe = next(p for p in (base, *base.parents) if os.path.exists(p))  # Path.exists() raises where it may not look
    if home.startswith("/") and os.access(probe, os.W_OK):
        return str(base)
    return os.path.join(tempfile.gettempdir(), f"meshlib-{os.getuid()}")


def _knob(default: Any, parse: Callable[[Any], Any], doc: str, example: str) -> Any:
    metadata = {"default": default, "parse": parse, "doc": doc, "example": example}
    return field(default_factory=lambda: default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """Everything that can be set, checked. ``sources`` says where each value that is not a default came from."""

    service: str = _knob("", read.service, "Name this process registers under.", "orders")
    namespace: str = _knob("", read.namespace, "`app.env`: services of other namespaces are not seen.", "shop.prod")
    registry: RegistryUrl = _knob(
        RegistryUrl("local"), read.registry,
        "Where instances are listed: one URL, several hosts separated by commas are failover.",
        "consul://10.0.0.1:8500,10.0.0.2:8500",
    )  # fmt: skip
    registry_token: Secret | None = _knob(None, read.secret, "ACL token of the registry.", "9b1f…")
    registry_token_file: str = _knob("", read.file, "File with the token; read again when it changes.", "/run/secrets/token")
    registry_user: str = _knob("", read.text, "User at the registry (etcd).", "meshlib")
    registry_password: Secret | None = _knob(None, read.secret, "Its password.", "…")
    registry_password_file: str = _knob("", read.file, "File with the password.", "/run/secrets/password")
    registry_ca: str = _knob("", read.file, "CA that signed the registry's certificate (PEM); turns TLS on.", "/etc/ca.pem")
    registry_cert: str = _knob("", read.file, "Our certificate for mutual TLS (PEM).", "/etc/client.pem")
    registry_key: str = _knob("", read.file, "Its key (PEM).", "/etc/client.key")
    host: str = _knob("0.0.0.0", parse_host, "Address `mesh.listen()` binds.", "127.0.0.1")  # noqa: S104
    port: int = _knob(0, read.port, "Port this process serves on.", "8080")
    advertise: str = _knob(
        "", read.advertise, "`host[:port]` that others call; default: the source address of the route to the registry.",
        "10.0.0.5:8080",
    )  # fmt: skip
    scheme: str = _knob("http", read.choice("http", "https"), "How others call this process.", "https")
    instance_id: str = _knob("", read.instance_id, "Id of this instance; default `service-host-port`.", "orders-1")
    version: str = _knob("", read.attribute, "Version of this service.", "1.4.2")
    zone: str = _knob("", read.attribute, "Zone this process runs in.", "eu-west-1a")
    weight: int = _knob(1, read.weight, "Share of traffic for weighted picking, 0 to 10000.", "10")
    labels: Mapping[str, str] = _knob(NO_LABELS, read.labels, "Labels of this instance.", "team=pay,track=canary")
    ttl: float = _knob(15.0, read.seconds, "Seconds after which an instance that stopped heartbeating is gone; a heartbeat "
                       "is sent every third of it.", "30")  # fmt: skip
    check: str = _knob("ttl", read.choice("ttl", "http"), "Consul: `ttl`, or `http` to have Consul probe us.", "http")
    health_path: str = _knob("", read.url_path, "Path of the app that Consul probes with `check=http`; default: the health "
                             "that we serve, `/actuator/health`.", "/healthz")  # fmt: skip
    state_dir: str = _knob("", read.text, "Directory of the disk snapshots, and of the locks by which processes that serve "
                           "the same port have one entry; default below the user's state directory.",
                           "/var/lib/shop")  # fmt: skip
    snapshot_max_age: float = _knob(259_200.0, read.seconds, "Hard age, seconds: an older disk snapshot or suspect is not "
                                    "used.", "86400")  # fmt: skip
    cold_start_grace: float = _knob(0.1, read.seconds, "Seconds the first call waits for the registry while a disk snapshot "
                                    "is at hand.", "0.05")  # fmt: skip
    cold_start_timeout: float = _knob(3.0, read.seconds, "Seconds the first call waits for the registry with no snapshot.",
                                      "1")  # fmt: skip
    policies: str = _knob("on", read.choice("on", "off"), "Whether policy documents of the registry's key-value store are "
                          "followed.", "off")  # fmt: skip
    policy_max_age: float = _knob(604_800.0, read.seconds, "Hard age, seconds: a policy document that no store has confirmed "
                                  "for longer is not used, unless it says otherwise itself.", "86400")  # fmt: skip
    watch_idle: float = _knob(600.0, read.seconds, "Seconds after which a service that nobody calls is no longer watched.",
                              "3600")  # fmt: skip
    stale_max: float = _knob(10.0, read.seconds, "Consul: how far behind its leader, in seconds, a follower may answer.", "5")
    registry_timeout: float = _knob(3.0, read.seconds, "Seconds the registry has for one answer (watches excepted).", "5")
    connect_timeout: float = _knob(1.0, read.seconds, "Seconds to connect to an instance.", "0.5")
    timeout: float = _knob(10.0, read.seconds, "Seconds a call may take unless its client says otherwise.", "2")
    picker: str = _knob("peak_ewma", read.text, "How clients that say nothing else choose an instance: the name of a picker.",
                        "round_robin")  # fmt: skip
    probe: str = _knob("tcp", read.probe, "How an instance is asked whether it is back: `tcp` connects, a path is requested "
                       "and must be answered with less than 500.", "/actuator/health")  # fmt: skip
    ping: float = _knob(0.0, read.pause, "Seconds between two probes of each healthy instance; 0: only those in doubt are "
                        "probed.", "10")  # fmt: skip
    ejection_time: float = _knob(30.0, read.seconds, "Seconds for which an instance that does worse than the others is not "
                                 "called; doubled each time.", "10")  # fmt: skip
    ejection_share: float = _knob(0.5, read.share, "Largest share of the instances that is taken out for doing worse than the "
                                  "others; 0 turns this off.", "0.2")  # fmt: skip
    panic_threshold: float = _knob(0.3, read.share, "Share of healthy instances below which those that do worse are called "
                                   "all the same.", "0.5")  # fmt: skip
    metrics: str = _knob("on", read.choice("on", "off", "shared"), "Whether calls and requests are counted; `shared`: the "
                         "processes that register one port leave their counts in the state directory, so that any of them can "
                         "tell those of all.", "shared")  # fmt: skip
    host_header: str = _knob("instance", read.choice("instance", "service"), "`Host` header and TLS server name of calls: the "
                             "instance's address or the service's name.", "service")  # fmt: skip
    tls_ca: str = _knob(
        "", read.file, "CA that signed the instances' certificates (PEM); default: the system's.", "/etc/ca.pem"
    )
    tls_cert: str = _knob("", read.file, "Our certificate for mutual TLS with instances (PEM).", "/etc/client.pem")
    tls_key: str = _knob("", read.file, "Its key (PEM).", "/etc/client.key")
    drain_wait: float = _knob(0.0, read.pause, "Seconds between deregistering and refusing work, beyond what the "
                              "registry needs to tell everybody; 35 where Spring Cloud apps call.", "35")  # fmt: skip
    drain_timeout: float = _knob(30.0, read.pause, "Seconds that calls in flight have to finish on shutdown.", "10")
    management: str = _knob("on", read.choice("on", "off"), "Serve the management endpoints (`/healthz`, `/readyz`, "
                            "`/actuator/health`, `/actuator/info`).", "off")  # fmt: skip
    management_path: str = _knob("", read.prefix, "What their paths begin with.", "/ops")
    management_port: int = _knob(0, read.port, "A port of their own, at MESH_HOST; 0: where the app is served.", "9090")
    management_token: Secret | None = _knob(None, read.secret, "Bearer token for details of the health, for info and metrics; "
                                            "bare statuses need none.", "6c1e…")  # fmt: skip
    management_token_file: str = _knob("", read.file, "File with that token; read again when it changes.",
                                       "/run/secrets/management")  # fmt: skip
    management_allow: tuple[str, ...] = _knob((), read.networks, "Networks whose hosts may ask them anything; default: all.",
                                              "127.0.0.0/8,10.0.0.0/8")  # fmt: skip
    management_metrics: str = _knob("off", read.choice("on", "off"), "Serve `/metrics` for Prometheus beside them.", "on")
    sources: Mapping[str, str] = field(default_factory=lambda: NO_LABELS, compare=False, repr=False)

    if TYPE_CHECKING:
        # What may be passed is wider than what is read: every value may also be text, as the environment has it.
        def __init__(self, **values: Any) -> None: ...
    else:

        def __new__(cls, **values: Any) -> Settings:
            for name in values.keys() - {"sources"}:
                _check_name(name, name, "code")
            return object.__new__(cls)

    def __post_init__(self) -> None:
        for knob in knobs():
            object.__setattr__(self, knob.name, _parsed(knob, getattr(self, knob.name), self.sources))
        self._check_pairs()
        for name in ("timeout", "connect_timeout", "registry_timeout"):
            doubt(env_name(name), getattr(self, name))

    def _check_pairs(self) -> None:
        for one, other in (("registry_cert", "registry_key"), ("tls_cert", "tls_key")):
            if bool(getattr(self, one)) != bool(getattr(self, other)):
                missing = other if getattr(self, one) else one
                given = one if missing == other else other
                raise ConfigError(env_name(missing), f"is missing, but {env_name(given)} is set",
                                  source=self.sources.get(given, "code"), example="both or neither")  # fmt: skip

    @classmethod
    def load(
        cls,
        *,
        environ: Mapping[str, str] | None = None,
        framework: Mapping[str, Any] | None = None,
        source: str = "framework settings",
        **code: Any,
    ) -> Settings:
        """Settings from ``environ`` (default: ``os.environ``) over ``framework`` (keys as the field names, any case) over
        defaults; ``code`` overrides them all. None is not set. Raises :class:`ConfigError`."""
        environ = os.environ if environ is None else environ
        names = {knob.name for knob in knobs()}
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for key, value in (framework or {}).items():
            name = key.lower().removeprefix("mesh_")
            _check_name(name, key, source)
            if value is not None and value != "":
                values[name], sources[name] = value, source
        for name, value in _environment(environ, names):
            values[name], sources[name] = value, "environment"
        for name, value in code.items():
            _check_name(name, name, "code")
            if value is not None:
                values[name], sources[name] = value, "code"
        return cls(**values, sources=sources)

    def changed(self, **values: Any) -> Settings:
        """A copy with ``values`` set in code."""
        return replace(self, **values, sources={**self.sources, **dict.fromkeys(values, "code")})

    def source(self, name: str) -> str:
        """Where the value of ``name`` came from: ``"environment"``, ``"code"``, ``"default"`` …"""
        knob = next(knob for knob in knobs() if knob.name == name)
        unsaid = "default" if getattr(self, name) == knob.metadata["default"] else "code"
        return self.sources.get(name, unsaid)

    @property
    def token(self) -> Secret | None:
        """The registry's token, from its text or its file."""
        return Secret(path=self.registry_token_file) if self.registry_token_file else self.registry_token

    @property
    def password(self) -> Secret | None:
        """The registry's password, from its text or its file."""
        return Secret(path=self.registry_password_file) if self.registry_password_file else self.registry_password

    @property
    def management_secret(self) -> Secret | None:
        """The management token, from its text or its file."""
        return Secret(path=self.management_token_file) if self.management_token_file else self.management_token

    def health_url(self, scheme: str, host: str, port: int) -> str:
        """Where the health of the instance at ``host`` and ``port`` is asked for, by who probes it."""
        own, path = self.management_port, self.health_path or f"{self.management_path}/actuator/health"
        if own and not self.health_path:
            scheme, port = "http", own
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{path}"

    @property
    def state_path(self) -> Path:
        """The state directory, with its default."""
        return Path(self.state_dir or default_state_dir())

    @property
    def heartbeat(self) -> float:
        """Seconds between two heartbeats: two may be lost before the registration is."""
        return self.ttl / 3


def _check_name(name: str, given: str, source: str) -> None:
    names = [knob.name for knob in knobs()]
    if name not in names:
        raise ConfigError(given, "is not a setting", source=source, example=nearest(name, names) or "registry")


def _environment(environ: Mapping[str, str], names: set[str]) -> Iterable[tuple[str, str]]:
    """What ``environ`` sets. An empty variable is an unset one, as containers pass them."""
    for key, near in unknown(environ):
        log.warning("%s is not a setting of meshlib%s", key, f"; did you mean {near}?" if near else "")
    for key, value in environ.items():
        if key.startswith("MESH_") and key[5:].lower() in names and value:
            yield key[5:].lower(), value


def unknown(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """The variables of ``environ`` that begin as ours and are none, each with the one that was probably meant, if any."""
    names = {knob.name for knob in knobs()}
    near = {key: nearest(key[5:].lower(), names) for key in environ if key.startswith("MESH_") and key[5:].lower() not in names}
    return [(key, env_name(name) if name else "") for key, name in near.items()]


def knobs() -> list[Any]:
    """The dataclass fields that can be set, in order."""
    return [knob for knob in fields(Settings) if "parse" in knob.metadata]


def env_name(name: str) -> str:
    """The environment variable of a setting."""
    return f"MESH_{name.upper()}"


def _parsed(knob: Any, value: Any, sources: Mapping[str, str]) -> Any:
    default = knob.metadata["default"]
    if value is default or value is None or value == "":
        return default
    try:
        return knob.metadata["parse"](value)
    except ValueError as problem:
        text = str(problem)
    except (TypeError, AttributeError):
        text = f"a {type(value).__name__} is of no use here"
    source = sources.get(knob.name, "code")
    raise ConfigError(env_name(knob.name), text, source=source, example=knob.metadata["example"])


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| variable | default | meaning | example |", "|---|---|---|---|"]
    for knob in knobs():
        default = knob.metadata["default"]
        default = "" if default in ("", None, (), NO_LABELS) else f"`{default}`"
        rows.append(f"| `{env_name(knob.name)}` | {default} | {knob.metadata['doc']} | `{knob.metadata['example']}` |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())  # noqa: T201 - that is its purpose
