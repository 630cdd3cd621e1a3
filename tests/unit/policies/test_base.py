"""Policies: where they may stand, in which order, and whose wins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pytest

from meshlib import get, service_client
from meshlib.client.declare import Declaration
from meshlib.client.stack import Stack, in_order
from meshlib.client.stub import declaration_of
from meshlib.errors import ConfigError
from meshlib.flow import Call, Flow, Layer, Next, compose, run
from meshlib.policies.base import Policy, Site, checked, overlaid
from tests.unit.flows import Answer, Script, call_to

SEEN: list[str] = []


@pytest.fixture(autouse=True)
def unseen() -> None:
    SEEN.clear()


@dataclass(frozen=True, kw_only=True)
class noting(Policy):
    """Notes when it is entered, left, and released."""

    kind: ClassVar[str] = "noting"
    name: str = "n"

    def bind(self, site: Site) -> Layer:
        def layer(call: Call, proceed: Next) -> Flow:
            SEEN.append(f"{self.name}>")
            call.on_close(lambda: SEEN.append(f"{self.name} released"))
            try:
                return (yield from proceed(call))
            finally:
                SEEN.append(f"<{self.name}")

        return layer


@dataclass(frozen=True, kw_only=True)
class retry(noting):
    kind: ClassVar[str] = "retry"


@dataclass(frozen=True, kw_only=True)
class fallback(noting):
    kind: ClassVar[str] = "fallback"


RELEASED = ["a>", "b>", "f 1", "<b", "<a", "b released", "a released"]


def test_the_top_line_is_outermost() -> None:
    @noting(name="a")
    @noting(name="b")
    def function(value: int) -> int:
        """Said of it."""
        SEEN.append(f"f {value}")
        return value + 1

    assert function(1) == 2
    assert sorted(SEEN) == sorted(RELEASED)
    assert SEEN[:3] == RELEASED[:3]
    assert (function.__name__, function.__doc__) == ("function", "Said of it.")


def test_coroutines() -> None:
    @noting(name="a")
    @noting(name="b")
    async def function(value: int) -> int:
        await asyncio.sleep(0)
        SEEN.append(f"f {value}")
        return value + 1

    assert asyncio.run(function(1)) == 2  # type: ignore[arg-type]
    assert sorted(SEEN) == sorted(RELEASED)


def test_what_a_generator_holds_is_released_with_it() -> None:
    @noting(name="a")
    def numbers() -> Iterator[int]:
        yield 1
        yield 2

    assert list(numbers()) == [1, 2]
    assert SEEN == ["a>", "<a", "a released"]
    SEEN.clear()
    begun = numbers()
    assert next(begun) == 1
    assert SEEN == ["a>", "<a"]
    begun.close()  # type: ignore[attr-defined]
    assert SEEN == ["a>", "<a", "a released"]


def test_what_an_async_generator_holds_is_released_with_it() -> None:
    @noting(name="a")
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def main() -> None:
        assert [item async for item in numbers()] == [1, 2]
        assert SEEN == ["a>", "<a", "a released"]
        SEEN.clear()
        begun = numbers()
        assert await anext(begun) == 1
        assert SEEN == ["a>", "<a"]
        await begun.aclose()  # type: ignore[attr-defined]
        assert SEEN == ["a>", "<a", "a released"]

    asyncio.run(main())


@pytest.mark.parametrize("problem", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_function_raises_everything_is_released(problem: type[BaseException]) -> None:
    @noting(name="a")
    def function() -> None:
        raise problem

    with pytest.raises(problem):
        function()
    assert sorted(SEEN) == ["<a", "a released", "a>"]


def test_methods_of_objects() -> None:
    class Shop:
        @noting(name="a")
        def price(self, of: str) -> str:
            return f"{of}: 1"

    assert Shop().price("tea") == "tea: 1"


@pytest.mark.parametrize("thing", [3, "x", None])
def test_what_is_no_function(thing: Any) -> None:
    with pytest.raises(ConfigError, match="cannot stand on"):
        noting()(thing)


# -- on declared clients


def test_on_methods_above_and_below_the_verb_and_on_the_client() -> None:
    @noting(name="outermost")
    @service_client("orders", policies=[retry(name="client")])
    class Orders(Protocol):
        @noting(name="above")
        @get("/a")
        @fallback(name="below")
        def one(self) -> int: ...
        @retry(name="own")
        @get("/b")
        def other(self) -> int: ...

    declaration: Declaration = declaration_of(Orders)
    assert declaration.policies == (retry(name="client"), noting(name="outermost"))
    found = {method.name: method.policies for method in declaration.methods}
    assert found == {"one": (noting(name="above"), fallback(name="below")), "other": (retry(name="own"),)}


def test_what_is_no_policy() -> None:
    with pytest.raises(ConfigError, match="'retry' is not a policy"):
        checked(["retry"], "policies")


def test_of_one_kind_the_upper_wins() -> None:
    below, above = (retry(name="1"), fallback(name="2")), (retry(name="3"),)
    assert overlaid(below, above) == (fallback(name="2"), retry(name="3"))


def test_the_order_is_not_that_of_the_list() -> None:
    assert in_order([retry(), noting(name="mine"), fallback()]) == (noting(name="mine"), fallback(), retry())


def test_rules_over_the_code_and_gone_again() -> None:
    stack = Stack(Site(), [retry(name="code"), fallback()], compose([]))
    run(stack.proceed, call_to(), Script(Answer()))
    assert [each for each in SEEN if each.endswith(">")] == ["n>", "code>"]
    before = dict(stack._bound)
    stack.overlay([retry(name="document")])
    SEEN.clear()
    run(stack.proceed, call_to(), Script(Answer()))
    assert [each for each in SEEN if each.endswith(">")] == ["n>", "document>"]
    assert stack._bound[fallback()] is before[fallback()], "what did not change keeps its state"
    stack.overlay([])
    assert stack.effective == (fallback(), retry(name="code"))
