"""A limit that a Redis keeps for everybody, through the library ``limits``.

Asking it blocks, and may have to be done for an event loop: it is done in threads of their own, and the flow waits for them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from concurrent.futures import Future
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from meshlib.errors import ConfigError, MissingExtra
from meshlib.flow import Call, Flow, Next, Sleep, Wait
from meshlib.policies.base import Site
from meshlib.policies.forks import on_fork
from meshlib.policies.gate import TICK
from meshlib.threads import DaemonExecutor

if TYPE_CHECKING:
    from meshlib.policies.rate_limit import rate_limit

log = logging.getLogger(__name__)

THREADS: Final = 8

AGAIN: Final = 1.0
"""Seconds for which a Redis that did not answer is not asked."""


class RedisLimit:
    """The layer. Of several limits each is looked at before one is taken from: under contention, some may be taken from in
    vain, but none too often."""

    def __init__(self, policy: rate_limit, site: Site) -> None:
        self._policy, self._site = policy, site
        self._limiter = _limiter(policy.url, policy.timeout)
        self._items = [_item(rate.count, int(rate.seconds)) for rate in policy.limits]
        self._silent_until = float("-inf")

    def __call__(self, call: Call, proceed: Next) -> Flow:
        until = self._site.clock() + self._policy.wait
        until = until if call.deadline is None else min(until, call.deadline)
        key = self._policy.key_of(call)
        while wait := (yield from self._ask(call, key)):
            if self._site.clock() + wait > until:
                raise self._policy.refusal(self._site, call, wait)
            yield Sleep(wait)
        return (yield from proceed(call))

    def explain(self, call: Call) -> str:  # noqa: ARG002 - asking Redis is not explaining
        """Whether Redis answers; how the limit stands, only it knows."""
        silent = self._silent_until - self._site.clock()
        known = f"which did not answer; it is asked again in {silent:.3g} s" if silent > 0 else "which is not asked here"
        return f"{', '.join(map(str, self._policy.limits))} in Redis, {known}"

    def _ask(self, call: Call, key: Hashable) -> Flow:
        """0.0: pass. Else the seconds until one may, if nobody else is quicker."""
        if self._site.clock() < self._silent_until:
            return self._unknown(call, "it did not answer a moment ago")
        asked: Future[float] = _threads().submit(self._take, key)
        if not (yield Wait(asked, self._policy.timeout)):
            asked.cancel()
            problem: object = f"no answer within {self._policy.timeout:g} s"
        elif (problem := asked.exception()) is None:
            return asked.result()
        self._silent_until = self._site.clock() + AGAIN
        self._site.emit("rate_limit.unknown", problem=str(problem))
        return self._unknown(call, str(problem))

    def _unknown(self, call: Call, problem: str) -> float:
        if self._policy.fail_open:
            return 0.0
        raise self._policy.refusal(self._site, call, AGAIN, f"the limit cannot be asked for: {problem}")

    def _take(self, key: Hashable) -> float:
        """In a thread."""
        names = ("meshlib", self._site.service, self._site.method, key.hex() if isinstance(key, bytes) else str(key))
        if len(self._items) > 1:
            for item in self._items:
                if not self._limiter.test(item, *names):
                    return self._wait(item, names)
        for item in self._items:
            if not self._limiter.hit(item, *names):
                return self._wait(item, names)
        return 0.0

    def _wait(self, item: Any, names: tuple[str, ...]) -> float:
        # The wall clock is what the library counts by.
        reset: float = self._limiter.get_window_stats(item, *names).reset_time
        return max(TICK, reset - time.time())


@lru_cache(maxsize=1)
def _threads() -> DaemonExecutor:
    return DaemonExecutor(THREADS, "meshlib-limits")


class _Threads:
    def forked(self) -> None:
        _threads.cache_clear()


_in_child = _Threads()
on_fork(_in_child)


def _limiter(url: str, timeout: float) -> Any:
    """What asks the Redis at ``url``; it connects on first use. Raises :class:`ConfigError`."""
    try:
        from limits.storage import storage_from_string  # noqa: PLC0415 - an extra
        from limits.strategies import MovingWindowRateLimiter  # noqa: PLC0415
    except ImportError:
        raise MissingExtra('rate_limit(scope="redis")', "redis", "limits") from None
    try:
        return MovingWindowRateLimiter(storage_from_string(url, **_options(url, timeout)))
    except Exception as problem:  # the library's own, and those of what it wraps
        raise ConfigError("rate_limit(url=)", str(problem), example='url="redis://10.0.0.1:6379"') from problem


def _options(url: str, timeout: float) -> dict[str, Any]:
    if not url.startswith("redis"):
        return {}
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    # Its own repetition takes seconds: whoever waits has gone by then.
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0)}


def _item(count: int, seconds: int) -> Any:
    from limits import RateLimitItemPerSecond  # noqa: PLC0415

    return RateLimitItemPerSecond(count, seconds)
