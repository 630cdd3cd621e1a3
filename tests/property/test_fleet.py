"""Fleets in lockstep with a naive model."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.layer import Balance
from meshlib.balance.pickers import PICKERS
from meshlib.errors import NoInstances
from meshlib.model import Status
from tests.unit.flows import FakeSource, call_to, fleet, instance, update

NAMES = "abcd"
listings = st.dictionaries(
    st.sampled_from(NAMES), st.tuples(st.sampled_from(Status), st.sampled_from(["", "2"]), st.booleans()), max_size=4
)


class FleetMachine(RuleBasedStateMachine):
    """``model`` is what is listed: name → (status, generation, suspect, ejected)."""

    def __init__(self) -> None:
        super().__init__()
        self.drained: list[Endpoint] = []
        self.fleet = fleet(on_drained=self.drained.append)
        self.model: dict[str, tuple[Status, str, bool, bool]] = {}
        self.flying: list[tuple[Endpoint, object]] = []
        self.seen: set[Endpoint] = set()
        self.balances = [Balance(FakeSource(self.fleet), picker) for picker in PICKERS.values()]

    @rule(listing=listings)
    def update(self, listing: dict[str, tuple[Status, str, bool]]) -> None:
        before, self.model = self.model, {}
        for name, (status, generation, suspect) in listing.items():
            same = name in before and before[name][1] == generation
            self.model[name] = (status, generation, suspect, same and before[name][3])
        listed = [instance(name, status=one[0], generation=one[1]) for name, one in sorted(listing.items())]
        update(self.fleet, *listed, suspects=[name for name, one in listing.items() if one[2]])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), ejected=st.booleans())
    def health(self, data: st.DataObject, ejected: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        endpoint = self.fleet.find(name)
        assert endpoint is not None
        if ejected:
            self.fleet.eject(endpoint)
        elif endpoint.ejected is not None:
            self.fleet.restore(endpoint, endpoint.ejected)
        self.model[name] = (*self.model[name][:3], ejected)

    @rule(which=st.integers(0, 1))
    def pick(self, which: int) -> None:
        try:
            endpoint = self.balances[which].pick(call_to())
        except NoInstances:
            assert all(status is Status.MAINTENANCE for status, *_ in self.model.values()), "refused though somebody is there"
            return
        assert endpoint.instance.id in self.best()
        attempt = object()
        endpoint.in_flight.add(attempt)
        self.flying.append((endpoint, attempt))
        self.seen.add(endpoint)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), times=st.integers(1, 2))
    def release(self, data: st.DataObject, times: int) -> None:
        endpoint, attempt = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        for _ in range(times):
            endpoint.release(attempt)

    @rule()
    def fork(self) -> None:
        self.fleet.forked()
        self.model = {name: (*one[:3], False) for name, one in self.model.items()}
        self.flying = []
        self.seen = set()

    def best(self) -> set[str]:
        tiers: list[set[str]] = [set(), set(), set()]
        for name, (status, _, suspect, ejected) in self.model.items():
            if status is not Status.MAINTENANCE:
                tiers[2 if ejected else 1 if suspect or status is Status.DRAINING else 0].add(name)
        return next((tier for tier in tiers if tier), set())

    @invariant()
    def usable_is_the_best_tier(self) -> None:
        assert {endpoint.instance.id for endpoint in self.fleet.tiers.usable} == self.best()

    @invariant()
    def in_flight_is_what_flies(self) -> None:
        for endpoint in self.seen:
            assert endpoint.in_flight == {attempt for one, attempt in self.flying if one is endpoint}

    @invariant()
    def the_gone_and_idle_are_drained(self) -> None:
        for endpoint in self.seen:
            if endpoint.retired and not endpoint.in_flight:
                assert endpoint in self.drained
            assert endpoint.retired == (self.fleet.find(endpoint.instance.id) is not endpoint)


TestFleet = FleetMachine.TestCase
