"""An ASGI app under the provider's layers: each request is a call, and sending it is running the app.

Nothing is buffered: what the app sends goes out at once. The call is answered when the app has returned, so what layers hold is
held until then; when the head of the answer stood is noted, for whoever measures latency (how fast a client reads says nothing
of the app).
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from meshlib import deadline, priorities
from meshlib.errors import ConfigError, DeadlineExceeded, Refused
from meshlib.flow import INCOMING, Call, RawHeaders, arun
from meshlib.model import ServiceUrl
from meshlib.server.order import NONE, ProviderStack
from meshlib.server.problems import Said, given, problem
from meshlib.server.types import AsgiApp, Message, Receive, Scope, SendMessage

_DEADLINE: Final = deadline.HEADER.lower().encode("ascii")
_PRIORITY: Final = priorities.HEADER.lower().encode("ascii")


def governed_asgi(app: AsgiApp, stack: ProviderStack = NONE) -> AsgiApp:
    """``app``, in which calls are bound by the deadline that a request brings in its header ``X-Mesh-Deadline`` and have its
    priority, under the layers of ``stack``. Requests that are refused are answered with a problem document; errors of the app
    go on. Tasks that the app begins inherit the deadline: ``meshlib.until(None)`` frees those that outlive the request."""

    async def governed(scope: Scope, receive: Receive, send: SendMessage) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        left, level = _said(scope)
        end = None if left is None else deadline.now() + left
        before = priorities.enter(level)
        try:
            with deadline.until(end):
                if stack.proceed is not None:
                    await _Request(app, scope, receive, send, stack, end=end).serve()
                elif left == 0:
                    await _say(scope, send, problem(DeadlineExceeded("no time is left")))
                else:
                    await app(scope, receive, send)
        finally:
            priorities.enter(before)

    return governed


def _said(scope: Scope) -> tuple[float | None, str]:
    """The seconds that are left, None where nobody says; and the priority."""
    left, level = b"", ""
    for name, value in scope.get("headers", ()):
        if name == _DEADLINE:
            left = b"%s,%s" % (left, value) if left else value
        elif name == _PRIORITY:
            level = priorities.level_of(value.decode("latin-1"))
    return (deadline.seconds_of(left.decode("latin-1")) if left else None), level


def call_of(scope: Scope, service: ServiceUrl, end: float | None) -> Call:
    """The request as layers see it; ``end`` is its deadline (monotonic seconds)."""
    path = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    query = scope.get("query_string", b"")
    headers: RawHeaders = [(name, value) for name, value in scope.get("headers", ())]
    target = b"%s?%s" % (path, query) if query else path
    return Call(service, scope["method"], target, headers, replayable=False, extensions={INCOMING: True}, deadline=end)


class _Request:
    """One request: performs its call, and is its answer. ``status_code`` is 500 until the app says otherwise."""

    __slots__ = ("_app", "_begun", "_call", "_receive", "_scope", "_send", "_stack", "head_at", "headers", "status_code")

    def __init__(
        self,
        app: AsgiApp,
        scope: Scope,
        receive: Receive,
        send: SendMessage,
        stack: ProviderStack,
        *,
        end: float | None,
    ) -> None:
        self._app, self._scope, self._receive, self._send, self._stack = app, scope, receive, send, stack
        self._call = call_of(scope, stack.service, end)
        self._begun = False
        self.status_code = 500
        self.headers: dict[str, str] = {}
        self.head_at: float | None = None

    async def serve(self) -> None:
        proceed = self._stack.proceed
        assert proceed is not None
        try:
            answer = await arun(proceed, self._call, self)
        except (Refused, DeadlineExceeded) as refusal:
            if self._begun:
                raise  # the app's own, of something that it called
            await _say(self._scope, self._send, problem(refusal))
        else:
            if not self._begun:
                await _say(self._scope, self._send, given(answer))

    async def send(self, call: Call) -> Any:
        if self._begun:
            raise ConfigError("policies", "asked twice for the answer to one request", example="policies=[bulkhead(20)]")
        end = call.deadline
        if end is not None and end <= deadline.now():
            raise DeadlineExceeded("no time is left", service=call.target)
        self._begun = True
        with deadline.until(end):
            await self._app(self._scope, self._receive, self._tell)
        return self

    async def _tell(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.head_at = self._stack.site.clock()
            self.status_code = message["status"]
            said = message.get("headers", ())
            if self.status_code in (429, 503):
                self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in said}
            fields = self._stack.fields(self._call)
            if fields:
                more = [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in fields]
                message = {**message, "headers": [*said, *more]}
        await self._send(message)

    def hold(self, response: Any, call: Call) -> None:  # noqa: ARG002 - the answer is complete
        call.close()

    async def drop(self, response: Any) -> None:
        """It is out already."""


async def _say(scope: Scope, send: SendMessage, said: Said) -> None:
    status, headers, body = said
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})
