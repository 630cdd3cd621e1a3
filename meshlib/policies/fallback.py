"""What to answer when there is no answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Hashable, Iterable
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Final

from msgspec import UNSET

from meshlib.errors import ConfigError, StatusError, status_error_type
from meshlib.flow import FUNCTION, Await, Call, Effect, Flow, Given, Layer, Next
from meshlib.policies.answer_keys import AnswerKeys
from meshlib.policies.base import Policy, Site
from meshlib.policies.cache_control import says
from meshlib.policies.failures import error_of, is_failed, is_failure
from meshlib.policies.forks import on_fork
from meshlib.policies.shelf import Item, Shelf, thing_of

_FIRST_ERROR: Final = 400
_GOOD: Final = range(200, 300)
_COPIED: Final = (list, dict, set, bytearray)


@dataclass(frozen=True)
class fallback(Policy):  # noqa: N801 - as users write it
    """Another answer where there is none: ``@fallback(list)``, ``fallback(value="unknown")``, ``fallback(last_good=60.0)``.

    ``make`` is a function, asked for the answer each time. What it names it gets: ``error`` is the error, any other parameter
    the argument of that name of the call. It may be ``async def`` where the call is awaited; nothing bounds its time. ``value``
    is the answer itself (of a list, dict or set, a copy). ``last_good`` is the last good answer to the same call, at most so
    many seconds old; beside one of the others, it comes first. A declared method gives what its return type says; a client made
    by ``mesh.http`` a response, of which bytes, text, or what JSON can be made of, are the body.

    It stands for every :class:`~meshlib.errors.CallError` (nobody to call, refused, too late …), for answers of 5xx and 429,
    and of functions for any exception but mistakes in the settings; with ``on``, only for these exceptions and statuses. An
    answer that cannot be decoded, and a stream that breaks off, have come. What ``make`` raises is raised, from the error.

    Last good answers are told apart as those of ``cache`` are, by ``key`` if it is given: of functions by all arguments, of GET
    and HEAD by path and headers, of other methods only by ``key``. They are of at most ``keys`` calls and ``max_bytes`` each,
    and none that says ``no-store`` or ``private``. Raises :class:`~meshlib.errors.ConfigError`.
    """

    kind: ClassVar[str] = "fallback"
    either: ClassVar[tuple[str, ...]] = ("make", "value")

    make: Callable[..., Any] | None = None
    _: KW_ONLY
    value: Any = field(default=UNSET, hash=False)
    last_good: float | None = None
    on: Any = ()
    key: Callable[[Call], Hashable] | None = None
    keys: int = 1024
    max_bytes: int = 1_048_576

    def __post_init__(self) -> None:
        if self.make is not None and not callable(self.make):
            raise _wrong("make", f"{self.make!r:.40} is not a function", f"fallback(value={self.make!r:.40})")
        if self.make is not None and self.value is not UNSET:
            raise _wrong("value", "is given beside a function, and only one can hold", "fallback(list)")
        if self.make is None and self.value is UNSET and self.last_good is None:
            raise _wrong("make", "there is nothing to fall back on", "fallback(list), value=0, or last_good=60.0")
        if self.last_good is not None and not _is(self.last_good, (int, float), 1e-3, 1e8):
            raise _wrong("last_good", f"{self.last_good!r:.40} is not a number of seconds", "last_good=60.0")
        if self.key is not None and not callable(self.key):
            raise _wrong("key", f"{self.key!r:.40} is not a function of a call", 'key=keys.parameter("id")')
        for option in ("keys", "max_bytes"):
            if not _is(getattr(self, option), int, 1, 1_000_000_000):
                raise _wrong(option, f"{getattr(self, option)!r:.40} is not a number from 1 to 1000000000", f"{option}=1000")
        object.__setattr__(self, "on", _checked(self.on))

    def bind(self, site: Site) -> Layer:
        """See :meth:`Policy.bind`."""
        return Fallback(self, site)

    def check(self, where: str, *, awaits: bool, yields: bool, arguments: Iterable[str]) -> None:
        """See :meth:`Policy.check`."""
        if yields and self.last_good is not None:
            raise _wrong("last_good", f"{where} is a generator, of which there is no answer to keep", "fallback(list)")
        if self.make is None:
            return
        if not awaits and inspect.iscoroutinefunction(self.make):
            raise _wrong("make", f"{_name(self.make)} is async def, but {where} blocks", "a def")
        for name in _required(self.make):
            if name not in ("error", *arguments):
                raise _wrong("make", f"{_name(self.make)} wants {name!r}, and {where} has no such argument", "error")

    def check_own(self, where: str, *, verb: str, fits: Callable[[Any], bool], arguments: Iterable[str]) -> None:
        """See :meth:`Policy.check_own`."""
        super().check_own(where, verb=verb, fits=fits, arguments=arguments)
        if self.value is not UNSET and not fits(self.value):
            raise _wrong("value", f"{self.value!r:.40} is not of the type that {where} returns", "fallback(list)")


def _is(value: Any, types: Any, least: float, most: float) -> bool:
    return isinstance(value, types) and not isinstance(value, bool) and least <= value <= most


def _wrong(option: str, problem: str, example: str) -> ConfigError:
    return ConfigError(f"fallback({option}=)", problem, example=example)


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", repr(function)))[:60]


def _checked(given: Any) -> tuple[Any, ...]:
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, (str, type)) else (given,)
    for each in found:
        exception = isinstance(each, type) and issubclass(each, Exception)
        if not exception and not _is(each, int, _FIRST_ERROR, 599):
            raise _wrong("on", f"{each!r:.40} is neither a type of exceptions nor an error status", "on=[NoInstances, 503]")
    return found


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # some of C, as dict
        return []


def _required(function: Callable[..., Any]) -> list[str]:
    """The arguments that ``function`` wants to have."""
    found = [one for one in _parameters(function) if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return [one.name for one in found if one.default is one.empty or one.name == "error"]


class _Maker:
    """Asks the function for an answer."""

    def __init__(self, make: Callable[..., Any]) -> None:
        wanted = set(_required(make))
        found = [one for one in _parameters(make) if one.name in wanted]
        self._make = make
        self._placed = [one.name for one in found if one.kind is not one.KEYWORD_ONLY]
        self._named = [one.name for one in found if one.kind is one.KEYWORD_ONLY]

    def __call__(self, call: Call, problem: Exception) -> Any:
        def of(name: str) -> Any:
            return problem if name == "error" else self._argument(call, name)

        return self._make(*map(of, self._placed), **{name: of(name) for name in self._named})

    def _argument(self, call: Call, name: str) -> Any:
        try:
            return (call.arguments or {})[name]
        except KeyError:
            raise _wrong("make", f"{_name(self._make)} wants {name!r}, which the call has not", "error") from None


@dataclass(frozen=True)
class FallbackState:
    """What there would be in place of an answer: the last good one of ``age`` seconds (None: none, or it is too old), and
    ``otherwise`` (``"a value"``, ``"list()"``, or nothing)."""

    age: float | None
    otherwise: str

    def __str__(self) -> str:
        kept = [] if self.age is None else [f"the last good answer, {self.age:.3g} s old"]
        found = kept + ([self.otherwise] if self.otherwise else [])
        return ", else ".join(found) or "no good answer is at hand"


class Fallback:
    """The layer."""

    def __init__(self, rule: fallback, site: Site) -> None:
        self._rule, self._site = rule, site
        self._maker = None if rule.make is None else _Maker(rule.make)
        self._types = tuple(each for each in rule.on if isinstance(each, type))
        self._statuses = frozenset(each for each in rule.on if not isinstance(each, type))
        self._keys = AnswerKeys("fallback", rule.key, methods=("GET", "HEAD") if rule.key is None else None)
        self._shelf = None if rule.last_good is None else Shelf(rule.keys, rule.max_bytes, site.clock)
        if self._shelf is not None:
            on_fork(self._shelf)

    def __call__(self, call: Call, proceed: Next) -> Flow:
        try:
            answer = yield from proceed(call)
        except Exception as problem:
            instead = (yield from self._instead(call, problem)) if self._covers(call, problem) else None
            if instead is None:
                raise
            return instead
        if call.method != FUNCTION and answer.status_code >= _FIRST_ERROR and self._covers_answer(call, answer):
            instead = yield from self._instead(call, error_of(call, answer))
            if instead is not None:
                return instead  # the shell closes the other
        elif self._shelf is not None and type(answer) is not Given:
            self._keep(self._shelf, call, answer)
        return answer

    def _covers(self, call: Call, problem: Exception) -> bool:
        if not self._rule.on:
            return is_failure(call, problem)
        return isinstance(problem, self._types) or (isinstance(problem, StatusError) and problem.status in self._statuses)

    def _covers_answer(self, call: Call, answer: Any) -> bool:
        if not self._rule.on:
            return is_failed(call, answer)
        status = answer.status_code
        return status in self._statuses or issubclass(status_error_type(status), self._types)

    def _instead(self, call: Call, problem: Exception) -> Generator[Effect, Any, Any]:
        """The other answer, None when there is none."""
        now = self._site.clock()
        item = self._last(call)
        if item is not None:
            self._tell(problem, "last good", age=now - item.at)
            answer = item.answer(now)
            return Given(answer, "fallback") if call.method == FUNCTION else answer
        if self._maker is None and self._rule.value is UNSET:
            return None
        try:
            value = self._value() if self._maker is None else self._maker(call, problem)
            if inspect.isawaitable(value):
                value = yield Await(value)
        except Exception as failure:
            self._site.emit("fallback.failed", why=repr(failure)[:200], of=repr(problem)[:200])
            if failure is problem or failure.__cause__ is not None:
                raise
            raise failure from problem
        self._tell(problem, "value" if self._maker is None else "function")
        return Given(value, "fallback")

    def _value(self) -> Any:
        value = self._rule.value
        return deepcopy(value) if type(value) in _COPIED else value

    def _tell(self, problem: Exception, source: str, **detail: float) -> None:
        self._site.emit("fallback.used", source=source, why=repr(problem)[:200], **detail)

    def _last(self, call: Call) -> Item | None:
        key = None if self._shelf is None else self._keys.of(call)
        return None if self._shelf is None or key is None else self._shelf.get(key)

    def _keep(self, shelf: Shelf, call: Call, answer: Any) -> None:
        key = self._keys.of(call)
        if key is None or (call.method != FUNCTION and not self._may_keep(answer)):
            return
        thing, age = thing_of(call, answer, self._rule.max_bytes)
        if thing is not None and self._rule.last_good is not None:
            at = self._site.clock() - age
            end = at + self._rule.last_good
            shelf.put(key, Item(thing, at, end, end))

    def _may_keep(self, answer: Any) -> bool:
        if answer.status_code not in _GOOD:
            return False
        said = says(answer, self._keys.varies)
        return said.keep and said.stale != 0.0

    def explain(self, call: Call) -> FallbackState:
        """What there would be in place of an answer to ``call``."""
        item, rule = self._last(call), self._rule
        otherwise = f"{_name(rule.make)}()" if rule.make is not None else "" if rule.value is UNSET else "a value"
        return FallbackState(None if item is None else self._site.clock() - item.at, otherwise)
