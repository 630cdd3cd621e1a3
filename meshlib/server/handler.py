"""Requests as a framework has them, for middleware that is a function of a request: what :meth:`meshlib.Mesh.wsgi` does to an
app is done here to a function that answers, blocking or awaited.

The call is answered when there is a response; what is held for it is held until the framework says that it is over.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from meshlib import deadline, priorities
from meshlib.errors import ConfigError, DeadlineExceeded, Refused
from meshlib.flow import INCOMING, Call, Next, arun, run
from meshlib.server.in_flight import InFlight
from meshlib.server.order import ProviderStack

R = TypeVar("R")

Ending = Callable[[], object]

_served: ContextVar[object] = ContextVar("meshlib.served", default=None)
"""A mark of the request whose deadline and priority are those of this thread or task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """One request. ``target`` is its path and query, quoted; ``deadline`` and ``priority`` are what their headers say, if
    anything. ``route`` says, once there is a response, which of the app's routes it took; ``when_over`` takes what is to be
    called once, when that has been sent or given up."""

    method: str
    target: str
    headers: Callable[[], Iterable[tuple[str, str]]]
    deadline: str
    priority: str
    route: Callable[[], str]
    when_over: Callable[[Ending], object]


class Counted(Protocol):
    """A request being counted: :class:`meshlib.metrics.server.Request`."""

    status: int

    def failed(self, problem: BaseException) -> None: ...
    def end(self, route: str) -> None: ...


class Handler(Generic[R]):
    """Serves requests under ``stack``. Responses have a ``status_code``, and ``headers`` that can be set; ``refuse`` makes one
    for a request that is not served. ``count`` begins to count one of a method, where somebody wants to know."""

    def __init__(
        self,
        stack: ProviderStack,
        in_flight: InFlight,
        refuse: Callable[[Refused | DeadlineExceeded], R],
        count: Callable[[str], Counted] | None = None,
    ) -> None:
        self.stack, self.in_flight, self.refuse, self.count = stack, in_flight, refuse, count

    def serve(self, incoming: Incoming, answer: Callable[[], R]) -> R:
        """What ``answer()`` returns, unless the request is refused."""
        request = _Request(self, incoming)
        try:
            try:
                proceed = request.way()
                response = answer() if proceed is None else run(proceed, request.call(incoming), _Sender(request, answer))
            except (Refused, DeadlineExceeded) as refusal:
                response = self.refuse(request.refused(refusal))
            return request.answered(response, incoming)  # type: ignore[no-any-return]
        except BaseException as problem:
            request.fail(problem, incoming)
            raise

    async def aserve(self, incoming: Incoming, answer: Callable[[], Awaitable[R]]) -> R:
        """The same, awaited."""
        request = _Request(self, incoming)
        try:
            try:
                proceed = request.way()
                if proceed is None:
                    response = await answer()
                else:
                    response = await arun(proceed, request.call(incoming), _AsyncSender(request, answer))
            except (Refused, DeadlineExceeded) as refusal:
                response = self.refuse(request.refused(refusal))
            return request.answered(response, incoming)  # type: ignore[no-any-return]
        except BaseException as problem:
            request.fail(problem, incoming)
            raise


class _Request:
    """One request, from its coming until it is over. It does not hold the framework's request, whose end it may depend on."""

    def __init__(self, handler: Handler[Any], incoming: Incoming) -> None:
        self._stack, self._in_flight = handler.stack, handler.in_flight
        self._counted = None if handler.count is None else handler.count(incoming.method)
        self._place = self._in_flight.begin()
        self._held: list[Call] = []
        self._call: Call | None = None
        self._route, self._begun = "", False
        left = deadline.seconds_of(incoming.deadline) if incoming.deadline else None
        self._late, self._end = left == 0, None if left is None else time.monotonic() + left
        # Set even when they are none: a thread serves one request after the other.
        self._before = deadline.enter(self._end), priorities.enter(priorities.level_of(incoming.priority)), _served.get()
        self._mark = object()
        _served.set(self._mark)

    def way(self) -> Next | None:
        """What is between it and the app; None for nothing. Raises :class:`DeadlineExceeded` where nobody else would."""
        if self._late and self._stack.proceed is None:
            raise DeadlineExceeded("no time is left")
        return self._stack.proceed

    def call(self, incoming: Incoming) -> Call:
        """It as layers see it."""
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in incoming.headers()]
        self._call = Call(
            self._stack.service, incoming.method, incoming.target.encode("latin-1"), headers,
            replayable=False, extensions={INCOMING: True}, deadline=self._end,
        )  # fmt: skip
        return self._call

    def begin(self, call: Call) -> None:
        """The layers have let it through."""
        if self._begun:
            raise ConfigError("policies", "asked twice for the answer to one request", example="policies=[bulkhead(20)]")
        if call.deadline is not None and call.deadline <= time.monotonic():
            raise DeadlineExceeded("no time is left", service=call.target)
        self._begun, self._end = True, call.deadline
        deadline.enter(call.deadline)

    def refused(self, error: Refused | DeadlineExceeded) -> Refused | DeadlineExceeded:
        """``error``, unless it is the app's own, of something that it called."""
        if self._begun:
            raise error
        return error

    def answered(self, response: Any, incoming: Incoming) -> Any:
        """There is a response."""
        if self._call is not None and self._begun:
            for name, value in self._stack.fields(self._call):
                response.headers[name] = value
        if self._counted is not None:
            self._counted.status, self._route = response.status_code, incoming.route()
        incoming.when_over(self.over)
        return response

    def fail(self, problem: BaseException, incoming: Incoming) -> None:
        """There is none."""
        try:
            if self._counted is not None:
                self._counted.failed(problem)
                self._route = incoming.route()
        finally:
            self.over()

    def hold(self, call: Call) -> None:
        """Close ``call`` when it is over."""
        self._held.append(call)

    def over(self) -> None:
        """Its response has been sent, or given up. In another thread or task than its own, which may serve another request as
        this one is collected, there is no deadline to leave."""
        self._in_flight.end(self._place)
        if _served.get() is self._mark:
            deadline.enter(self._before[0])
            priorities.enter(self._before[1])
            _served.set(self._before[2])
        for call in self._held:
            call.close()
        if self._counted is not None:
            self._counted.end(self._route)


@dataclass(frozen=True, slots=True)
class _Sender:
    request: _Request
    answer: Callable[[], Any]

    def send(self, call: Call) -> Any:
        self.request.begin(call)
        return self.answer()

    def hold(self, response: Any, call: Call) -> None:  # noqa: ARG002 - its end is the request's
        self.request.hold(call)

    def drop(self, response: Any) -> None:
        response.close()


@dataclass(frozen=True, slots=True)
class _AsyncSender:
    request: _Request
    answer: Callable[[], Awaitable[Any]]

    async def send(self, call: Call) -> Any:
        self.request.begin(call)
        return await self.answer()

    def hold(self, response: Any, call: Call) -> None:  # noqa: ARG002 - as above
        self.request.hold(call)

    async def drop(self, response: Any) -> None:
        response.close()
