"""Answers that are at hand."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Final

from meshlib.deadline import inherited
from meshlib.errors import ConfigError, DeadlineExceeded
from meshlib.flow import FUNCTION, Call, Effect, Flow, Given, Layer, Next, Wait
from meshlib.policies.answer_keys import SAFE, AnswerKeys
from meshlib.policies.base import Policy, Site
from meshlib.policies.cache_control import directives, says
from meshlib.policies.failures import is_failed, is_failure
from meshlib.policies.flights import Flight, Flights, Seat
from meshlib.policies.forks import on_fork
from meshlib.policies.shelf import Item, Shelf, thing_of

PATIENCE: Final = 30.0
"""Seconds that a call without a deadline waits for another to fetch its answer, before it fetches one itself."""

_STATUSES: Final = (200, 203, 204)


@dataclass(frozen=True)
class cache(Policy):  # noqa: N801 - as users write it
    """Answers are kept for ``ttl`` seconds (float): ``@cache(10.0)``. Of those who want the same at once, one fetches it and
    the others wait, until their deadlines; when it fails or is cancelled, the next one fetches.

    For ``stale_if_error`` seconds beyond, an old answer is given in place of an error, 5xx or 429 (RFC 5861). What is kept:
    at most ``maxsize`` answers, of ``statuses`` to ``methods``, of at most ``max_bytes`` each (64 times as much together),
    whose body is read within the call: no streams, none through a transport mounted on a stock client.

    The key is service, instance, method, path with query, body, and all headers but ids of requests and traces; with
    ``headers``, only these, ``Authorization`` and ``Cookie`` still. ``key``, a function of the call, stands in place of path,
    body and headers (None: the answer is not kept). ``shared``: what one caller got is good for another, whoever they say
    they are. Who says so by another header than the two had better not leave it out.

    ``Cache-Control`` of answers is heeded: none is kept that says ``no-store``, ``no-cache`` or ``private`` (nor one with
    ``Set-Cookie``, or a ``Vary`` by what is not in the key); ``s-maxage`` or ``max-age`` less ``Age`` may shorten ``ttl``, and
    ``stale-if-error`` or ``must-revalidate`` the time beyond. A request with ``no-store`` passes by, one with ``no-cache`` or
    ``max-age=0`` fetches anew. ``Expires``, ``ETag``, other directives, and changes made by other methods are not heeded.

    Of a function, the key is all its arguments, which must be hashable, and the same object is given to all who ask: treat it
    as frozen. Exceptions are not kept. Raises :class:`~meshlib.errors.ConfigError`.
    """

    kind: ClassVar[str] = "cache"

    ttl: float
    _: KW_ONLY
    maxsize: int = 1024
    key: Callable[[Call], Hashable] | None = None
    stale_if_error: float = 0.0
    methods: Iterable[str] = SAFE
    statuses: Iterable[int] = _STATUSES
    headers: Iterable[str] | None = None
    shared: bool = False
    max_bytes: int = 1_048_576

    def __post_init__(self) -> None:
        for option, least in (("ttl", 1e-3), ("stale_if_error", 0.0)):
            if not _is(getattr(self, option), (int, float), least, 1e8):
                raise _wrong(option, f"{getattr(self, option)!r:.40} is not a number of seconds", f"{option}=60.0")
        for option in ("maxsize", "max_bytes"):
            if not _is(getattr(self, option), int, 1, 1_000_000_000):
                raise _wrong(option, f"{getattr(self, option)!r:.40} is not a number from 1 to 1000000000", f"{option}=1000")
        if self.key is not None and not callable(self.key):
            raise _wrong("key", f"{self.key!r:.40} is not a function of a call", 'key=keys.parameter("id")')
        if not isinstance(self.shared, bool):
            raise _wrong("shared", f"{self.shared!r:.40} is neither true nor false", "shared=True")
        object.__setattr__(self, "methods", tuple(name.upper() for name in _texts("methods", self.methods, '["GET"]')))
        if self.headers is not None:
            object.__setattr__(self, "headers", _texts("headers", self.headers, '["Accept"]'))
        object.__setattr__(self, "statuses", _statuses(self.statuses))

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        return Cache(self, site)

    def check(self, where: str, *, awaits: bool, yields: bool, arguments: Iterable[str]) -> None:  # noqa: ARG002
        """See :meth:`Policy.check`."""
        if yields:
            raise ConfigError("cache", f"{where} is a generator, of which there is no answer to keep", example="a def")

    def check_own(self, where: str, *, verb: str, fits: Callable[[Any], bool], arguments: Iterable[str]) -> None:
        """See :meth:`Policy.check_own`."""
        super().check_own(where, verb=verb, fits=fits, arguments=arguments)
        if verb not in (FUNCTION, *self.methods):
            raise _wrong("methods", f"are {', '.join(self.methods)}, so nothing is kept of {where}, which is {verb}",
                         f'methods=["{verb}"], if its answers may be given again')  # fmt: skip


def _is(value: Any, types: Any, least: float, most: float) -> bool:
    return isinstance(value, types) and not isinstance(value, bool) and least <= value <= most


def _wrong(option: str, problem: str, example: str) -> ConfigError:
    return ConfigError(f"cache({option}=)", problem, example=example)


def _texts(option: str, given: Any, example: str) -> tuple[str, ...]:
    found = () if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not found or not all(isinstance(each, str) and each.isascii() and each for each in found):
        raise _wrong(option, f"{given!r:.40} is not a list of names", f"{option}={example}")
    return found


def _statuses(given: Any) -> tuple[int, ...]:
    found = tuple(given) if isinstance(given, Iterable) else ()
    if not found or not all(_is(each, int, 200, 499) for each in found):
        raise _wrong("statuses", f"{given!r:.40} is not a list of statuses from 200 to 499", "statuses=[200, 404]")
    return found


_NOT_KEPT: Final = Item(None, 0.0, 0.0, 0.0)
"""What others find who waited for an answer that is not to be kept: each fetches its own."""


@dataclass(frozen=True)
class CacheState:
    """What is kept of the answer to a call: ``age`` in seconds (None: nothing), whether it is ``fresh``, how many ``waiting``
    calls there are beside one that fetches it (None: nobody does); and how many ``answers`` are kept, of at most ``most``."""

    age: float | None
    fresh: bool
    waiting: int | None
    answers: int
    most: int

    def __str__(self) -> str:
        kept = "nothing is kept of it" if self.age is None else f"{'fresh' if self.fresh else 'stale'}, {self.age:.3g} s old"
        fetched = "" if self.waiting is None else f"; one call fetches it, {self.waiting} wait"
        return f"{kept}{fetched}; {self.answers} of {self.most} answers"


class Cache:
    """The layer."""

    def __init__(self, rule: cache, site: Site) -> None:
        self._rule, self._site, self._clock = rule, site, site.clock
        self._keys = AnswerKeys("cache", rule.key, methods=rule.methods, named=rule.headers, shared=rule.shared)
        self.shelf, self.flights = Shelf(rule.maxsize, rule.max_bytes, site.clock), Flights()
        on_fork(self.shelf)
        on_fork(self.flights)

    def __call__(self, call: Call, proceed: Next) -> Flow:
        wish = {} if call.method == FUNCTION else _wish(call)
        key = None if "no-store" in wish else self._keys.of(call)
        if key is None:
            return (yield from proceed(call))
        if "no-cache" in wish or wish.get("max-age") == "0":
            return (yield from self._anew(key, call, proceed))
        item = self._fresh(key)
        if item is None:
            return (yield from self._together(key, call, proceed))
        if item.thing is None:
            return (yield from self._anew(key, call, proceed))
        self._site.emit("cache.hit")
        return item.answer(self._clock())

    def _fresh(self, key: Hashable) -> Item | None:
        item = self.shelf.get(key)
        return item if item is not None and self._clock() < item.until else None

    def _anew(self, key: Hashable, call: Call, proceed: Next) -> Flow:
        """Fetched for this call alone."""
        self._site.emit("cache.miss")
        answer, _ = yield from self._fetch(key, call, proceed)
        return answer

    def _together(self, key: Hashable, call: Call, proceed: Next) -> Flow:
        """Fetched by one for all: by this one, if nobody is at it."""
        flight, seat = self.flights.board(key)
        if seat is None:
            return (yield from self._lead(key, flight, call, proceed))
        yield from self._wait(key, flight, seat, call)
        if seat.leads:
            return (yield from self._lead(key, flight, call, proceed))
        if seat.found is not None and seat.found.thing is not None:
            self._site.emit("cache.hit")
            return seat.found.answer(self._clock())
        if seat.found is None and _deadline(call) is not None:
            return self._late(key, call)
        return (yield from self._anew(key, call, proceed))

    def _wait(self, key: Hashable, flight: Flight, seat: Seat, call: Call) -> Generator[Effect, Any, None]:
        begun, deadline = self._clock(), _deadline(call)
        patience = PATIENCE if deadline is None else max(0.0, deadline - begun)
        try:
            yield Wait(seat.woken, patience)
        except BaseException:
            self.flights.leave(key, flight, seat)
            raise
        if not seat.leads and seat.found is None:
            self.flights.leave(key, flight, seat)
            seat.leads = False  # it may have come to that just now, and has been left to the next one
        self._site.emit("cache.waited", seconds=self._clock() - begun)

    def _late(self, key: Hashable, call: Call) -> Any:
        problem = DeadlineExceeded(f"{call.target}: no time is left, another call fetches the answer", service=call.target)
        stale = self._stale(key, problem)
        if stale is None:
            raise problem
        return stale.answer(self._clock())

    def _lead(self, key: Hashable, flight: Flight, call: Call, proceed: Next) -> Flow:
        found: Item | None = None
        try:
            item = self._fresh(key)  # whoever led before may just have come back
            if item is not None and item.thing is not None:
                found = item
                self._site.emit("cache.hit")
                return item.answer(self._clock())
            self._site.emit("cache.miss")
            answer, found = yield from self._fetch(key, call, proceed)
            return answer
        finally:
            self.flights.land(key, flight, found)

    def _fetch(self, key: Hashable, call: Call, proceed: Next) -> Generator[Effect, Any, tuple[Any, Item | None]]:
        """The answer, and what of it is for others, too: None when they have to ask themselves."""
        try:
            answer = yield from proceed(call)
        except Exception as problem:
            stale = self._stale(key, problem) if is_failure(call, problem) else None
            if stale is None:
                raise
            return stale.answer(self._clock()), stale
        if type(answer) is Given or not is_failed(call, answer):
            return answer, self._kept(key, call, answer)
        stale = self._stale(key, answer)
        return (answer, None) if stale is None else (stale.answer(self._clock()), stale)

    def _stale(self, key: Hashable, problem: Any) -> Item | None:
        item = self.shelf.get(key)
        if item is None or item.thing is None:
            return None
        why = f"answered {problem.status_code}" if hasattr(problem, "status_code") else repr(problem)
        self._site.emit("cache.stale", age=self._clock() - item.at, why=why[:200])
        return item

    def _kept(self, key: Hashable, call: Call, answer: Any) -> Item:
        item = self._item(call, answer)
        if item.end > self._clock():
            self.shelf.put(key, item)
        return item

    def _item(self, call: Call, answer: Any) -> Item:
        """How ``answer`` is kept. One that is not is known for as long as it would have been: who wants it then need not wait
        for another."""
        now, rule = self._clock(), self._rule
        fresh, stale = rule.ttl, rule.stale_if_error
        if type(answer) is Given:
            return _NOT_KEPT
        if call.method != FUNCTION:
            said = says(answer, self._keys.varies)
            fresh = fresh if said.fresh is None else min(fresh, said.fresh)
            stale = stale if said.stale is None else min(stale, said.stale)
            if answer.status_code not in self._rule.statuses or not said.keep:
                return Item(None, now, now + rule.ttl, now + rule.ttl)
        thing, age = thing_of(call, answer, rule.max_bytes)
        if thing is None or fresh <= 0.0:
            return Item(None, now, now + rule.ttl, now + rule.ttl)
        return Item(thing, now - age, now + fresh, now + fresh + stale)

    def explain(self, call: Call) -> CacheState:
        """What is kept of the answer to ``call``."""
        key, now = self._keys.of(call), self._clock()
        item = None if key is None else self.shelf.get(key)
        kept = item is not None and item.thing is not None
        return CacheState(
            now - item.at if item is not None and kept else None, item is not None and kept and now < item.until,
            None if key is None else self.flights.waiting(key), len(self.shelf), self._rule.maxsize,
        )  # fmt: skip


def _deadline(call: Call) -> float | None:
    return call.deadline if call.deadline is not None else inherited()


def _wish(call: Call) -> dict[str, str]:
    """The ``Cache-Control`` of a request."""
    for name, value in call.headers:
        if len(name) == 13 and name.lower() == b"cache-control":
            return directives(value.decode("latin-1"))
    return {}
