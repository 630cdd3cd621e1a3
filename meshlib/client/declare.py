"""``@service_client`` and the verbs: read what a Protocol declares into frozen descriptions, and refuse what is unclear.

Where a parameter goes is taken from its type hint: named in the path template → path; bytes, dataclasses, structs, models,
dicts and iterables of bytes → body (on POST, PUT and PATCH); plain values and lists of them → query.
``Annotated[str, Header("X-Tenant")]``, ``Query("page_size")``, ``Path()`` and ``Body()`` say it explicitly.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from meshlib.balance.pickers import Picker, named
from meshlib.client.types import is_async_stream, is_body, is_byte_stream, stream_item, unpack
from meshlib.errors import ConfigError
from meshlib.fields import doubt
from meshlib.model import ServiceUrl
from meshlib.policies.base import POLICIES, Policy, checked
from meshlib.policies.functions import ungoverned
from meshlib.text import shown

_YEAR: Final = 366 * 86_400.0

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)(:path)?\}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ENGINES_OWN: Final = {"content-length", "transfer-encoding", "connection"}
_WITH_BODY: Final = {"POST", "PUT", "PATCH"}


@dataclass(frozen=True, slots=True)
class Path:
    """The parameter fills ``{name}`` of the path (``{name:path}`` keeps its slashes)."""


@dataclass(frozen=True, slots=True)
class Query:
    """The parameter is the query field ``name`` (default: its own name); None leaves it out, a list repeats it."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """The parameter is the header ``name`` (default: its own name with dashes); None leaves it out."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class Body:
    """The parameter is the body: bytes and text as they are, iterables of bytes streamed, anything else as JSON."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its Python ``name``, where it goes and under which ``wire`` name."""

    name: str
    place: Path | Query | Header | Body
    wire: str
    hint: Any
    default: Any = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Method:
    """One declared method. ``template`` is the path taken apart: literal text and ``(parameter, keep slashes)``."""

    name: str
    verb: str
    path: str
    template: tuple[str | tuple[str, bool], ...]
    parameters: tuple[Parameter, ...]
    returns: Any
    is_async: bool
    signature: inspect.Signature
    policies: tuple[Policy, ...] = ()

    @property
    def awaits(self) -> bool:
        """True when it runs in the caller's event loop."""
        return self.is_async or is_async_stream(self.returns)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What ``@service_client`` says of a Protocol. ``timeout`` is seconds for a whole call, None the mesh's default."""

    target: ServiceUrl
    methods: tuple[Method, ...] = ()
    timeout: float | None = None
    picker: Picker | None = None
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())
    policies: tuple[Policy, ...] = ()


def _verb(verb: str) -> Callable[[str], Callable[[F], F]]:
    example = f'@{verb.lower()}("/orders/{{id}}") above a def'

    def at(path: str) -> Callable[[F], F]:
        if not isinstance(path, str):
            raise ConfigError(f"@{verb.lower()}", f"has {shown(path)} in place of a path", example=example)

        def mark(function: F) -> F:
            declared = ungoverned(function)  # policies below the verb are the method's, as those above it are
            if not inspect.isfunction(declared):
                raise ConfigError(f"@{verb.lower()}", f"stands on {shown(declared)}, which is no method", example=example)
            declared.__mesh_endpoint__ = (verb, path)  # type: ignore[attr-defined]
            return declared  # type: ignore[return-value]

        return mark

    at.__name__ = at.__qualname__ = verb.lower()
    at.__doc__ = f"The decorated method performs ``{verb} path``; ``{{name}}`` in the path is filled by the parameter."
    return at


get = _verb("GET")
post = _verb("POST")
put = _verb("PUT")
patch = _verb("PATCH")
delete = _verb("DELETE")
head = _verb("HEAD")
options = _verb("OPTIONS")


def service_client(
    name: str | ServiceUrl,
    *,
    timeout: float | None = None,
    picker: str | Picker | None = None,
    headers: dict[str, str] | None = None,
    policies: Iterable[Policy] = (),
) -> Callable[[C], C]:
    """Declare that the methods of a Protocol call the service ``name``.

    ``timeout`` is the budget of one call in seconds, failover to other instances included (default ``MESH_TIMEOUT``; a
    ``timeout`` among the policies stands in its place, and the deadline of a request that is served is never exceeded); a
    blocking call looks at it between two reads, so a provider that trickles the head of its answer may overrun it;
    ``picker`` chooses instances, by name or as an object (default ``MESH_PICKER``); ``headers`` are sent with every call;
    ``policies`` govern every method that has none of the same kind. The class stays as it is: fakes and type checkers see a
    plain Protocol. Raises :class:`ConfigError` for anything unclear, at decoration.
    """
    given_class: Any = name
    if isinstance(given_class, type):
        raise ConfigError("service_client", f"stands on {given_class.__qualname__} without the name of the service",
                          example='@service_client("orders")')  # fmt: skip
    target = ServiceUrl.parse(name)
    doubt("timeout", timeout if isinstance(timeout, (int, float)) else None)
    if timeout is not None and not (isinstance(timeout, (int, float)) and 0 < timeout < _YEAR):
        raise ConfigError("timeout", f"{timeout!r} is not a positive number of seconds", example="timeout=2.0")
    fixed = tuple((header_name(key), header_value(key, value)) for key, value in (headers or {}).items())

    given = checked(policies, "policies")

    def declare(cls: C) -> C:
        if not isinstance(cls, type):
            raise ConfigError("service_client", f"stands on {shown(cls)}, which is no class", example="class Orders(Protocol)")
        methods = tuple(_methods(cls))
        if not methods:
            raise ConfigError(cls.__qualname__, "declares no method", example='@get("/orders/{id}")')
        cls.__mesh_client__ = Declaration(  # type: ignore[attr-defined]
            target, methods, timeout, None if picker is None else named(picker), fixed, given
        )
        return cls

    return declare


def _methods(cls: type) -> typing.Iterator[Method]:
    for name, kept in inspect.getmembers_static(cls):
        inside = getattr(kept, "__func__", getattr(kept, "fget", None))
        if hasattr(inside, "__mesh_endpoint__"):
            raise ConfigError(f"{cls.__qualname__}.{name}", f"is a {type(kept).__name__}, and no method",
                              example="a def with self, and nothing above the verb but policies")  # fmt: skip
    for name, function in inspect.getmembers(cls, inspect.isfunction):
        _check_once(cls, name)
        endpoint = getattr(function, "__mesh_endpoint__", None)
        if endpoint is not None:
            yield _method(cls, name, function, *endpoint)
        elif not name.startswith("_") and _is_empty(function):
            raise ConfigError(f"{cls.__qualname__}.{name}", "has no verb", example=f'@get("/{name}")')


def _check_once(cls: type, name: str) -> None:
    """Of two clients in one, which do not know of each other, the one would hide what the other declares."""
    owners = [each for each in cls.__mro__ if hasattr(vars(each).get(name), "__mesh_endpoint__")]
    hidden = [each for each in owners[1:] if each not in owners[0].__mro__]
    if hidden:
        raise ConfigError(f"{cls.__qualname__}.{name}", f"is declared by {owners[0].__qualname__} and by "
                          f"{hidden[0].__qualname__}: which is meant?", example="two clients, or another name")  # fmt: skip


def _is_empty(function: Any) -> bool:
    """True for a body of nothing but ``...`` or a docstring: declared, and not meant to be run as it is."""
    code = function.__code__
    return code.co_code in _EMPTY and all(one is None or one == function.__doc__ for one in code.co_consts)


async def _async_stub(self: Any) -> None: ...
def _stub(self: Any) -> None: ...
async def _async_documented(self: Any) -> None:
    """As one with a docstring compiles."""


def _documented(self: Any) -> None:
    """As one with a docstring compiles."""


_EMPTY: Final = {stub.__code__.co_code for stub in (_stub, _async_stub, _documented, _async_documented)}


def _method(cls: type, name: str, function: Any, verb: str, path: str) -> Method:
    where = f"{cls.__qualname__}.{name}"
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as problem:
        raise ConfigError(where, f"has a type hint that cannot be resolved: {problem}",
                          example="types defined at module level, above the client") from None  # fmt: skip
    template = _template(where, path)
    filled = {part[0] for part in template if isinstance(part, tuple)}
    parameters = []
    accepted = list(inspect.signature(function).parameters.values())[1:]  # without self
    for parameter in accepted:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(where, f"takes *{parameter.name}, which says nothing of where it goes", example="page: int")
        parameters.append(_parameter(where, parameter, hints, verb, filled))
    method = Method(name, verb, path, template, tuple(parameters), hints.get("return", Any),
                    inspect.iscoroutinefunction(function), inspect.Signature(accepted),
                    getattr(function, POLICIES, ()))  # fmt: skip
    _check(where, method, filled)
    return method


def _template(where: str, path: str) -> tuple[str | tuple[str, bool], ...]:
    if not path.startswith("/"):
        raise ConfigError(where, f"path {path[:60]!r} does not start with a slash", example='@get("/orders/{id}")')
    if "#" in path or any(char <= " " or char > "~" for char in path):
        raise ConfigError(where, f"path {path[:60]!r} holds characters that a URL path cannot", example='@get("/a%20b")')
    parts: list[str | tuple[str, bool]] = []
    end = 0
    for found in _PLACEHOLDER.finditer(path):
        parts += [path[end : found.start()], (found[1], bool(found[2]))]
        end = found.end()
    parts.append(path[end:])
    if any(isinstance(part, str) and ("{" in part or "}" in part) for part in parts):
        raise ConfigError(where, f"path {path[:60]!r} has an unreadable placeholder", example='@get("/orders/{id}")')
    return tuple(part for part in parts if part)


def _parameter(where: str, parameter: inspect.Parameter, hints: dict[str, Any], verb: str, filled: set[str]) -> Parameter:
    name = parameter.name
    if name not in hints:
        raise ConfigError(where, f"parameter {name!r} has no type hint, so it is unclear where it goes", example="id: int")
    hint, notes = unpack(hints[name])
    places = [note() if isinstance(note, type) else note for note in notes if _is_place(note)]
    if len(places) > 1:
        raise ConfigError(where, f"parameter {name!r} goes to several places", example=f"{name}: Annotated[str, Query()]")
    place = places[0] if places else None
    if place is None:
        place = Path() if name in filled else Body() if is_body(hint) else Query()
        if isinstance(place, Body) and verb not in _WITH_BODY:
            raise ConfigError(where, f"parameter {name!r} is a body, and {verb} has none by default",
                              example=f"{name}: Annotated[..., Body()]")  # fmt: skip
    wire = getattr(place, "name", "") or (name.replace("_", "-") if isinstance(place, Header) else name)
    if isinstance(place, Header):
        try:
            header_name(wire)
        except ConfigError as wrong:
            raise ConfigError(where, f"parameter {name!r}: {wrong.problem}", example=wrong.example) from None
    return Parameter(name, place, wire, hint, parameter.default)


def _is_place(note: Any) -> bool:
    return isinstance(note, (Path, Query, Header, Body)) or note in (Path, Query, Header, Body)


def _check(where: str, method: Method, filled: set[str]) -> None:
    parameters = method.parameters
    on_path = {one.name for one in parameters if isinstance(one.place, Path)}
    for missing in sorted(filled - on_path):
        raise ConfigError(where, f"the path has {{{missing}}}, but no parameter fills it", example=f"{missing}: int")
    for extra in sorted(on_path - filled):
        raise ConfigError(where, f"parameter {extra!r} is a path parameter, but the path has no {{{extra}}}",
                          example=f'@{method.verb.lower()}("/orders/{{{extra}}}")')  # fmt: skip
    bodies = [one.name for one in parameters if isinstance(one.place, Body)]
    if len(bodies) > 1:
        raise ConfigError(where, f"has several bodies: {', '.join(bodies)}", example=f"{bodies[1]}: Annotated[str, Query()]")
    if method.verb == "HEAD" and bodies:
        raise ConfigError(where, f"HEAD has no body, but parameter {bodies[0]!r} is one", example=f'@post("{method.path}")')
    if method.is_async and stream_item(method.returns) is not None and not is_async_stream(method.returns):
        raise ConfigError(where, "is async, but returns a blocking iterator", example="-> AsyncIterator[bytes]")
    if not method.awaits and any(is_async_stream(one.hint) for one in parameters if isinstance(one.place, Body)):
        raise ConfigError(where, "is blocking, but its body is asynchronous", example="async def, or Iterable[bytes]")


def header_name(name: str) -> bytes:
    """``name`` as it goes on the wire. Raises :class:`ConfigError`."""
    if not _TOKEN.fullmatch(name):
        raise ConfigError("header", f"{name[:40]!r} is not a header name", example="X-Tenant")
    if name.lower() in _ENGINES_OWN:
        raise ConfigError("header", f"{name!r} is for the connection to say, not for its user", example="X-Tenant")
    return name.encode("ascii")


def header_value(name: str, value: str) -> bytes:
    """``value`` as it goes on the wire; a line break or another control character raises :class:`ConfigError`."""
    try:
        raw = value.encode("latin-1")
    except AttributeError:
        raise ConfigError(f"header {name}", f"is a {type(value).__name__}, not text", example="'acme'") from None
    except UnicodeEncodeError:
        raise ConfigError(f"header {name}", "holds characters beyond Latin-1", example="quote or encode it") from None
    if any((byte < 32 and byte != 9) or byte == 127 for byte in raw):
        raise ConfigError(f"header {name}", "holds a control character", example="one line of text")
    return raw.strip()


__all__ = ["Body", "Declaration", "Header", "Method", "Parameter", "Path", "Query", "delete", "get", "head", "header_name",
           "header_value", "is_byte_stream", "options", "patch", "post", "put", "service_client"]  # fmt: skip
