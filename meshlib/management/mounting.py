"""The pages beside an app, in WSGI and ASGI. They stand outside of all that governs the app: a probe is not counted, not
limited, not logged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any

from meshlib.management.pages import Answer, Ask
from meshlib.server import AsgiApp, WsgiApp


def wsgi(app: WsgiApp, paths: Collection[str], pages: WsgiApp) -> WsgiApp:
    """``pages`` at ``paths``, ``app`` everywhere else."""
    if not paths:
        return app

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return (pages if environ.get("PATH_INFO") in paths else app)(environ, start_response)

    return wrapped


def wsgi_pages(answer: Callable[[Ask], Answer]) -> WsgiApp:
    """What ``answer`` says, as a WSGI app."""

    def pages(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answered = answer(ask_of(environ))
        start_response(answered.line, answered.headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [answered.body]

    return pages


def ask_of(environ: dict[str, Any]) -> Ask:
    """What a WSGI request asks for."""
    return Ask(environ.get("REQUEST_METHOD", "GET"), environ.get("PATH_INFO", ""),
               environ.get("HTTP_AUTHORIZATION", ""), environ.get("REMOTE_ADDR") or "")  # fmt: skip


def asgi(
    app: AsgiApp,
    paths: Collection[str],
    answer: Callable[[Ask], Awaitable[Answer]],
    but: Callable[[], Collection[str]],
    at_home: Callable[[], object],
) -> AsgiApp:
    """The pages at ``paths`` but those that ``but`` names, ``app`` everywhere else. ``at_home`` is called on the app's loop
    when its lifespan begins."""

    async def wrapped(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            at_home()
        elif scope["type"] == "http" and (path := path_of(scope)) in paths and path not in but():
            await tell(await answer(_ask_of(scope, path)), send, head=scope.get("method") == "HEAD")
            return
        await app(scope, receive, send)

    return wrapped


def path_of(scope: MutableMapping[str, Any]) -> str:
    """The path below what the app is mounted at, which servers and frameworks leave in it."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _ask_of(scope: MutableMapping[str, Any], path: str) -> Ask:
    shown = b"".join(value for name, value in scope.get("headers", ()) if name == b"authorization")
    client = scope.get("client")
    return Ask(scope.get("method", "GET"), path, shown.decode("latin-1"), client[0] if client else "")


async def tell(answer: Answer, send: Any, *, head: bool) -> None:
    """Send it."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})
