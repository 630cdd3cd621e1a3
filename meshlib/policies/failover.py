"""Go to another instance when an attempt failed in a way that makes repeating it safe."""

from __future__ import annotations

from meshlib.errors import AttemptError, ConnectionLost, DeadlineExceeded, NoInstances
from meshlib.flow import Call, Flow, Next, tried_instances


class Failover:
    """A connection that failed before a byte was sent sends any call to the next instance, at once and until none is left
    untried; one that broke under a call sends an idempotent call there, once.

    This is not the retry policy: it never waits, and answers of whatever status are answers to it. Where one stands above
    (or a hedge), what was sent is for that to repeat: it counts, and both would multiply.
    """

    def __call__(self, call: Call, proceed: Next) -> Flow:
        failure: AttemptError | None = None
        history: list[str] = []
        resent = False
        try:
            while True:
                try:
                    return (yield from proceed(call))
                except NoInstances:
                    if failure is None:
                        raise
                    break
                except DeadlineExceeded as late:
                    if failure is None:
                        raise
                    late.instance = failure.instance
                    raise late from failure
                except AttemptError as error:
                    failure = error
                    if error.endpoint is None:
                        raise
                    error.tried = tuple(tried_instances((*call.tried, error.endpoint)))
                    history.append(f"{type(error).__name__}: {error}")
                    error.history = tuple(history)
                    if not (error.unsent or (_repeatable(call, error) and not resent)):
                        raise
                    resent = resent or not error.unsent
                    call = call.excluding(error.endpoint, last_resort=error.last_resort)
            raise failure  # what the caller has to know is how the last instance failed, not that nobody is left
        finally:
            failure = None  # its traceback leads here: no cycle


def _repeatable(call: Call, error: AttemptError) -> bool:
    return isinstance(error, ConnectionLost) and call.idempotent and call.visited is None
