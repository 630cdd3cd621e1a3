"""Every error meshlib raises, as one tree.

MeshError
├── ConfigError                  a setting or parameter is wrong: names it, its source and an example
│   ├── MissingExtra             an optional library is not installed: says what to install
│   └── PortInUse                the port to listen on is taken
├── CallError                    a call by name failed: carries service, instance and what was tried
│   ├── NoInstances              nobody to call
│   ├── AttemptError             one attempt at one instance failed
│   │   ├── ConnectFailed        no byte was sent: any call may go elsewhere
│   │   ├── ConnectionLost       sent, no answer: only an idempotent call may go elsewhere
│   │   └── AttemptTimeout       sent (or waiting for a connection), and time ran out
│   ├── DeadlineExceeded         the whole call's budget is used up
│   ├── Refused                  one of our own policies did not let it go; ``retry_after`` says when it may
│   │   ├── RateLimited          the rate limit: as many as it allows have passed
│   │   ├── BulkheadFull         the bulkhead: as many as it allows are under way
│   │   ├── CircuitOpen          the circuit breaker: too many calls failed or were slow
│   │   └── Overloaded           adaptive_concurrency or shed: more than can be done, or than can be done in time
│   ├── DecodeError              the answer is not of the declared type
│   └── StatusError              the answer has an error status
│       ├── ClientError          4xx: BadRequest, Unauthorized, Forbidden, NotFound, Conflict,
│       │                        UnprocessableContent, TooManyRequests
│       └── ServerError          5xx: ServiceUnavailable, GatewayTimeout
├── RegistryError                the registry (control plane); never raised by a call
│   ├── RegistryUnavailable      unreachable, timed out or broken: retried in the background
│   ├── RegistryDenied           token, user or certificate refused
│   ├── InvalidAnswer            an answer that cannot be understood
│   └── CasConflict              compare-and-set lost: somebody wrote in between
└── StoreError                   the disk snapshot cannot be read or written
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib.model import Instance, ServiceUrl


class MeshError(Exception):
    """Base of all errors of meshlib."""


class ConfigError(MeshError):
    """A setting or a parameter is unusable.

    ``name`` is the setting or parameter, ``source`` where its value came from (``"environment"``, ``"code"``, a file),
    ``example`` a value that would work. The message never shows a secret.
    """

    def __init__(self, name: str, problem: str, *, source: str = "code", example: str = "") -> None:
        self.name, self.problem, self.source, self.example = name, problem, source, example
        hint = f"; for example {example}" if example else ""
        super().__init__(f"{name} (from {source}): {problem}{hint}")


class MissingExtra(ConfigError, ImportError):  # type: ignore[misc] # both have a name, that of what could not be had
    """An optional library is missing; ``extra`` is the extra of ``meshlib-cloud`` that brings it."""

    def __init__(self, name: str, extra: str, library: str, *, source: str = "code") -> None:
        self.extra = extra
        super().__init__(
            name,
            f"needs the library {library!r}, which is not installed",
            source=source,
            example=f"pip install 'meshlib-cloud[{extra}]'",
        )


class PortInUse(ConfigError):
    """The port to listen on is taken by another socket."""


class CallError(MeshError):
    """A call by name did not produce a usable answer.

    ``service`` is the :class:`~meshlib.model.ServiceUrl` called, ``instance`` the last
    :class:`~meshlib.model.Instance` tried (or None), ``tried`` all of them in order; :meth:`explain` says why.
    """

    history: Sequence[str] = ()
    """How each attempt failed, in order."""
    seen: object = None
    """Whom the call could have gone to, as text: the balancer's, for :meth:`explain`."""
    left: float | None = None
    """Seconds (float) that were left of the call's deadline when it failed; negative when it was over, None without one."""
    passed: tuple[object, ...] = ()
    """The policies that it passed, innermost first, as text: how they stand when somebody asks."""

    def __init__(
        self,
        message: str,
        *,
        service: ServiceUrl | None = None,
        instance: Instance | None = None,
        tried: Sequence[Instance] = (),
    ) -> None:
        self.service, self.instance, self.tried = service, instance, tuple(tried)
        super().__init__(message)

    def explain(self) -> str:
        """What was tried and how it failed, what was left of the deadline, of every instance why the call could go there or
        not, and how the policies stand that it passed: several lines of text."""
        lines = [f"{type(self).__name__}: {self}"]
        retry_after = getattr(self, "retry_after", None)
        if retry_after is not None:
            lines.append(f"again in {retry_after:.3g} s")
        if self.__cause__ is not None and str(self.__cause__) != str(self):  # not its twin: see mounts
            lines.append(f"because of {type(self.__cause__).__name__}: {self.__cause__}")
        if self.left is not None:
            lines.append(f"of the deadline, {self.left:.3g} s were left" if self.left > 0 else "the deadline was over")
        attempts = self.history or [f"{one.id} at {one.netloc}" for one in self.tried]
        lines += [f"attempt {number}: {each}" for number, each in enumerate(attempts, 1)]
        lines += [str(self.seen)] if self.seen is not None else []
        return "\n".join([*lines, *map(str, self.passed)])


class NoInstances(CallError):
    """There is no instance to call: the message says whether none is known, or none is left untried."""


class AttemptError(CallError):
    """One attempt at one instance failed before an answer. ``unsent`` is true when no byte of it was sent."""

    unsent: bool = False
    endpoint: Any = None
    """The endpoint it was tried at, for the layers above the balancer."""
    last_resort: bool = False
    """True when that endpoint had been taken out before, and nobody better was left."""


class ConnectFailed(AttemptError):
    """No connection to the instance: refused, unreachable, timed out or TLS refused. No byte of the call was sent."""

    unsent = True


class ConnectionLost(AttemptError):
    """The connection broke after bytes were sent and before the answer: the instance may have done the work."""


class AttemptTimeout(AttemptError):
    """The instance did not answer (or no connection of the pool came free) in time."""


class DeadlineExceeded(CallError):
    """The whole call's budget is used up."""


class Refused(CallError):
    """One of our own policies did not let the call go: it says nothing of the remote. ``retry_after`` are the seconds (float)
    after which it may go, None where nobody knows."""

    def __init__(self, message: str, *, retry_after: float | None = None, service: ServiceUrl | None = None) -> None:
        super().__init__(message, service=service)
        self.retry_after = retry_after


class RateLimited(Refused):
    """A rate limit is reached. ``fields`` are the header fields that say how it stands."""

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        service: ServiceUrl | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after, service=service)
        self.fields = dict(fields or {})

    def headers(self) -> dict[str, str]:
        """What an answer of status 429 says: ``Retry-After`` (whole seconds, rounded up) and :attr:`fields`."""
        return {"Retry-After": str(max(1, math.ceil(self.retry_after or 0.0))), **self.fields}


class BulkheadFull(Refused):
    """As many calls as the bulkhead allows are under way, and no place came free in time."""


class CircuitOpen(Refused):
    """The circuit breaker lets nothing through for a while, as too many calls failed or were slow; or as many probes as it
    allows are under way."""


class Overloaded(Refused):
    """By what latency says, more calls are under way than is good for them, or this one would not be done in time."""


class DecodeError(CallError):
    """The answer could not be decoded into the declared return type."""


class StatusError(CallError):
    """The instance answered with an error status.

    ``status`` is the HTTP status, ``body`` an excerpt of at most :data:`BODY_EXCERPT` bytes of the answer,
    ``headers`` its headers, ``retry_after`` seconds as float where the answer says so, else None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        body: bytes = b"",
        headers: Any = None,
        retry_after: float | None = None,
        service: ServiceUrl | None = None,
        instance: Instance | None = None,
        tried: Sequence[Instance] = (),
    ) -> None:
        super().__init__(message, service=service, instance=instance, tried=tried)
        self.status, self.body, self.headers, self.retry_after = status, body, headers, retry_after


class ClientError(StatusError):
    """4xx."""


class BadRequest(ClientError):
    """400."""


class Unauthorized(ClientError):
    """401."""


class Forbidden(ClientError):
    """403."""


class NotFound(ClientError):
    """404."""


class Conflict(ClientError):
    """409."""


class UnprocessableContent(ClientError):
    """422."""


class TooManyRequests(ClientError):
    """429: pushback; ``retry_after`` says for how long."""


class ServerError(StatusError):
    """5xx."""


class ServiceUnavailable(ServerError):
    """503: pushback when ``retry_after`` is given."""


class GatewayTimeout(ServerError):
    """504."""


BODY_EXCERPT = 2048
"""How much of an error answer's body a :class:`StatusError` keeps, in bytes."""

_BY_STATUS: dict[int, type[StatusError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: UnprocessableContent,
    429: TooManyRequests,
    503: ServiceUnavailable,
    504: GatewayTimeout,
}


def status_error_type(status: int) -> type[StatusError]:
    """The error class for an HTTP ``status`` of 400 or more (others outside 4xx and 5xx: :class:`StatusError`)."""
    fallback = ClientError if 400 <= status < 500 else ServerError if 500 <= status < 600 else StatusError
    return _BY_STATUS.get(status, fallback)


class RegistryError(MeshError):
    """The registry or key-value store did not do what was asked."""


class RegistryUnavailable(RegistryError):
    """It did not answer, or answered that it cannot serve now. Transient: the control plane tries again."""


class RegistryDenied(RegistryError):
    """It refused our token, user or certificate."""


class InvalidAnswer(RegistryError):
    """It answered something that cannot be understood."""


class CasConflict(RegistryError):
    """A compare-and-set found another revision than the expected one; nothing was written."""


class StoreError(MeshError):
    """The disk snapshot cannot be read or written; calls go on without it."""
