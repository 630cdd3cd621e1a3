"""How many calls at once, by what latency says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from meshlib.errors import ConfigError, Overloaded
from meshlib.flow import Call, Flow, Layer, Next
from meshlib.policies import lag
from meshlib.policies.base import Policy, Site
from meshlib.policies.forks import on_fork
from meshlib.policies.limiter import Limiter, Permit


@dataclass(frozen=True, kw_only=True)
class adaptive_concurrency(Policy):  # noqa: N801 - as users write it
    """As many calls at once as latency bears: the limit begins at ``initial`` and stays between ``least`` and ``most``. It
    grows while the latency of calls is what it was in the long run, and shrinks once it is more than ``tolerance`` times that;
    by ``smoothing`` of the way in each window (0.1 s and ten calls at least). ``queue`` calls may wait beside those that are
    worked at. The long run are ``long_window`` windows. It is Netflix's Gradient2, with its numbers.

    In an event loop, those who wait for the loop count as well, by how ``late`` (True) it is.

    Latency is that until the head of the answer, and a call holds its place until the answer is read or closed. Whoever is
    refused gets :class:`~meshlib.errors.Overloaded`. It says nothing of the latency, nor does what others refuse, what is
    cancelled, and what fails faster than answers come. Raises :class:`~meshlib.errors.ConfigError`.
    """

    kind: ClassVar[str] = "adaptive_concurrency"
    refuses: ClassVar[bool] = True

    initial: int = 20
    least: int = 1
    most: int = 200
    smoothing: float = 0.2
    tolerance: float = 1.5
    queue: int = 4
    long_window: int = 600
    late: bool = True

    def __post_init__(self) -> None:
        for name, low in (("least", 1), ("initial", 1), ("most", 1), ("queue", 1), ("long_window", 1)):
            value = getattr(self, name)
            if not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= 1_000_000):
                raise _wrong(name, f"{value!r:.40} is not a number from {low} to 1000000", f"{name}=20")
        for name, least, most in (("smoothing", 0.001, 1.0), ("tolerance", 1.0, 100.0)):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most):
                raise _wrong(name, f"{value!r:.40} is not a number from {least:g} to {most:g}", f"{name}={least + 0.2:g}")
        if not self.least <= self.initial <= self.most:
            raise _wrong("initial", f"{self.initial} is not between least={self.least} and most={self.most}", "initial=20")

    def limiter(self, site: Site) -> Limiter:
        """The state of one at ``site``."""
        return Limiter(self, site.clock, lag.current if self.late else _never)

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        return AdaptiveConcurrency(self, site)


def _wrong(option: str, problem: str, example: str) -> ConfigError:
    return ConfigError(f"adaptive_concurrency({option}=)", problem, example=example)


def _never() -> float:
    return 0.0


class AdaptiveConcurrency:
    """The layer."""

    def __init__(self, policy: adaptive_concurrency, site: Site) -> None:
        self._site, self.limiter = site, policy.limiter(site)
        on_fork(self.limiter)

    def __call__(self, call: Call, proceed: Next) -> Flow:
        permit = self.limiter.take(self.limiter.lag())
        if permit is None:
            raise self._refused(call)
        return (yield from held(call, proceed, self.limiter, permit))

    def _refused(self, call: Call) -> Overloaded:
        limiter, site = self.limiter, self._site
        site.emit("adaptive_concurrency.refused", limit=limiter.gradient.limit, under_way=len(limiter))
        return refusal(call, site, limiter, f"no more than {limiter.gradient.limit:.1f} at once are good for them")

    def explain(self, call: Call) -> str:  # noqa: ARG002 - it is the same for all
        """How it stands."""
        return said(self.limiter)


def held(call: Call, proceed: Next, limiter: Limiter, permit: Permit) -> Flow:
    """``call``, which has a ``permit``: tell how it ends, and give that back when its answer is closed."""
    try:
        answer: Any = yield from proceed(call)
    except BaseException as problem:
        permit()
        limiter.raised(permit, problem)
        raise
    limiter.answered(permit, answer)
    call.on_close(permit)
    return answer


def refusal(call: Call, site: Site, limiter: Limiter, why: str) -> Overloaded:
    """The error: come again when one of those under way has ended."""
    where = f"{site.service}.{site.method}" if site.method else site.service or str(call.target)
    message = f"{len(limiter)} calls of {where} are under way, {why}"
    return Overloaded(message, retry_after=limiter.gradient.short or None, service=call.target)


def said(limiter: Limiter) -> str:
    """How a limiter stands, for people."""
    gradient = limiter.gradient
    return (
        f"{len(limiter)} under way, at most {gradient.limit:.1f} (latency {gradient.short * 1000:.1f} ms, "
        f"without a queue {gradient.base * 1000:.1f} ms)"
    )
