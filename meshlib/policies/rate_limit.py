"""How many calls in any window of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar, Final

from meshlib.errors import ConfigError, RateLimited
from meshlib.flow import Call, Flow, Layer, Next, Wait
from meshlib.policies.base import Policy, Site
from meshlib.policies.forks import on_fork
from meshlib.policies.gate import Gate, Gates, Stuck
from meshlib.policies.host_gates import HostGates
from meshlib.policies.rates import EXAMPLE, Rate, rates_of
from meshlib.policies.shared_window import CHECK, MOST_BYTES, entry_cells
from meshlib.policies.window import AllOf, Share, Warming, Window, window_of

SCOPES: Final = ("process", "host", "cluster", "redis")


@dataclass(frozen=True, init=False)
class rate_limit(Policy):  # noqa: N801 - as users write it
    """At most so many calls in any window of the length: ``@rate_limit("100/second")``, or several limits at once:
    ``rate_limit("100/s", "5000/10m")``. Windows are from 1 ms to 1 day.

    It stands per service and method, and with ``key``, a function of the call (what it gives must be hashable), separately
    for each of up to ``keys`` keys; calls for which it gives None have one limit together. Keys beyond that share limits.

    Whoever is over the limit gets :class:`~meshlib.errors.RateLimited`; or waits for its turn, in the order of coming, if
    that comes within ``wait`` seconds and the call's deadline. ``warm_up``: seconds in which the limit grows from a third, at
    first and after a time without calls.

    ``scope``: ``"process"``; ``"host"``: all processes of this user on this host together, exactly (they meet in a file of
    MESH_STATE_DIR, which must be on a local disk); ``"cluster"``: each instance has an equal share, by the live instances in
    the registry; ``"redis"``: all who use the Redis at ``url``, by the library ``limits`` and the clocks of its users, in
    whole seconds; when it does not answer within ``timeout`` seconds, calls pass (``fail_open``) or are refused.

    Counts up to 4096 are exact; above, what has left the window is given back at most a thousandth of the window late. Never
    are there more than the limit in a window. Raises :class:`~meshlib.errors.ConfigError`.
    """

    kind: ClassVar[str] = "rate_limit"
    refuses: ClassVar[bool] = True

    limits: tuple[Rate, ...]
    key: Callable[[Call], Hashable] | None
    keys: int
    wait: float
    warm_up: float
    scope: str
    url: str
    timeout: float
    fail_open: bool

    def __init__(
        self,
        *limits: str | Rate,
        key: Callable[[Call], Hashable] | None = None,
        keys: int = 10_000,
        wait: float = 0.0,
        warm_up: float = 0.0,
        scope: str = "process",
        url: str = "",
        timeout: float = 0.1,
        fail_open: bool = True,
    ) -> None:
        rates = rates_of(limits, self.kind)
        given = {
            "limits": rates, "key": key, "keys": keys, "wait": wait, "warm_up": warm_up, "scope": scope, "url": url,
            "timeout": timeout, "fail_open": fail_open,
        }  # fmt: skip
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if self.scope not in SCOPES:
            raise _wrong("scope", f"{self.scope!r:.40} is none of {', '.join(SCOPES)}", 'scope="host"')
        if self.key is not None and not callable(self.key):
            raise _wrong("key", f"{self.key!r:.40} is not a function of a call", "key=keys.caller()")
        if not (isinstance(self.keys, int) and 1 <= self.keys <= 10_000_000):
            raise _wrong("keys", f"{self.keys!r:.40} is not a number of keys from 1 to 10000000", "keys=10_000")
        for name in ("wait", "warm_up", "timeout"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < 1e6):
                raise _wrong(name, f"{value!r:.40} is not a number of seconds", f"{name}=0.5")
        self._check_scope()

    def _check_scope(self) -> None:
        if self.warm_up and self.scope != "process":
            raise _wrong("warm_up", f"is not there for scope={self.scope!r}", "warm_up=10.0 without a scope")
        if (self.scope == "redis") != bool(self.url):
            raise _wrong("url", 'belongs to scope="redis", and the other way round', 'url="redis://10.0.0.1:6379"')
        if self.scope == "redis" and any(rate.seconds % 1 for rate in self.limits):
            raise _wrong("limits", "windows are whole seconds in Redis", '"10/s"')
        if self.scope == "host" and 8 * entry_cells(self.limits) * (1 if self.key is None else self.keys) > MOST_BYTES:
            raise _wrong("keys", f"times the counts are more than {MOST_BYTES} bytes of shared memory", "keys=1000")

    def __repr__(self) -> str:
        return f"rate_limit({', '.join(repr(str(rate)) for rate in self.limits)}, scope={self.scope!r})"

    def bind(self, site: Site) -> Layer:
        if self.scope == "redis":
            from meshlib.policies.redis_limit import RedisLimit  # noqa: PLC0415 - needs a library

            return RedisLimit(self, site)
        return Limit(self, site)

    def key_of(self, call: Call) -> Hashable:
        """What ``call`` is counted by. Raises :class:`ConfigError` for what is not hashable."""
        key = None if self.key is None else self.key(call)
        if not isinstance(key, Hashable):
            raise _wrong("key", f"gave a {type(key).__name__}, which is not hashable", "key=keys.caller()")
        return key

    def refusal(
        self, site: Site, call: Call, wait: float, why: str = "", *, fields: dict[str, str] | None = None
    ) -> RateLimited:
        """The error for a call that would have to wait for ``wait`` seconds, and does not; whoever listens is told."""
        limits = ", ".join(map(str, self.limits))
        where = f"{site.service}.{site.method}" if site.method else site.service or str(call.target)
        site.emit("rate_limit.refused", limits=limits, retry_after=wait)
        message = f"{why or f'the limit of {limits} for {where} is reached'}; again in {wait:.3g} s"
        return RateLimited(message, retry_after=wait, service=call.target, fields=fields)


def _wrong(option: str, problem: str, example: str) -> ConfigError:
    return ConfigError(f"rate_limit({option}=)" if option != "limits" else "rate_limit", problem, example=example or EXAMPLE)


@dataclass(frozen=True)
class LimitState:
    """Of each limit (``"100/s"``) how many may pass now, and the seconds until it is one more; how many calls are ``waiting``
    for their turn. ``note`` says whose it is, or why nobody knows."""

    limits: tuple[tuple[str, int, float], ...]
    waiting: int = 0
    note: str = ""

    def __str__(self) -> str:
        shown = [
            f"{left} of {limit} left" + (f" (one more in {reset:.3g} s)" if reset else "") for limit, left, reset in self.limits
        ]
        return ", ".join([*shown, *([f"{self.waiting} waiting"] if self.limits else []), *filter(None, [self.note])])


class Limit:
    """The layer of a limit that this process or host keeps."""

    def __init__(self, policy: rate_limit, site: Site) -> None:
        self._policy, self._site = policy, site
        self._gate = Gate(self._window(), site.clock)
        if policy.scope == "host":
            self._gates: Gates | HostGates = HostGates(policy.limits, 1 if policy.key is None else policy.keys, site)
        else:
            self._gates = Gates(self._window, site.clock, policy.keys, self._crowded)
        self._single = policy.key is None and policy.scope != "host"
        on_fork(self)

    def _window(self) -> Window:
        windows = [self._part(window_of(rate)) for rate in self._policy.limits]
        return windows[0] if len(windows) == 1 else AllOf(windows)

    def _part(self, window: Window) -> Window:
        if self._policy.scope == "cluster":
            return Share(window, self._site.instances)
        return Warming(window, self._policy.warm_up) if self._policy.warm_up else window

    def __call__(self, call: Call, proceed: Next) -> Flow:
        # No generator: whoever passes has nothing more to do with us. What raises does so inside of the flow.
        if self._single:
            wait = self._gate.take()
            return self._over(self._gate, wait, call, proceed) if wait else proceed(call)
        return self._asked(call, proceed)

    def _asked(self, call: Call, proceed: Next) -> Flow:
        try:
            gate, wait = self._gates.take(self._policy.key_of(call))
        except Stuck as problem:
            raise self._stuck(call, problem) from problem
        return (yield from (self._over(gate, wait, call, proceed) if wait else proceed(call)))

    def _over(self, gate: Gate, wait: float, call: Call, proceed: Next) -> Flow:
        begun = self._site.clock()
        until = begun + self._policy.wait if call.deadline is None else min(begun + self._policy.wait, call.deadline)
        if begun + wait > until:
            raise self._refused(call, wait, gate)
        turn = gate.join(until)
        try:
            while wait := gate.go(turn):
                if turn.due > until:
                    raise self._refused(call, wait, gate)
                yield Wait(turn.woken, wait)
        except Stuck as problem:
            raise self._stuck(call, problem) from problem
        finally:
            gate.leave(turn)
        self._site.emit("rate_limit.waited", seconds=self._site.clock() - begun)
        return (yield from proceed(call))

    def _refused(self, call: Call, wait: float, gate: Gate) -> RateLimited:
        return self._policy.refusal(self._site, call, wait, fields=fields_of(gate))

    def _stuck(self, call: Call, problem: Stuck) -> RateLimited:
        self._site.emit("rate_limit.stuck", problem=str(problem))
        return self._policy.refusal(self._site, call, CHECK, str(problem))

    def _crowded(self) -> None:
        self._site.emit("rate_limit.crowded", keys=self._policy.keys)

    def fields(self, call: Call) -> dict[str, str]:
        """The header fields that tell the caller of ``call`` how things stand (draft-ietf-httpapi-ratelimit-headers-10); none
        for a key that was not met yet."""
        gate = self._gate if self._single else self._gates.find(self._policy.key_of(call))
        return {} if gate is None else fields_of(gate)

    def explain(self, call: Call) -> LimitState:
        """How it stands for ``call``."""
        gate = self._gate if self._single else self._gates.find(self._policy.key_of(call))
        note = "" if self._policy.key is None else "for this key"
        if gate is None:
            return LimitState(tuple((str(rate), rate.count, 0.0) for rate in self._policy.limits), note=f"{note}, not met yet")
        try:
            states = gate.left()
        except Stuck as problem:
            return LimitState((), note=str(problem))
        shown = ((window.rate, left, reset if left < window.rate.count else 0.0) for window, left, reset in states)
        return LimitState(tuple((str(rate), left, reset) for rate, left, reset in shown), gate.waiting, note)

    def forked(self) -> None:
        """In a child process."""
        self._gate.forked()
        self._gates.forked()


def fields_of(gate: Gate) -> dict[str, str]:
    """``RateLimit`` and ``RateLimit-Policy`` of a gate. Their seconds are whole ones, rounded up."""
    try:
        states = gate.left()
    except Stuck:
        return {}
    policies = (f'"{window.rate}";q={window.rate.count};w={math.ceil(window.rate.seconds)}' for window, _, _ in states)
    now = (f'"{window.rate}";r={left};t={math.ceil(reset)}' for window, left, reset in states)
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(now)}
