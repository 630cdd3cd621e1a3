"""``call`` and ``explain``: a governed call, and why it goes where."""

from __future__ import annotations

import base64
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from meshlib.cli.arguments import Name
from meshlib.cli.facts import Answered, Explained
from meshlib.cli.session import Session
from meshlib.errors import ConfigError, MeshError
from meshlib.mesh import Mesh
from meshlib.model import Instance, ServiceUrl
from meshlib.transport import INSTANCE

Headers = Annotated[list[str] | None, typer.Option("--header", "-H", metavar="NAME:VALUE", help="May be given several times.")]


def call(
    session: Session,
    name: Name,
    method: Annotated[str, typer.Argument(metavar="METHOD")],
    path: Annotated[str, typer.Argument(metavar="PATH")],
    *,
    header: Headers = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="The body; @FILE reads it, @- from standard input.")] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds for all of it.", min=0.001)] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why it went where it did, too.")] = False,
) -> Answered:
    """Call a service by its name, as an app would: balanced, with failover, under its policy documents. The body goes to
    standard output, the rest to standard error. The exit code is 1 for an error status."""
    given, body = headers(header), content(data)
    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    target = checked(path)
    with session.mesh() as mesh:
        with mesh.http(name, **options) as client:
            started = time.perf_counter()
            response = client.request(method.upper(), target, headers=given, content=body)
            took = time.perf_counter() - started
            why = _explained(mesh, name, method, target, given) if explain else None
        service = str(ServiceUrl.parse(name, namespace=mesh.settings.namespace))
    return _answer(response, service, target, took, why)


def _answer(response: httpx2.Response, service: str, path: str, took: float, why: Explained | None) -> Answered:
    instance: Instance | None = response.extensions.get(INSTANCE)
    text, encoded = _text(response)
    return Answered(
        service=service, method=response.request.method, path=path, status=response.status_code, seconds=took,
        instance=instance.id if instance else "", address=instance.netloc if instance else "",
        headers=list(response.headers.multi_items()), body=text, base64=encoded, explanation=why,
    )  # fmt: skip


def _text(response: httpx2.Response) -> tuple[str, bool]:
    try:
        return response.content.decode(response.charset_encoding or "utf-8"), False
    except (UnicodeDecodeError, LookupError):
        return base64.b64encode(response.content).decode(), True


def explain(
    session: Session,
    name: Name,
    *,
    method: Annotated[str, typer.Option("--method")] = "GET",
    path: Annotated[str, typer.Option("--path")] = "/",
    header: Headers = None,
) -> Explained:
    """Say where a call to a service would go, and of every instance why. The exit code is 1 if it would go nowhere."""
    with session.mesh() as mesh:
        return _explained(mesh, name, method, checked(path), headers(header))


def _explained(mesh: Mesh, name: str, method: str, path: str, given: dict[str, str]) -> Explained:
    """A client is made so that there is one to explain: what governs it is the service's document, which comes a moment after
    the first look."""
    version, give_up = _version(mesh, name), time.monotonic() + mesh.settings.cold_start_timeout
    with mesh.http(name):
        while True:
            found = mesh.explain(name, method=method, path=path, headers=given)
            origins = [way.origin for way in found.ways if way.origin is not None]
            if not version or any(one.version >= version for one in origins) or time.monotonic() > give_up:
                return Explained.of(found)
            time.sleep(0.02)


def _version(mesh: Mesh, name: str) -> int:
    """That of the service's document, 0 where there is none, or nobody says so."""
    if mesh.settings.policies == "off":
        return 0
    try:
        document = mesh.policies.get(ServiceUrl.parse(name, namespace=mesh.settings.namespace).name)
    except (MeshError, TimeoutError):
        return 0
    return 0 if document is None else document.version


def checked(path: str) -> str:
    """``path``, unless it is none. Raises :class:`ConfigError`."""
    if not path.startswith("/"):
        raise ConfigError("PATH", f"{path[:80]!r} does not start with a slash", source="command line", example="/orders/7")
    return path


def headers(given: list[str] | None) -> dict[str, str]:
    """The headers of ``name:value`` texts. Raises :class:`ConfigError`."""
    found = {}
    for text in given or ():
        name, colon, value = text.partition(":")
        if not colon or not name.strip() or not text.isascii() or not text.isprintable():
            raise ConfigError("--header", f"{text[:80]!r} is not of the form name:value", source="command line",
                              example="'X-Tenant: acme'")  # fmt: skip
        found[name.strip()] = value.strip()
    return found


def content(data: str | None) -> bytes | None:
    """The body that ``-d`` says. Raises :class:`ConfigError` for a file that cannot be read."""
    if data is None or not data.startswith("@"):
        return None if data is None else data.encode()
    return read(data[1:])


def read(name: str) -> bytes:
    """The content of a file, ``-`` for standard input. Raises :class:`ConfigError`."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as problem:
        raise ConfigError(name, f"cannot be read: {problem.strerror}", source="command line", example="a file, or -") from None
