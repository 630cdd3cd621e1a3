"""services, instances, watch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from meshlib.backends.memory import Store
from meshlib.cli.facts import Change, Instances, Listed, Services
from meshlib.cli.services import changes, ticks
from meshlib.discovery.merge import Known
from meshlib.discovery.view import View
from meshlib.mesh import Mesh
from meshlib.model import Instance, ServiceUrl, Snapshot, Status
from meshlib.settings import Settings
from meshlib.testing import FakeClock
from tests.unit.cli.said import Run


def test_services(mesh: Run, orders: list[Instance]) -> None:
    assert (mesh("services").code, mesh("services").out) == (0, "orders\n")


def test_no_services_is_fine(mesh: Run) -> None:
    said = mesh("services", "--json")
    assert (said.code, said.fact(Services).services) == (0, [])


class TestInstances:
    def test_they_are_shown(self, mesh: Run, orders: list[Instance]) -> None:
        said = mesh("instances", "orders")
        assert said.code == 0
        for text in ("http://10.0.0.1:8080", "1.2", "eu", "team=pay", "2 of orders, from the registry", "live"):
            assert text in said.out

    def test_as_a_document(self, mesh: Run, orders: list[Instance]) -> None:
        found = mesh("instances", "orders", "--json").fact(Instances)
        assert found.instances == [Listed.of(one) for one in orders]
        assert (found.live, found.source) == (True, "registry")

    def test_nobody_is_a_no(self, mesh: Run, orders: list[Instance]) -> None:
        said = mesh("instances", "users", "--json")
        assert said.code == 1
        assert said.fact(Instances).instances == []
        assert "users: no instances" in mesh("instances", "users").out

    def test_from_the_disk_when_the_registry_is_down(self, mesh: Run, orders: list[Instance], shared: Store) -> None:
        with Mesh(Settings.load()) as before:
            before.snapshot("orders")
            store = before._surroundings().store
            assert store is not None
            store.save(Snapshot(ServiceUrl("orders"), tuple(orders), confirmed=store.clock() - 5))
        shared.down = True
        found = mesh("instances", "orders", "--json").fact(Instances)
        assert (found.live, found.source, len(found.instances)) == (False, "disk", 2)
        assert "down" in found.problem

    def test_what_is_no_name(self, mesh: Run) -> None:
        assert mesh("instances", "a.b").code == 2

    def test_markup_in_a_label_is_text(self, mesh: Run, shared: Store, orders: list[Instance]) -> None:
        one = replace(orders[0], labels={"x": "[red]y[/red]"})
        shared.instances["", "orders", "a"] = (one, float("inf"))
        assert "x=[red]y[/red]" in mesh("instances", "orders").out


class TestWatch:
    def test_one_line_for_each_change(self, mesh: Run, orders: list[Instance]) -> None:
        said = mesh("watch", "orders", "--seconds", "0", "--json")
        assert said.code == 0
        (line,) = said.out.splitlines()
        assert [one.id for one in msgspec.json.decode(line, type=Change).added] == ["a", "b"]

    def test_a_table(self, mesh: Run, orders: list[Instance]) -> None:
        assert "10.0.0.2:8080" in mesh("watch", "orders", "--seconds", "0").out

    def test_what_becomes_of_a_view(self, orders: list[Instance]) -> None:
        a, b = orders
        draining = replace(a, status=Status.DRAINING)
        found: list[Change] = []

        def states(view: View) -> Iterator[None]:
            yield  # nothing is known
            for number, known in enumerate([
                ((a, b), frozenset[str]()), ((a, b), frozenset[str]()), ((draining, b), frozenset[str]()),
                ((draining, b), frozenset({"b"})), ((draining,), frozenset[str]()),
            ]):  # fmt: skip
                view.known = Known(Snapshot(view.service, known[0], known[1], confirmed=float(number)), {})
                view.live = True
                yield
            view.live, view.problem = False, "gone"
            yield

        with Mesh(Settings(registry="memory://nobody")) as mesh:
            view = mesh.view("orders")
            view.attend = lambda: None  # type: ignore[method-assign]
            found = list(changes(view, None, times=states(view)))
        shown = [([one.id for one in each.added], each.removed, [(one.id, one.status, one.suspect) for one in each.changed], each.live)
                 for each in found]  # fmt: skip
        assert shown == [
            ([], [], [], False),
            (["a", "b"], [], [], True),
            ([], [], [("a", "draining", False)], True),
            ([], [], [("b", "up", True)], True),
            ([], ["b"], [], True),
            ([], [], [], False),
        ]
        assert [each.count for each in found] == [0, 2, 2, 2, 1, 1]
        assert found[-1].problem == "gone"

    @pytest.mark.parametrize(("seconds", "looks"), [(0.0, 1), (1.0, 11)])
    def test_how_often_it_looks(self, seconds: float, looks: int) -> None:
        clock = FakeClock()
        assert abs(len(list(ticks(seconds, clock=clock, sleep=clock.advance))) - looks) <= 1
