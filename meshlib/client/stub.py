"""The class that implements a declared Protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import httpx2

from meshlib.answers import answer_from
from meshlib.client.declare import Declaration, Method
from meshlib.client.decode import accepts, answer_of, decoder, from_json, is_raw
from meshlib.client.encode import Encoder
from meshlib.client.stack import Stack
from meshlib.client.types import fits, stream_item
from meshlib.deadline import earlier, inherited
from meshlib.errors import BODY_EXCERPT, CallError, ConfigError, DecodeError, StatusError, status_error_type
from meshlib.flow import AsyncSender, Call, Given, Sender, arun, run
from meshlib.model import ServiceUrl
from meshlib.outcome import retry_after
from meshlib.policies.base import POLICIES, overlaid
from meshlib.transport import BUFFER, INSTANCE


class Operation:
    """One declared method, ready to be called: encode, perform, decode."""

    def __init__(self, method: Method, declaration: Declaration, stack: Stack, timeout: float, connect: float) -> None:
        self.method, self.target, self.stack = method, declaration.target, stack
        where = stack.site.method
        self._timeout = timeout
        # None: whatever the deadline leaves, which the balancer fills in for each attempt.
        self._limits = {"connect": connect, "read": None, "write": None, "pool": connect}
        item = stream_item(method.returns)
        self.items = None if item is None else Items(where, item)
        self._raw = is_raw(method.returns)
        decode = answer_of if self._raw else partial(decoder, where)
        self._decode = decode(method.returns) if item is None else None
        self._encode = Encoder(method, declaration.headers, b"*/*" if item is not None else accepts(method.returns))
        names = [one.name for one in method.parameters]
        for policy in stack.effective:
            policy.check(where, awaits=method.awaits, yields=False, arguments=names)
        known = [*names, *(pair.partition("=")[0] for pair in method.path.partition("?")[2].split("&") if pair)]
        for policy in method.policies:
            policy.check_own(where, verb=method.verb, fits=self._fits, arguments=known)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], clock: Callable[[], float]) -> Call:
        """The call that these arguments ask for."""
        target, headers, body, replayable, arguments = self._encode(args, kwargs)
        now = clock()
        extensions: dict[str, Any] = {"timeout": self._limits}
        if self.items is None:
            extensions[BUFFER] = True
        if self._raw:
            extensions[BEGUN] = now
        return Call(
            self.target, self.method.verb, target, headers=headers, body=body, replayable=replayable,
            extensions=extensions, deadline=earlier(now + self._timeout, inherited()), arguments=arguments,
        )  # fmt: skip

    def result(self, response: Any, call: Call, clock: Callable[[], float]) -> Any:
        """The value of an answer whose body is in memory."""
        assert self._decode is not None
        if type(response) is Given:
            if not self._raw:
                return self.given(response)
            response = answer_from(response.value, call)
        try:
            body = response.read()
            if self._raw:
                response.elapsed = timedelta(seconds=clock() - call.extensions[BEGUN])
            elif response.status_code >= _FIRST_ERROR:
                raise status_error(response, body, call)
            return self._decode(response)
        except (ValueError, httpx2.DecodingError) as problem:
            raise self.undecodable(response, call, problem) from problem

    def _fits(self, value: Any) -> bool:
        return self._raw or fits(self.method.returns, value)

    def given(self, answer: Given) -> Any:
        """What a policy gave in place of an answer. Raises :class:`ConfigError` when it is not of the declared type."""
        value, returns = answer.value, self.method.returns
        if not self._fits(value):
            raise ConfigError(f"{answer.source} of {self.stack.site.method}", f"gave a {type(value).__name__}, not a {returns}",
                              example="what the method returns")  # fmt: skip
        return value

    def undecodable(self, response: httpx2.Response, call: Call, problem: Exception) -> DecodeError:
        """The error for an answer that is not of the declared type."""
        return DecodeError(
            f"{call.method} {call.target}{where_of(call)}: the answer is not a {self.method.returns}: {problem}",
            service=call.target, instance=_instance(response),
        )  # fmt: skip


_FIRST_ERROR = 300

BEGUN: Final = "meshlib.begun"
"""Request extension: the monotonic time at which the call began."""


def _instance(response: httpx2.Response) -> Any:
    return response.extensions.get(INSTANCE)


def where_of(call: Call) -> str:
    """The path of ``call`` for messages: without its query, which may hold what no log should."""
    return call.path.partition(b"?")[0].decode()


def status_error(response: httpx2.Response, body: bytes, call: Call) -> StatusError:
    """The error for an answer with an error status (or a redirect, which is not followed), whose body begins so."""
    status, instance = response.status_code, _instance(response)
    body = body[:BODY_EXCERPT]
    where = f" at {instance.netloc}" if instance is not None else ""
    said = " ".join("".join(one if one.isprintable() else " " for one in body[:200].decode("utf-8", "replace")).split())
    return status_error_type(status)(
        f"{call.method} {call.target}{where_of(call)}{where} answered {status}" + (f": {said}" if said else ""),
        status=status, body=body, headers=response.headers, retry_after=retry_after(response),
        service=call.target, instance=instance,
    )  # fmt: skip


MAX_ITEM = 16 * 1024 * 1024
"""Bytes that a line of a stream may have: whoever sends one without end must not fill our memory (threat 15)."""


class Items:
    """How to read a stream into items: chunks of bytes as they come, lines of text, or one JSON value per line."""

    def __init__(self, where: str, item: Any) -> None:
        self.raw = item is bytes
        self._keep_empty = item is str
        known: dict[Any, Callable[[bytes], Any]] = {bytes: bytes, str: bytes.decode}
        self._parse = known.get(item) or from_json(where, item)

    def of(self, buffer: bytearray, chunk: bytes) -> Iterator[Any]:
        """The items that ``chunk`` completes; ``buffer`` keeps the rest. Raises ValueError."""
        if self.raw:
            yield chunk
            return
        buffer += chunk
        if b"\n" not in chunk:
            if len(buffer) > MAX_ITEM:
                raise ValueError(f"an item of it is longer than {MAX_ITEM} bytes")
            return
        *whole, rest = bytes(buffer).split(b"\n")
        buffer[:] = rest
        for line in whole:
            yield from self._item(line)

    def last(self, buffer: bytearray) -> Iterator[Any]:
        """The item that no line break ended."""
        if buffer:
            yield from self._item(bytes(buffer))

    def _item(self, line: bytes) -> Iterator[Any]:
        line = line.removesuffix(b"\r")
        if self._keep_empty or line.strip():
            yield self._parse(line)


class SyncStub:
    """Performs operations in the caller's thread."""

    def __init__(self, sender: Sender, clock: Callable[[], float]) -> None:
        self._sender, self._clock = sender, clock

    def implement(self, operation: Operation) -> Callable[..., Any]:
        """The function that stands for the declared method."""
        if operation.items is not None:
            items = operation.items
            return lambda _self, *args, **kwargs: self._stream(operation, items, operation.call(args, kwargs, self._clock))

        def method(_self: object, *args: Any, **kwargs: Any) -> Any:
            call = operation.call(args, kwargs, self._clock)
            try:
                return operation.result(run(operation.stack.proceed, call, self._sender), call, self._clock)
            except CallError as error:
                operation.stack.blame(error, call)
                raise

        return method

    def _stream(self, operation: Operation, items: Items, call: Call) -> Iterator[Any]:
        try:
            response = run(operation.stack.proceed, call, self._sender)
            if type(response) is Given:
                yield from operation.given(response)
            else:
                yield from self._items(operation, items, call, response)
        except CallError as error:
            operation.stack.blame(error, call)
            raise

    def _items(self, operation: Operation, items: Items, call: Call, response: httpx2.Response) -> Iterator[Any]:
        buffer = bytearray()
        try:
            if response.status_code >= _FIRST_ERROR:
                raise status_error(response, self._excerpt(response), call)
            for chunk in response.iter_bytes():
                yield from items.of(buffer, chunk)
            yield from items.last(buffer)
        except (ValueError, httpx2.DecodingError) as problem:
            raise operation.undecodable(response, call, problem) from problem
        finally:
            response.close()

    @staticmethod
    def _excerpt(response: httpx2.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) >= BODY_EXCERPT:
                break
        return bytes(body)


class AsyncStub:
    """Performs operations in the caller's task."""

    def __init__(self, sender: AsyncSender, clock: Callable[[], float]) -> None:
        self._sender, self._clock = sender, clock

    def implement(self, operation: Operation) -> Callable[..., Any]:
        """The function that stands for the declared method: a coroutine function where it was declared as one."""
        if operation.items is not None:
            items = operation.items
            if not operation.method.is_async:
                return lambda _self, *args, **kwargs: self._stream(operation, items, operation.call(args, kwargs, self._clock))

            async def stream(_self: object, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                return self._stream(operation, items, operation.call(args, kwargs, self._clock))

            return stream

        async def method(_self: object, *args: Any, **kwargs: Any) -> Any:
            call = operation.call(args, kwargs, self._clock)
            try:
                return operation.result(await arun(operation.stack.proceed, call, self._sender), call, self._clock)
            except CallError as error:
                operation.stack.blame(error, call)
                raise

        return method

    async def _stream(self, operation: Operation, items: Items, call: Call) -> AsyncIterator[Any]:
        try:
            response = await arun(operation.stack.proceed, call, self._sender)
            given = type(response) is Given
            found = _asynchronous(operation.given(response)) if given else self._items(operation, items, call, response)
            async with aclosing(found):
                async for item in found:
                    yield item
        except CallError as error:
            operation.stack.blame(error, call)
            raise

    async def _items(
        self, operation: Operation, items: Items, call: Call, response: httpx2.Response
    ) -> AsyncGenerator[Any, None]:
        buffer = bytearray()
        try:
            if response.status_code >= _FIRST_ERROR:
                raise status_error(response, await self._excerpt(response), call)
            async for chunk in response.aiter_bytes():
                for item in items.of(buffer, chunk):
                    yield item
            for item in items.last(buffer):
                yield item
        except (ValueError, httpx2.DecodingError) as problem:
            raise operation.undecodable(response, call, problem) from problem
        finally:
            await response.aclose()

    @staticmethod
    async def _excerpt(response: httpx2.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) >= BODY_EXCERPT:
                break
        return bytes(body)


async def _asynchronous(items: Any) -> AsyncGenerator[Any, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def declaration_of(cls: Any) -> Declaration:
    """What ``@service_client`` said of ``cls``. Raises :class:`ConfigError` when it said nothing."""
    declaration = cls.__dict__.get("__mesh_client__") if isinstance(cls, type) else None
    if not isinstance(declaration, Declaration):
        name = getattr(cls, "__qualname__", None) or repr(cls)[:80]
        raise ConfigError(name, "is not a declared client", example='@service_client("orders")')
    above = cls.__dict__.get(POLICIES, ())  # those of decorators above @service_client, and below it
    return replace(declaration, policies=overlaid(declaration.policies, above)) if above else declaration


def called(function: Callable[..., Any], cls: Any, name: str) -> Callable[..., Any]:
    """``function`` by the name of what it stands for: Python says it, of a coroutine that nobody awaits, say."""
    function.__name__, function.__qualname__, function.__module__ = name, f"{cls.__qualname__}.{name}", cls.__module__
    return function


def implement(
    cls: Any,
    target: ServiceUrl,
    stack: Callable[[Method], Stack],
    sync: SyncStub,
    async_: AsyncStub,
    *,
    timeout: float,
    connect: float,
) -> Any:
    """An instance of a subclass of ``cls`` whose declared methods perform calls through the ``stack`` of each."""
    declaration = replace(declaration_of(cls), target=target)
    body: dict[str, Any] = {"__repr__": lambda _self: f"<{cls.__qualname__} client of {target}>"}
    for method in declaration.methods:
        operation = Operation(method, declaration, stack(method), declaration.timeout or timeout, connect)
        stub = async_ if method.awaits else sync
        body[method.name] = called(stub.implement(operation), cls, method.name)
    return type(cls.__name__, (cls,), body)()
