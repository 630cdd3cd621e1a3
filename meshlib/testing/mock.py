"""Stub answers in place of a declared client, checked against its declaration, and records of the calls."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from meshlib.client.declare import Declaration, Method
from meshlib.client.types import is_async_stream, stream_item
from meshlib.errors import CallError, ClientError, StatusError, status_error_type

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

Raised = BaseException | type[BaseException]


class call:  # noqa: N801 - read as in a sentence: calls == [call(id=7)]
    """A call as a test expects it: ``mock.fetch.calls == [call(id=7)]``. It equals one that was made with the same arguments,
    by position or by name, defaults left out or given."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Made):
            return other == self
        return isinstance(other, call) and (self.args, self.kwargs) == (other.args, other.kwargs)

    def __repr__(self) -> str:
        return f"call({_listed(self.args, self.kwargs)})"


class Made:
    """A call that was made: ``arguments`` by their names, defaults included."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._method = method
        bound = method.signature.bind(*args, **kwargs)
        self._given = dict(bound.arguments)
        bound.apply_defaults()
        self.arguments: dict[str, Any] = dict(bound.arguments)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, call):
            try:
                other = Made(self._method, other.args, other.kwargs)
            except TypeError:  # not a call of this method at all
                return False
        return isinstance(other, Made) and (self._method.name, self.arguments) == (other._method.name, other.arguments)

    def __repr__(self) -> str:
        return f"call({_listed((), self._given)})"


def _listed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])


class Stub(Generic[P, R]):
    """What one method of a mocked client answers, and the calls of it. Each of :meth:`returns`, :meth:`raises`,
    :meth:`answers` and :meth:`in_turn` takes the place of what was said before."""

    def __init__(self, owner: str, method: Method) -> None:
        self.calls: list[Made] = []
        """All that were made, in order."""
        self._method, self._where = method, f"{owner}.{method.name}"
        self._answer: Callable[..., Any] | None = None

    # -- answers

    def returns(self, value: R) -> None:
        """Every call is answered with ``value``; a stream with what it holds, each time from its beginning. Raises TypeError
        for what the method is not declared to return."""
        checked = self._check(value)
        self._answer = lambda *_args, **_kwargs: checked

    def raises(self, problem: Raised) -> None:
        """Every call raises ``problem``, an exception or its class; a class of meshlib gets the arguments that it needs."""
        made = self._problem(problem)

        def answer(*_args: Any, **_kwargs: Any) -> Any:
            raise made

        self._answer = answer

    def answers(self, function: Callable[P, R] | Callable[P, Awaitable[R]]) -> None:
        """Every call is answered by ``function``, which gets its arguments as they were given. For a method that is declared
        ``async def`` it may be one, too."""
        if not callable(function):
            raise TypeError(f"{self._where}: {function!r:.60} is no function, as in answers(lambda id: Order(id))")
        self._answer = function

    def in_turn(self, *items: R | Raised) -> None:
        """The calls are answered with ``items``, one after the other; exceptions among them are raised. A call after the last
        fails the test."""
        checked = [self._problem(each) if _is_problem(each) else self._check(each) for each in items]
        left = iter(checked)

        def answer(*_args: Any, **_kwargs: Any) -> Any:
            for item in left:
                if isinstance(item, BaseException):
                    raise item
                return item
            raise AssertionError(
                f"{self._where}: call {len(self.calls)} is one more than the {len(checked)} answers in_turn(…)"
            )

        self._answer = answer

    # -- what was called

    def assert_called_with(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Fail unless the last call had these arguments."""
        wanted = self._wanted(args, kwargs)
        assert self.calls, f"{self._where} was never called; expected {wanted}"
        assert self.calls[-1] == wanted, f"{self._where}: the last call was {self.calls[-1]}, not {wanted}"

    def assert_called_once_with(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Fail unless there was one call, with these arguments."""
        wanted = self._wanted(args, kwargs)
        assert len(self.calls) == 1, f"{self._where} was called {len(self.calls)} times, not once: {self.calls}"
        assert self.calls[0] == wanted, f"{self._where}: the call was {self.calls[0]}, not {wanted}"

    def assert_not_called(self) -> None:
        """Fail if there was a call."""
        assert not self.calls, f"{self._where} was called: {self.calls}"

    # -- inside

    def _wanted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Made:
        try:
            return Made(self._method, args, kwargs)
        except TypeError as problem:
            raise self._misused(problem) from None

    def _misused(self, problem: TypeError) -> TypeError:
        return TypeError(f"{self._where}{self._method.signature}: {problem}")

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            made = Made(self._method, args, kwargs)
        except TypeError as problem:
            raise self._misused(problem) from None
        self.calls.append(made)
        if self._answer is None:
            raise AssertionError(
                f"{self._where} was called as {made}, and has no answer; say mock.{self._method.name}.returns(…)"
            )
        return self._answer(*args, **kwargs)

    def _check(self, value: Any) -> Any:
        hint = self._method.returns
        item = stream_item(hint)
        if item is not None:
            if not isinstance(value, (Iterable, AsyncIterable)):
                raise TypeError(f"{self._where} is a stream: {value!r:.60} cannot be iterated over, as a list could")
            if isinstance(value, Iterable) and not isinstance(value, (list, tuple)):
                value = list(value)
            wrong = [each for each in value if not _fits(each, item)] if isinstance(value, (list, tuple)) else []
            if wrong:
                raise TypeError(f"{self._where} streams {_name(item)}, and {wrong[0]!r:.60} is none")
        elif not _fits(value, hint):
            raise TypeError(f"{self._where} returns {_name(hint)}, and {value!r:.60} is none")
        return value

    def _problem(self, problem: Any) -> BaseException:
        if isinstance(problem, BaseException):
            return problem
        if not (isinstance(problem, type) and issubclass(problem, BaseException)):
            raise TypeError(f"{self._where}: {problem!r:.60} is no exception, as in raises(NotFound)")
        if issubclass(problem, StatusError):
            status = _status(problem)
            return problem(f"{self._where} answered {status} (mocked)", status=status)
        return problem(f"{self._where} (mocked)") if issubclass(problem, CallError) else problem()


class Mock(Generic[C]):
    """A mocked client: ``mock.fetch`` is the :class:`Stub` of its method ``fetch``, ``mock.on(Orders.fetch)`` the same as type
    checkers know it, ``client`` the client itself."""

    def __init__(self, cls: Callable[..., C], declaration: Declaration) -> None:
        self._name = getattr(cls, "__qualname__", repr(cls))
        self._stubs: dict[str, Stub[..., Any]] = {method.name: Stub(self._name, method) for method in declaration.methods}
        body = {method.name: _implemented(method, self._stubs[method.name]) for method in declaration.methods}
        body["__repr__"] = lambda _self: f"<mocked {self._name}>"
        self.client: C = type(self._name, (cls,), body)()  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Stub[..., Any]:
        if name.startswith("_") or name not in self._stubs:
            raise AttributeError(f"{self._name} declares no method {name!r}; it has {', '.join(self._stubs)}")
        return self._stubs[name]

    @overload
    def on(self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Stub[P, R]: ...
    @overload
    def on(self, method: Callable[Concatenate[Any, P], Iterator[R]]) -> Stub[P, Iterable[R]]: ...
    @overload
    def on(self, method: Callable[Concatenate[Any, P], AsyncIterator[R]]) -> Stub[P, Iterable[R]]: ...
    @overload
    def on(self, method: Callable[Concatenate[Any, P], R]) -> Stub[P, R]: ...
    def on(self, method: Callable[..., Any]) -> Stub[..., Any]:
        """The stub of ``method`` of the declared class, with its types: ``mock.on(Orders.fetch).returns(Order(7))``."""
        return self.__getattr__(getattr(method, "__name__", repr(method)))


def _implemented(method: Method, stub: Stub[..., Any]) -> Callable[..., Any]:
    if method.is_async:

        async def coroutine(_self: object, *args: Any, **kwargs: Any) -> Any:
            value = stub._called(args, kwargs)
            value = await value if inspect.isawaitable(value) else value
            return _aiterated(value) if is_async_stream(method.returns) else value

        return coroutine
    if is_async_stream(method.returns):
        return lambda _self, *args, **kwargs: _aiterated(stub._called(args, kwargs))
    if stream_item(method.returns) is not None:
        return lambda _self, *args, **kwargs: iter(stub._called(args, kwargs))
    return lambda _self, *args, **kwargs: stub._called(args, kwargs)


async def _aiterated(items: Any) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _is_problem(item: object) -> bool:
    return isinstance(item, BaseException) or (isinstance(item, type) and issubclass(item, BaseException))


def _status(error: type[StatusError]) -> int:
    """The status that ``error`` stands for."""
    exact = next((status for status in range(400, 600) if status_error_type(status) is error), None)
    return exact or (400 if issubclass(error, ClientError) else 500)


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)  # type: ignore[return-value]


def _fits(value: Any, hint: Any) -> bool:
    """False when ``value`` is certainly none of type ``hint``."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _fits(value, parts[0])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if hint is None or hint is type(None):
        return value is None
    if origin in (list, set, frozenset) and isinstance(value, origin):
        return all(_fits(item, parts[0]) for item in value)
    known = origin or hint
    if not isinstance(known, type) or typing.is_typeddict(known) or getattr(known, "_is_protocol", False):
        return True
    return isinstance(value, (int, float)) if known is float else isinstance(value, known)


__all__ = ["Made", "Mock", "Stub", "call"]
