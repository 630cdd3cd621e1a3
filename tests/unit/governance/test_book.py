"""Books: what holds, what is refused, and that a document takes effect everywhere or nowhere."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from meshlib import bulkhead, rate_limit, retry, timeout
from meshlib.client.stack import Stack
from meshlib.events import Event, Events
from meshlib.flow import Call, Flow, Layer, Next, compose
from meshlib.governance.book import DISK, KV, Book
from meshlib.governance.document import Document, read
from meshlib.model import ServiceUrl
from meshlib.policies.base import Policy, Site
from meshlib.testing import FakeClock

ORDERS = ServiceUrl("orders")


def document(version: int, policies: Any = None, **fields: Any) -> Document:
    consumer = {"policies": policies or {}, **fields.pop("consumer", {})}
    return read({"version": version, "consumer": consumer, **fields}, ORDERS, "test")


def tries(count: int) -> dict[str, Any]:
    return {"retry": {"attempts": count}}


@dataclass
class World:
    """A book, and what it says."""

    max_age: float = 100.0
    clock: FakeClock = field(default_factory=FakeClock)
    heard: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        events = Events()
        events.listen(self.heard.append)
        self.book = Book(ORDERS, events=events, max_age=self.max_age, clock=self.clock)

    def stack(self, *policies: Policy, method: str = "") -> Stack:
        made = Stack(Site(service="orders", method=method), policies, compose([]))
        self.book.govern(made)
        return made

    @property
    def said(self) -> list[str]:
        found = [f"{event.kind.removeprefix('governance.')} {event.detail['version']}" for event in self.heard]
        self.heard.clear()
        return found


def in_force(stack: Stack) -> tuple[Policy, ...]:
    assert len(stack._bound) == len(stack.effective)
    return stack.effective


def test_a_document_is_in_force_at_stacks_of_before_and_after() -> None:
    world = World()
    before = world.stack(retry(3, base=0.1))
    assert world.book.offer(document(1, tries(5)), KV)
    after = world.stack(bulkhead(2), method="Orders.get")
    assert in_force(before) == (retry(5, base=0.1),)
    assert in_force(after) == (retry(5), bulkhead(2))
    assert str(before.origin) == "policy document, version 1 (kv, enforce): retry(attempts)"
    assert world.said == ["applied 1"]
    world.book.offer(document(2), KV)
    assert (in_force(before), in_force(after)) == ((retry(3, base=0.1),), (bulkhead(2),))


def test_methods_have_rules_of_their_own() -> None:
    world = World()
    get, put, client = (world.stack(method=name) for name in ("Orders.get", "Orders.put", ""))
    world.book.offer(document(1, tries(5), consumer={"methods": {"Orders.g*": tries(1), "Orders.put": {"retry": None}}}), KV)
    assert [in_force(each) for each in (get, put, client)] == [(retry(1),), (), (retry(5),)]


@pytest.mark.parametrize(("offers", "version", "said"), [
    ([(1, 3), (2, 4)], 2, ["applied 1", "applied 2"]),
    ([(1, 3), (1, 3), (1, 3)], 1, ["applied 1"]),
    ([(5, 3), (4, 3)], 5, ["applied 5", "rejected 4"]),
    ([(5, 3), (4, 3), (4, 3)], 5, ["applied 5", "rejected 4"]),
    ([(5, 3), (5, 4)], 5, ["applied 5", "rejected 5"]),
    ([(5, 3), (5, 4), (5, 3), (5, 4)], 5, ["applied 5", "rejected 5", "rejected 5"]),
    ([(5, 3), (6, 3)], 6, ["applied 5", "applied 6"]),
    ([(5, 3), (1, 9), (9, 1)], 9, ["applied 5", "rejected 1", "applied 9"]),
])  # fmt: skip
def test_versions_only_go_up(offers: list[tuple[int, int]], version: int, said: list[str]) -> None:
    world = World()
    stack = world.stack()
    for number, count in offers:
        world.book.offer(document(number, tries(count)), KV)
    held = next(count for number, count in offers if number == version)
    assert in_force(stack) == (retry(held),)
    assert world.book.document is not None
    assert world.book.document.version == version
    assert world.said == said


def test_what_does_not_go_together_with_one_stack_is_in_force_at_none() -> None:
    """Negative control: without the contradiction it is in force at all."""
    for attempt, applied in ((2, False), (0.5, True)):
        world = World()
        stacks = [world.stack(retry(3)), world.stack(timeout(5, attempt=attempt), method="a"), world.stack(method="b")]
        world.book.offer(document(1, tries(4)), KV)
        before = [in_force(each) for each in stacks]
        assert world.book.offer(document(2, {"timeout": {"seconds": 1}}), KV) is applied
        assert ([in_force(each) for each in stacks] == before) is not applied
        assert {each.origin.version for each in stacks if each.origin} == {2 if applied else 1}
        assert world.said == ["applied 1", "applied 2" if applied else "rejected 2"]
        if not applied:
            assert "consumer.policies.timeout.attempt" in world.book.problem
            assert "at a: 2 s is longer" in world.book.problem
            assert world.book.offer(document(2, tries(4)), KV)  # of a version that was refused, there is another content


@dataclass(frozen=True)
class brittle(Policy):
    """Cannot be bound where the name is in the list."""

    kind: ClassVar[str] = "brittle"
    breaks: tuple[str, ...] = ()

    def bind(self, site: Site) -> Layer:
        if site.method in self.breaks:
            raise RuntimeError("a bug")

        def layer(call: Call, proceed: Next) -> Flow:
            return (yield from proceed(call))

        return layer


def test_a_layer_that_cannot_be_bound_changes_nothing() -> None:
    world = World()
    stacks = [world.stack(method=name) for name in "abc"]
    assert not world.book.offer(document(1, {"brittle": {"breaks": ["b"]}}), KV)
    assert [in_force(each) for each in stacks] == [(), (), ()]
    assert world.said == ["rejected 1"]
    assert "RuntimeError" in world.book.problem


def test_a_client_that_comes_later_and_does_not_fit_goes_on_with_its_code() -> None:
    world = World()
    world.book.offer(document(1, {"timeout": {"seconds": 1}}), KV)
    stack = world.stack(timeout(5, attempt=2))
    assert in_force(stack) == (timeout(5, attempt=2),)
    assert stack.origin is not None
    assert "longer than the whole call's 1 s" in stack.origin.problem
    assert world.said == ["applied 1", "rejected 1"]


def test_the_source_is_the_disk_until_a_store_confirms_it() -> None:
    world = World()
    stack = world.stack()
    world.book.offer(document(1, tries(2)), DISK, age=50)
    assert (world.book.source, stack.origin and stack.origin.source) == ("disk", "disk")
    proceed = stack.proceed
    world.book.offer(document(1, tries(2)), KV)
    assert (world.book.source, stack.origin and stack.origin.source) == ("kv", "kv")
    assert stack.proceed is proceed
    assert world.said == ["applied 1"]


def test_the_hard_age() -> None:
    world = World()
    stack = world.stack(bulkhead(1))
    world.book.offer(document(1, tries(2)), DISK, age=60)
    world.clock.advance(40)
    world.book.expire()
    assert retry(2) in in_force(stack)
    world.clock.advance(0.1)
    world.book.expire()
    world.book.expire()
    assert (in_force(stack), stack.origin) == ((bulkhead(1),), None)
    assert world.said == ["applied 1", "expired 1"]
    assert not world.book.offer(document(1, tries(3)), KV)  # what it said is not forgotten
    assert world.book.offer(document(1, tries(2)), KV)
    assert retry(2) in in_force(stack)


def test_a_confirmed_document_does_not_grow_old_and_has_a_say_in_its_age() -> None:
    world = World()
    world.book.offer(document(1, max_age=10.0), KV)
    for _ in range(5):
        world.clock.advance(9)
        world.book.expire()
        world.book.offer(document(1, max_age=10.0), KV)
    assert world.book.document is not None
    world.clock.advance(9)
    world.book.hold()  # the store answers, with something that was refused
    world.clock.advance(9)
    world.book.expire()
    assert world.book.document is not None
    world.clock.advance(2)
    world.book.expire()
    assert world.book.document is None


def test_a_document_that_vanished_ends_nothing_but_grows_old() -> None:
    world = World()
    world.book.missing()
    assert world.said == []
    stack = world.stack()
    world.book.offer(document(1, tries(2)), KV)
    world.book.missing()
    world.book.missing()
    assert in_force(stack) == (retry(2),)
    assert world.said == ["applied 1", "missing 1"]
    world.clock.advance(101)
    world.book.expire()
    assert in_force(stack) == ()


def test_shadow_mode_leaves_the_code_in_force() -> None:
    world = World()
    stack = world.stack(retry(3))
    world.book.offer(document(1, {"rate_limit": {"limits": "1/s"}, "retry": {"attempts": 9}}, mode="shadow"), KV)
    assert [each.kind for each in in_force(stack)] == ["retry", "rate_limit"]
    assert retry(3) in in_force(stack)
    assert "(kv, shadow): rate_limit(limits), retry has nothing to set here" in str(stack.origin)
    world.book.offer(document(2, {"rate_limit": {"limits": "1/s"}}), KV)
    assert in_force(stack) == (retry(3), rate_limit("1/s"))


def test_clients_that_come_while_documents_change_have_the_last_one() -> None:
    """Threads make stacks while another puts documents in force: whoever came, has the last one in the end."""
    world, stacks = World(), list[Stack]()

    def make() -> None:
        for _ in range(30):
            stacks.append(world.stack())
            time.sleep(0)

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(1, 40):
        world.book.offer(document(version, tries(version)), KV)
    for thread in threads:
        thread.join()
    assert {in_force(each) for each in stacks} == {(retry(39),)}


def test_binding_may_make_another_client() -> None:
    world = World()

    @dataclass(frozen=True)
    class making(Policy):
        kind: ClassVar[str] = "making"

        def bind(self, site: Site) -> Layer:
            world.stack(method="inner") if site.method == "outer" else None
            return brittle().bind(site)

    world.book.offer(document(1, {"making": {}}), KV)
    assert [each.kind for each in in_force(world.stack(method="outer"))] == ["making"]
