"""pybreaker's listeners (``CircuitBreakerListener``) at a circuit of ours."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshlib.errors import status_error_type
from meshlib.flow import FUNCTION, Call

if TYPE_CHECKING:
    from meshlib.policies.breaker import Breaker
    from meshlib.policies.breaker_states import Phase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """What a listener sees of a state: pybreaker's name of it; of a circuit that is disabled, ``"closed"``."""

    name: str


class Function:
    """Stands for what is called, in ``before_call``: it has the names of a function."""

    def __init__(self, module: str, qualname: str) -> None:
        self.__module__, self.__qualname__ = module, qualname
        self.__name__ = qualname.rpartition(".")[2]


class View:
    """What a listener sees of the circuit, by the names of ``pybreaker.CircuitBreaker``."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self.open, self.close = breaker.open, breaker.close

    @property
    def name(self) -> str:
        """``"orders.Orders.fetch"``."""
        return self._breaker.name

    @property
    def current_state(self) -> str:
        """``"closed"``, ``"open"`` or ``"half-open"``."""
        return state_of(self._breaker.phase).name

    @property
    def state(self) -> State:
        """The same as an object with a ``name``."""
        return State(self.current_state)

    @property
    def fail_counter(self) -> int:
        """Failures in the window."""
        return self._breaker.phase.counts().failures

    @property
    def success_counter(self) -> int:
        """Calls in the window that did not fail."""
        counts = self._breaker.phase.counts()
        return counts.calls - counts.failures

    @property
    def fail_max(self) -> int:
        """The fewest failures that open it."""
        policy = self._breaker.policy
        return max(1, round(policy.minimum * policy.failure_rate))

    @property
    def reset_timeout(self) -> float:
        """Seconds that it is open for, at first."""
        return self._breaker.policy.open_for

    @property
    def success_threshold(self) -> int:
        """How many probes there are."""
        return self._breaker.policy.probes

    @property
    def listeners(self) -> tuple[Any, ...]:
        """All of them."""
        return tuple(self._breaker.policy.listeners)


def state_of(phase: Phase) -> State:
    """``phase`` in pybreaker's terms."""
    return State("closed" if phase.name == "disabled" else phase.name)


class Audience:
    """The listeners of one circuit. One that fails is logged, and harms nobody."""

    def __init__(self, listeners: Sequence[Any], breaker: Breaker) -> None:
        self._listeners, self._breaker = listeners, breaker
        self._view = View(breaker)
        self._function = Function(breaker.service, breaker.method or breaker.service)

    @classmethod
    def of(cls, breaker: Breaker) -> Audience | None:
        """Those of its policy, which hear of its changes from now on; None where there are none."""
        if not breaker.policy.listeners:
            return None
        return breaker.attached(cls, lambda: cls(breaker.policy.listeners, breaker))

    def before(self, call: Call) -> None:
        """A call was let through."""
        args, kwargs = call.body if call.method == FUNCTION else ((call,), {})
        self._tell("before_call", self._function, *args, **kwargs)

    def after(self, failed: bool, what: Any) -> None:
        """It ended, with the answer or the exception ``what``."""
        if not failed:
            self._tell("success")
            return
        self._tell("failure", what if isinstance(what, BaseException) else self._error(what))

    def changed(self, before: Phase, after: Phase, adopted: bool) -> None:  # noqa: ARG002 - all the same to them
        """The state is another."""
        if state_of(before) != state_of(after):
            self._tell("state_change", state_of(before), state_of(after))

    def _error(self, response: Any) -> Exception:
        status = response.status_code
        return status_error_type(status)(f"{self._breaker.name} answered {status}", status=status)

    def _tell(self, what: str, *args: Any, **kwargs: Any) -> None:
        for listener in self._listeners:
            method = getattr(listener, what, None)
            if method is None:
                continue
            try:
                method(self._view, *args, **kwargs)
            except Exception:  # somebody else's code
                log.exception("the listener %r failed at %s of %s", listener, what, self._breaker.name)
