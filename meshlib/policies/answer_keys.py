"""Which calls have the same answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

from meshlib.errors import ConfigError
from meshlib.flow import FUNCTION, Call

SAFE: Final = ("GET", "HEAD")

CREDENTIALS: Final = frozenset({b"authorization", b"cookie"})
"""Headers that say who asks."""

IGNORED: Final = frozenset({
    b"traceparent", b"tracestate", b"baggage", b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled",
    b"x-request-id", b"x-correlation-id", b"x-mesh-deadline", b"cache-control", b"pragma",
})  # fmt: skip
"""Headers that are another in every call and say nothing of the answer."""


class AnswerKeys:
    """The key of a call: the same for calls with the same answer; None for one whose answer is not kept.

    Of a function, its arguments. Of a call, service, instance, subset, method, path with query, body, and all headers but
    :data:`IGNORED`, or only those ``named``; those of :data:`CREDENTIALS` always, unless answers are ``shared``. ``key`` stands
    in place of path, body and headers (save credentials), and of the arguments.
    """

    def __init__(
        self,
        policy: str,
        key: Callable[[Call], Hashable] | None = None,
        *,
        methods: Iterable[str] | None = SAFE,
        named: Iterable[str] | None = None,
        shared: bool = False,
    ) -> None:
        self._policy, self._key, self._shared = policy, key, shared
        self._methods = None if methods is None else frozenset(methods)
        self._named = None if named is None else frozenset(name.lower().encode("latin-1") for name in named)

    def of(self, call: Call) -> Hashable | None:
        """The key. Raises :class:`ConfigError` for arguments, or what ``key`` gave, that are not hashable."""
        if call.method == FUNCTION:
            return self._arguments(call.arguments or {}) if self._key is None else self._custom(call)
        if self._methods is not None and call.method not in self._methods:
            return None
        headers = sorted((name.lower(), value) for name, value in call.headers)
        if any(name == b"range" for name, _ in headers):
            return None
        if self._key is not None:
            custom = self._custom(call)
            return None if custom is None else (custom, _digest(self._parts(call, headers)))
        if not call.replayable:
            return None
        body = b"" if call.body is None else b"".join(call.body)
        return _digest([call.path, body, *self._parts(call, headers)])

    def _parts(self, call: Call, headers: list[tuple[bytes, bytes]]) -> list[bytes]:
        parts = [f"{call.target} {call.method} {call.subset or ''}".encode()]
        for name, value in headers:
            if self.has(name):
                parts += (name, value)
        return parts

    def has(self, name: bytes) -> bool:
        """Whether the header ``name`` (in lower case) is part of the key."""
        if name in CREDENTIALS:
            return not self._shared
        if self._key is not None:
            return False
        return name not in IGNORED if self._named is None else name in self._named

    def varies(self, vary: str) -> bool:
        """Whether an answer that says ``Vary`` may be another for the same key. What ``key`` is the same for, is the same."""
        names = [name.strip().lower().encode("latin-1", "replace") for name in vary.split(",") if name.strip()]
        return b"*" in names or (self._key is None and not all(self.has(name) for name in names))

    def _custom(self, call: Call) -> Hashable | None:
        assert self._key is not None
        key = self._key(call)
        try:
            hash(key)
        except TypeError:
            raise self._unhashable("gave", key) from None
        return key

    def _arguments(self, arguments: Mapping[str, Any]) -> Hashable:
        values = []
        for name, value in arguments.items():
            plain = tuple(sorted(value.items())) if type(value) is dict and name == _extra(arguments) else value
            try:
                hash(plain)
            except TypeError:
                raise self._unhashable(f"is not given, and the argument {name!r} is", value) from None
            values.append((plain, type(plain)))  # 1, 1.0 and True are equal, and not the same
        return tuple(values)

    def _unhashable(self, what: str, value: Any) -> ConfigError:
        problem = f"{what} a {type(value).__name__}, which is not hashable"
        return ConfigError(f"{self._policy}(key=)", problem, example='key=lambda call: call.arguments["id"]')


def _extra(arguments: Mapping[str, Any]) -> str | None:
    """The name of the parameter that takes any keyword, ``**options``."""
    return getattr(arguments, "extra", None)


def _digest(parts: list[bytes]) -> bytes:
    """Of all parts: short, however long they are, and keeping no secret."""
    found = blake2b(digest_size=20)
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()
