"""What a policy is: a rule that can be put on a client, a method, a function or a provider.

The rule itself is frozen and knows nobody; :meth:`Policy.bind` makes the layer that enforces it at one place, with the state
it keeps there. So one object may stand on many functions, and be compared, printed and replaced.
"""

from __future__ import annotations

import random
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from inspect import Signature, signature
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar

from meshlib.errors import ConfigError
from meshlib.events import EVENTS, Events
from meshlib.flow import Layer, Next
from meshlib.metrics.recorder import Recorder
from meshlib.model import ServiceUrl
from meshlib.text import nearest, shown
from meshlib.threads import lock

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

POLICIES = "__mesh_policies__"
"""Attribute of a declared method or class with the policies put on it, outermost first."""

LAYERS = "__mesh_layers__"
"""Attribute of a governed function with the layers around it, outermost first."""


_NOTHING: Any = object()

OTHERS: Final[weakref.WeakValueDictionary[str, type[Policy]]] = weakref.WeakValueDictionary()
"""All kinds that somebody has defined, the last class of each."""


class Commons:
    """State that layers of several sites share, each made once and kept as long as one of them holds it."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
        self._lock = lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What stands under ``key``, made now if it is not there."""
        with self._lock:
            found: T | None = self._known.get(key)
            if found is None:
                found = self._known[key] = make()
            return found

    def forked(self) -> None:
        """In a child process: a thread of the parent may have held the lock."""
        self._lock = lock()


def _state_dir() -> Path:
    from meshlib.settings import Settings  # noqa: PLC0415 - only those who meet there need it

    return Settings.load().state_path


def _nowhere(name: str) -> tuple[ServiceUrl, Next]:
    raise ConfigError(f"the service {name!r:.60}", "can be named only where services are called", example="on a service client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a policy stands, and what it may use there.

    ``service`` and ``method`` name it (a function's module and qualified name; a provider's own service and route);
    ``clock`` is monotonic, ``wall`` seconds since the epoch, ``uniform`` a random number from 0 to 1; ``instances`` tells how
    many live instances share a quota (1 where nobody knows); ``state_dir`` where the processes of this host meet; ``commons``
    has what layers share with those of other sites of one mesh. ``caller`` is the service that this process is; ``reach``
    gives the way to another service by its name, for whoever sends calls there instead. ``template`` is the path of a declared
    method as it is written; ``recorder`` counts calls, None where nobody does.
    """

    service: str = ""
    method: str = ""
    events: Events = EVENTS
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    uniform: Callable[[], float] = random.random
    instances: Callable[[], int] = lambda: 1
    commons: Commons = field(default_factory=Commons, compare=False)
    state_dir: Callable[[], Path] = _state_dir
    caller: str = ""
    template: str = ""
    recorder: Recorder | None = None
    reach: Callable[[str], tuple[ServiceUrl, Next]] = _nowhere

    def emit(self, kind: str, **detail: Any) -> None:
        """Say that something happened here."""
        self.events.emit(kind, self.service, self.method, **detail)


class _Constructor:
    """The signature of a class whose ``__new__`` takes anything: that of its ``__init__``."""

    def __get__(self, _: Any, cls: Any) -> Signature:
        return Signature(list(signature(cls.__init__).parameters.values())[1:])


_signature = lru_cache(maxsize=256)(signature)


class Policy:
    """Base of all policies; each is a frozen dataclass with keyword-only options that it checks itself."""

    kind: ClassVar[str]
    """Its name in documents and events. Of one kind, a method has one: its own or its client's."""
    refuses: ClassVar[bool] = False
    """Whether its layer keeps calls from going on (:class:`~meshlib.errors.Refused`). Those are what a document in shadow mode
    is about."""
    either: ClassVar[tuple[str, ...]] = ()
    """Fields of which only one can hold: a document that sets one puts it in place of the others."""

    __signature__ = _Constructor()

    if not TYPE_CHECKING:  # who checks types goes by __init__

        def __new__(cls, *given: Any, **options: Any) -> Self:
            if given or options:  # copying makes one of nothing
                _check_options(cls, given, options)
            return super().__new__(cls)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in vars(cls):
            OTHERS[cls.kind] = cls

    @classmethod
    def of(cls, given: Any, where: str, over: Policy | None = None) -> Self:
        """One with the fields that are ``given`` as plain data, as documents have them, the others as those of ``over``, one of
        the same class. Raises :class:`ConfigError` with the path of the field, below ``where``."""
        from meshlib.policies.plain import made  # noqa: PLC0415 - it needs this module

        return made(cls, given, where, over if isinstance(over, cls) else None)

    def options(self) -> dict[str, Any]:
        """What its constructor takes to make it again."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}  # type: ignore[arg-type]

    def bind(self, site: Site) -> Layer:
        """The layer that enforces it at ``site``, with state of its own."""
        raise NotImplementedError

    def check(self, where: str, *, awaits: bool, yields: bool, arguments: Iterable[str]) -> None:
        """Raise :class:`ConfigError` if it cannot stand on ``where``, a function or declared method with these ``arguments``,
        which runs in an event loop if it ``awaits``, and is a generator if it ``yields``."""

    def check_own(self, where: str, *, verb: str, fits: Callable[[Any], bool], arguments: Iterable[str]) -> None:  # noqa: ARG002
        """Raise :class:`ConfigError` if it cannot do anything on ``where``, the one function or declared method that it was put
        on, which performs ``verb``, and returns what ``fits``. (On a whole client it may be meant for other methods.)"""
        wanted, known = getattr(getattr(self, "key", None), "parameter", None), list(arguments)
        if wanted is not None and wanted not in known:
            better = nearest(wanted, known) or next(iter(known), "")
            raise ConfigError(f"{self.kind}(key=)", f"is the parameter {wanted!r}, which {where} has not",
                              example=f'keys.parameter("{better}")' if better else "another key")  # fmt: skip

    def __call__(self, target: F = _NOTHING) -> F:
        """As a decorator: of a declared method or client, which its calls then pass, or of any function, whose type stays."""
        from meshlib.policies.functions import govern  # noqa: PLC0415 - it needs this module

        if target is _NOTHING:  # what was to be decorated is inside: it was taken for an option
            raise ConfigError(self.kind, "is a policy, and no function: it was put on one without its parentheses",
                              example=f"@{self.kind}(…)")  # fmt: skip
        if isinstance(target, type) or hasattr(target, "__mesh_endpoint__"):
            setattr(target, POLICIES, (self, *vars(target).get(POLICIES, ())))
            return target  # pyright: ignore[reportReturnType] - a class is callable, too
        return govern(target, self)  # type: ignore[return-value]


def _check_options(cls: type[Policy], given: tuple[Any, ...], options: dict[str, Any]) -> None:
    takes = _signature(cls)  # type: ignore[arg-type] # mypy takes a class with its instances' __hash__ for unhashable
    if len(given) == 1 and not options and type(given[0]) is FunctionType and not _takes_function(takes):
        raise ConfigError(cls.kind, f"was put on {shown(given[0])} without its parentheses", example=f"@{cls.kind}(…)")
    try:
        takes.bind(*given, **options)
    except TypeError as problem:
        known = [each.name for each in takes.parameters.values() if each.kind is not each.VAR_POSITIONAL]
        unknown = next((name for name in options if name not in known), None)
        if unknown is None:
            options_are = ", ".join(known)
            raise ConfigError(cls.kind, f"{problem}; it takes {options_are}", example=f"@{cls.kind}(…) above a def") from None
        near = nearest(unknown, known)
        raise ConfigError(f"{cls.kind}({unknown}=)", f"is no option; {', '.join(known)} are",
                          example=f"{cls.kind}({near or known[0]}=…)") from None  # fmt: skip


def _takes_function(takes: Signature) -> bool:
    """Whether the first parameter may be a function, as far as its hint says."""
    first = next((each for each in takes.parameters.values() if each.kind is not each.KEYWORD_ONLY), None)
    hint = "" if first is None else str(first.annotation)
    return "Callable" in hint or "Any" in hint or (first is not None and first.annotation is first.empty)


def checked(policies: Iterable[Any], where: str) -> tuple[Policy, ...]:
    """``policies`` as a tuple. Raises :class:`ConfigError` for what is none."""
    example = "policies=[retry(attempts=3)]"
    if not isinstance(policies, Iterable):
        raise ConfigError(where, f"{policies!r:.60} is no list", example=example)
    found = tuple(policies)
    for each in found:
        if not isinstance(each, Policy):
            raise ConfigError(where, f"{each!r:.60} is not a policy", example=example)
    return found


def overlaid(below: Sequence[Policy], above: Sequence[Policy]) -> tuple[Policy, ...]:
    """``below`` with those of ``above`` in place of its own of the same kind: a method's over its client's, a document's over
    the code's."""
    kinds = {each.kind for each in above}
    return (*(each for each in below if each.kind not in kinds), *above)
