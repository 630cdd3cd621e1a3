"""Policies on plain functions: the same layers, around a function instead of a network.

Decorators of one function make one flow, in the order in which they are written, the top line outermost.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, Final

from meshlib.deadline import earlier, of_attempt, until
from meshlib.errors import CallError, ConfigError, DeadlineExceeded
from meshlib.flow import FUNCTION, Call, Given, Next, arun, compose, run
from meshlib.model import ServiceUrl
from meshlib.policies.base import LAYERS, POLICIES, Policy, Site
from meshlib.policies.passed import blame
from meshlib.text import shown

GOVERNED = "__mesh_governed__"
"""Attribute of a wrapper: the function inside it, and its policies."""


WITHIN: Final = "__mesh_within__"
"""Attribute of a function around which there are policies."""


@dataclass(frozen=True, slots=True)
class _Governed:
    function: Callable[..., Any]
    policies: tuple[Policy, ...]


def govern(function: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
    """``function`` under ``policy``, outside of those that it is under already. A generator (or an async one) holds what its
    call was granted until it is exhausted or closed. Raises :class:`ConfigError` for what is no function."""
    if not callable(function) or isinstance(function, (staticmethod, classmethod)):
        raise ConfigError(policy.kind, f"cannot stand on {shown(function)}", example=f"@{policy.kind}(…) above a def")
    inner = getattr(function, GOVERNED, None) or _Governed(function, ())
    _check(inner.function, policy)
    known = _Governed(inner.function, (policy, *inner.policies))
    stack = _Stack(known.function, known.policies)
    wrapper = _wrapper(known.function, stack)
    setattr(wrapper, GOVERNED, known)
    setattr(wrapper, LAYERS, stack.layers)
    with suppress(AttributeError, TypeError):  # some of C
        setattr(known.function, WITHIN, True)
    return wrapper


def misplaced(functions: Iterable[Any]) -> list[str]:
    """The names of those of ``functions``, which a framework calls, that are within policies it does not know of: they stand
    above the decorator that told it of the function."""
    return [str(getattr(each, "__qualname__", each)) for each in functions
            if getattr(each, WITHIN, False) and not hasattr(each, GOVERNED)]  # fmt: skip


def ungoverned(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside, with its policies as an attribute: for a declared method, whose calls are not its own."""
    known = getattr(function, GOVERNED, None)
    if known is None:
        return function
    setattr(known.function, POLICIES, (*getattr(known.function, POLICIES, ()), *known.policies))
    return known.function  # type: ignore[no-any-return]


def _check(function: Callable[..., Any], policy: Policy) -> None:
    if hasattr(function, "__mesh_endpoint__"):
        return  # a declared method, whose calls are not its own
    yields = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    awaits = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    try:
        arguments = tuple(inspect.signature(function).parameters)
    except ValueError:  # some of C
        arguments = ()
    where = getattr(function, "__qualname__", repr(function))
    policy.check(where, awaits=awaits, yields=yields, arguments=arguments)
    if arguments:
        policy.check_own(where, verb=FUNCTION, fits=lambda _: True, arguments=arguments)


class _Stack:
    """The layers of one function."""

    def __init__(self, function: Callable[..., Any], policies: Sequence[Policy]) -> None:
        self._site = Site(service=function.__module__, method=getattr(function, "__qualname__", repr(function)))
        self._bound = [(policy, policy.bind(self._site)) for policy in policies]
        self.layers = tuple(layer for _, layer in self._bound)
        self.proceed: Next = compose(self.layers)

    def blame(self, error: CallError, call: Call) -> None:
        """``error`` comes out of here."""
        blame(error, self._site, self._bound, call)


_signature = lru_cache(maxsize=1024)(inspect.signature)  # reading one costs more than all the rest


class Arguments(Mapping[str, Any]):
    """The arguments of one call by their names, defaults included: for keys. Nothing is done before somebody looks."""

    __slots__ = ("_args", "_bound", "_function", "_kwargs")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        self._bound: dict[str, Any] | None = None

    def _names(self) -> dict[str, Any]:
        if self._bound is None:
            bound = _signature(self._function).bind(*self._args, **self._kwargs)
            bound.apply_defaults()
            self._bound = bound.arguments
        return self._bound

    @property
    def extra(self) -> str | None:
        """The name of the parameter that takes any keyword, ``**options``."""
        parameters = _signature(self._function).parameters.values()
        return next((one.name for one in parameters if one.kind is one.VAR_KEYWORD), None)

    def __getitem__(self, name: str) -> Any:
        return self._names()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


def _wrapper(function: Callable[..., Any], stack: _Stack) -> Callable[..., Any]:
    target = ServiceUrl(getattr(function, "__qualname__", "function"))

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return Call(target, FUNCTION, b"", body=(args, kwargs), arguments=Arguments(function, args, kwargs))

    async def arunning(made: Call, sender: _AsyncSender | _AsyncHeld) -> Any:
        try:
            return await arun(stack.proceed, made, sender)
        except CallError as error:
            stack.blame(error, made)
            raise

    if inspect.isasyncgenfunction(function):

        @wraps(function)
        async def agenerator(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            held = _AsyncHeld(function)
            generator = await arunning(call(args, kwargs), held)
            try:
                async for item in _aitems(generator):
                    yield item
            finally:
                await held.drop(generator)

        return agenerator
    if inspect.iscoroutinefunction(function):
        sender = _AsyncSender(function)

        @wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            made = await arunning(call(args, kwargs), sender)
            return made.value if type(made) is Given else made

        return coroutine
    return _blocking(function, stack, call)


def _blocking(function: Callable[..., Any], stack: _Stack, call: Callable[..., Call]) -> Callable[..., Any]:
    def running(made: Call, sender: _Sender) -> Any:
        try:
            return run(stack.proceed, made, sender)
        except CallError as error:
            stack.blame(error, made)
            raise

    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            held = _Held(function)
            made = running(call(args, kwargs), held)
            try:
                yield from made.value if type(made) is Given else made
            finally:
                held.drop(made)

        return generator
    sender = _Sender(function)

    @wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        made = running(call(args, kwargs), sender)
        return made.value if type(made) is Given else made

    return plain


async def _aitems(made: Any) -> AsyncIterator[Any]:
    items = made.value if type(made) is Given else made
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


class _Sender:
    """Calls the function: to "send" is to run it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def send(self, call: Call) -> Any:
        args, kwargs = call.body
        if call.deadline is None and call.attempt_timeout is None:
            return self._function(*args, **kwargs)
        with until(_end(call)):
            return self._function(*args, **kwargs)

    def hold(self, response: Any, call: Call) -> None:  # noqa: ARG002 - a value is not held
        call.close()

    def drop(self, response: Any) -> None:
        """A value needs no closing."""


class _AsyncSender(_Sender):
    async def send(self, call: Call) -> Any:
        args, kwargs = call.body
        if call.deadline is None and call.attempt_timeout is None:
            return await self._function(*args, **kwargs)
        end = _end(call)
        scope = asyncio.timeout(end - time.monotonic())
        try:
            async with scope:
                with until(end):
                    return await self._function(*args, **kwargs)
        except TimeoutError as problem:
            if not scope.expired():
                raise  # the function's own
            raise _late(call, end) from problem

    async def drop(self, response: Any) -> None:  # type: ignore[override]
        """A value needs no closing."""


def _end(call: Call) -> float:
    """When a function has to be done, which has a deadline or a limit. Raises :class:`DeadlineExceeded` when that is over."""
    now = time.monotonic()
    end = earlier(call.deadline, None if call.attempt_timeout is None else now + call.attempt_timeout)
    assert end is not None
    if end <= now:
        raise DeadlineExceeded(f"{call.target}: no time is left", service=call.target)
    return end


def _late(call: Call, end: float) -> CallError:
    late = DeadlineExceeded(f"{call.target}: ended, for its time is up", service=call.target)
    return late if end == call.deadline else of_attempt(late)


class _Held(_Sender):
    """For one call of a generator function: what it holds is released with the generator."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._calls: list[tuple[Any, Call]] = []

    def hold(self, response: Any, call: Call) -> None:
        self._calls.append((response, call))

    def _release(self, response: Any) -> None:
        for held, call in self._calls:
            if held is response:
                call.close()

    def drop(self, response: Any) -> None:
        getattr(response, "close", lambda: None)()
        self._release(response)


class _AsyncHeld(_Held):
    async def send(self, call: Call) -> Any:
        return super().send(call)

    async def drop(self, response: Any) -> None:  # type: ignore[override]
        close = getattr(response, "aclose", None)
        if close is not None:
            await close()
        self._release(response)
