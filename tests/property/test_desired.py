"""Desired state against a naive model: a dictionary of documents, and what a reader would say has to be done."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshlib.backends.memory import MemoryKeyValue, Store
from meshlib.governance.desired import Wanted, normal, perform, plan
from meshlib.governance.policies import Policies
from meshlib.model import ServiceUrl

NAMES = ("orders", "users", "shop.prod.stock", "shop.prod.users")
CONTENTS: tuple[dict[str, Any], ...] = (
    {},
    {"consumer": {"policies": {"retry": {"attempts": 5}}}},
    {"consumer": {"policies": {"retry": {"attempts": 6}}}},
    {"mode": "shadow", "consumer": {"policies": {"rate_limit": {"limits": "10/s"}}}},
)

states = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CONTENTS))


@given(before=states, desired=states, prune=st.booleans(), namespace=st.sampled_from(["", "shop.prod"]))
def test_it_becomes_what_is_desired_in_as_few_steps_as_there_are_differences(
    before: dict[str, dict[str, Any]], desired: dict[str, dict[str, Any]], prune: bool, namespace: str
) -> None:
    async def story() -> None:
        policies = Policies(MemoryKeyValue(Store()))
        for name, content in before.items():
            await policies.put(name, content)
        wanted = [Wanted(ServiceUrl.parse(name), content, "a file") for name, content in desired.items()]
        steps = await plan(policies, wanted, prune=prune, namespace=namespace)
        expected = dict(before)
        actions = {}
        for name in {*before, *desired}:
            here = ServiceUrl.parse(name).namespace == namespace
            if name in desired:
                there = before.get(name, {})
                actions[name] = "unchanged" if there == desired[name] else "change" if there else "create"
                if not (desired[name] == {} and name not in before):
                    expected[name] = desired[name]
            elif prune and here and before[name]:
                actions[name], expected[name] = "delete", {}
        assert {str(step.service): step.action for step in steps} == actions
        for step in steps:
            await perform(policies, step)
        for name in NAMES:
            document = await policies.get(name)
            assert (normal(document.content, note=False) if document else {}) == expected.get(name, {})
        again = await plan(policies, wanted, prune=prune, namespace=namespace)
        assert {step.action for step in again} <= {"unchanged"}

    asyncio.run(story())
