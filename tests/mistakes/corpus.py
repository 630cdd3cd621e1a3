"""The corpus of mistakes. A case is a function that makes one, named after it, with what comes of that::

    @raises(ConfigError, "MESH_PORT (from environment)", "'80a' is not a port", "for example 8080")
    def port_that_is_no_number() -> None:
        Settings.load(environ={"MESH_PORT": "80a"})

The phrases say which setting or parameter it is, where its value came from, and what to do next. :func:`warns` is for mistakes
after which things go on: one line in the log says so; :func:`exits` for those of the command line. Cases may take fixtures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Case:
    """``error`` is the type that is raised; ``code`` the exit code of the command line that ``make`` returns. With neither, it
    is logged."""

    make: Callable[..., Any]
    phrases: tuple[str, ...]
    error: type[BaseException] | None = None
    code: int | None = None

    @property
    def name(self) -> str:
        """Of its module and function."""
        return f"{self.make.__module__.rpartition('.')[2]}: {self.make.__name__.replace('_', ' ')}"


CASES: Final[list[Case]] = []


def raises(error: type[BaseException], *phrases: str) -> Callable[[F], F]:
    """The mistake raises ``error``, whose text has all ``phrases``."""
    return _case(phrases, error=error)


def warns(*phrases: str) -> Callable[[F], F]:
    """The mistake is logged in one record, as a warning or an error, which has all ``phrases``."""
    return _case(phrases)


def exits(code: int, *phrases: str) -> Callable[[F], F]:
    """The function returns the words of a command line, which ends with ``code``, and says all ``phrases`` in its last line, on
    standard error."""
    return _case(phrases, code=code)


def _case(phrases: tuple[str, ...], **outcome: Any) -> Callable[[F], F]:
    assert phrases

    def added(make: F) -> F:
        CASES.append(Case(make, phrases, **outcome))
        return make

    return added
