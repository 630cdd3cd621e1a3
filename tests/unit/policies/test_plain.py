"""Policies from plain data: what documents may say of them, and how they are told what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from meshlib import (
    Match,
    Subset,
    bulkhead,
    cache,
    circuit_breaker,
    fallback,
    hedge,
    inject_fault,
    keys,
    rate_limit,
    retry,
    route,
    timeout,
)
from meshlib.errors import ConfigError
from meshlib.flow import Layer
from meshlib.policies.base import OTHERS, Policy, Site
from meshlib.policies.budget import RetryBudget
from meshlib.policies.plain import check, kind_of, kinds, lacks


@dataclass(frozen=True)
class theirs(Policy):
    """A policy of somebody else's, with a class of options in it."""

    kind: ClassVar[str] = "theirs"
    size: int
    budget: RetryBudget | None = field(default=None, kw_only=True)
    chooses: Callable[[Any], str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.size + 0 > 100:  # a text fails here, as policies of others may
            raise ConfigError("theirs(size=)", f"{self.size} is too large", example="theirs(5)")

    def bind(self, site: Site) -> Layer:
        raise NotImplementedError


def of(kind: str, given: Any, over: Policy | None = None) -> Policy:
    return kind_of(kind, "p").of(given, f"p.{kind}", over)


@pytest.mark.parametrize(("kind", "given", "over", "made"), [
    ("retry", {"attempts": 5}, None, retry(5)),
    ("retry", {"attempts": 5}, retry(3, base=0.1), retry(5, base=0.1)),
    ("retry", {}, retry(3, base=0.1), retry(3, base=0.1)),
    ("retry", {"budget": None, "statuses": [500]}, retry(3), retry(3, budget=None, statuses=(500,))),
    ("retry", {"budget": {"share": 0.5}}, retry(budget=RetryBudget(per_second=1)),
     retry(budget=RetryBudget(share=0.5, per_second=1))),
    ("retry", {"stop": None}, retry(stop=lambda _: True), retry()),
    ("timeout", {"attempt": 0.5}, timeout(2.0), timeout(2.0, attempt=0.5)),
    ("timeout", {"seconds": 1, "attempt": None}, timeout(2.0, attempt=1.5), timeout(1)),
    ("hedge", {"delay": 0.1}, hedge(quantile=0.9, attempts=3), hedge(delay=0.1, attempts=3)),
    ("hedge", {"quantile": 0.5}, hedge(delay=0.1), hedge(quantile=0.5)),
    ("bulkhead", {"wait": 1}, bulkhead(3), bulkhead(3, wait=1)),
    ("rate_limit", {"limits": ["10/s", "100/m"]}, None, rate_limit("10/s", "100/m")),
    ("rate_limit", {"limits": "10/s"}, rate_limit("1/s", wait=2.0), rate_limit("10/s", wait=2.0)),
    ("rate_limit", {"wait": 0}, rate_limit("1/s", wait=2.0), rate_limit("1/s", wait=0)),
    ("rate_limit", {"key": "header:x-user", "limits": "1/s"}, None,
     rate_limit("1/s", key=keys.named("header:x-user", ""))),
    ("route", {"rules": [{"to": "v2"}]}, route(subsets={"v2": Subset(version="^2")}),
     route({"to": "v2"}, subsets={"v2": Subset(version="^2")})),
    ("route", {"rules": [{"to": "v2"}], "subsets": {"v2": {"version": "^2"}}}, None,
     route({"to": "v2"}, subsets={"v2": Subset(version="^2")})),
    ("circuit_breaker", {"failure_rate": 0.2}, circuit_breaker(0.5, minimum=3), circuit_breaker(0.2, minimum=3)),
    ("cache", {"ttl": 5}, None, cache(5)),
    ("fallback", {"value": []}, fallback(list), fallback(value=[])),
    ("fallback", {"value": None}, fallback(list, last_good=5.0), fallback(value=None, last_good=5.0)),
    ("fallback", {"last_good": 9.0}, fallback(list), fallback(list, last_good=9.0)),
    ("inject_fault", {"abort": 503, "percent": 10, "when": {"path": "/x*"}}, None,
     inject_fault(abort=503, percent=10, when=Match(path="/x*"))),
    ("theirs", {"size": 5, "budget": {"share": 0.1}}, None, theirs(5, budget=RetryBudget(share=0.1))),
    ("theirs", {"budget": {"share": 0.1}}, theirs(5), theirs(5, budget=RetryBudget(share=0.1))),
])  # fmt: skip
def test_field_by_field(kind: str, given: Any, over: Policy | None, made: Policy) -> None:
    assert of(kind, given, over) == made


@pytest.mark.parametrize(("kind", "given", "over", "path", "problem"), [
    ("nothing", {}, None, "p.nothing", "no kind of policy; .*bulkhead, .*timeout are allowed"),
    ("keys", {}, None, "p.keys", "no kind of policy"),
    ("Mesh", {}, None, "p.Mesh", "no kind of policy"),
    ("retry", {"atempts": 5}, None, "p.retry.atempts", "not known; attempts, stop, .* are allowed"),
    ("retry", {"attempts": 0}, None, "p.retry.attempts", "0 is not a number from 1 to 1000"),
    ("retry", {"attempts": "5"}, None, "p.retry.attempts", "'5' is not a number"),
    ("retry", [5], None, "p.retry", r"\[5\] is no mapping of fields"),
    ("retry", {"stop": "after 3"}, None, "p.retry.stop", "takes a function, which a document cannot have"),
    ("retry", {"budget": {"share": 7}}, None, "p.retry.budget.share", "7 is not a share from 0 to 1"),
    ("retry", {"budget": {"shar": 7}}, None, "p.retry.budget.shar", "not known; share, per_second"),
    ("retry", {"budget": 5}, None, "p.retry", "budget|RetryBudget"),
    ("timeout", {"seconds": "2s"}, None, "p.timeout.seconds", "'2s' is not a positive number of seconds"),
    ("timeout", {"attempt": 1}, None, "p.timeout.seconds", "is missing"),
    ("timeout", {"seconds": 0.1}, timeout(2, attempt=0.5), "p.timeout.attempt", "longer than the whole call's 0.1 s"),
    ("hedge", {"delay": 1, "quantile": 0.5}, None, "p.hedge.quantile", "only one can hold"),
    ("rate_limit", {"limits": ["10/s", "5/m"]}, None, "p.rate_limit.limits", "10/1s can never be reached"),
    ("rate_limit", {"limits": ["10/fortnight"]}, None, "p.rate_limit.limits", "'fortnight' is no unit of time"),
    ("rate_limit", {"limits": []}, None, "p.rate_limit.limits", "no limit is given"),
    ("rate_limit", {"limits": "1/s", "key": "user"}, None, "p.rate_limit.key", "'user' is no key; header:NAME"),
    ("rate_limit", {"limits": "1/s", "scope": "moon"}, None, "p.rate_limit.scope", "'moon' is none of process, host"),
    ("route", {"rules": [{}, {"to": "v9"}]}, None, r"p.route.rules[1].to", "'v9' is no name of subsets"),
    ("route", {"rules": [{"when": {"paht": "/"}}]}, None, "p.route.rules[0].when.paht", "method, path, headers"),
    ("theirs", {"size": 500}, None, "p.theirs.size", "500 is too large"),
    ("theirs", {"size": "x"}, None, "p.theirs", "cannot be used"),
    ("theirs", {"size": 5, "chooses": "x"}, None, "p.theirs.chooses", "takes a function"),
])  # fmt: skip
def test_what_is_wrong_is_told_with_its_path(kind: str, given: Any, over: Policy | None, path: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        of(kind, given, over)
    assert caught.value.name.startswith(path)


def test_what_is_not_there_is_told_where_it_can_be_told() -> None:
    check(bulkhead, {"wait": 1}, "p")  # the limit may be the code's
    check(retry, {"attempts": 1}, "p")
    assert lacks(bulkhead, {"wait": 1}) == ["limit"]
    assert lacks(rate_limit, {}) == ["limits"]
    for given, path in (({"wai": 1}, "p.wai"), ([], "p")):
        with pytest.raises(ConfigError) as caught:
            check(bulkhead, given, "p")
        assert caught.value.name == path


def test_equal_text_gives_equal_policies_so_that_they_keep_their_state() -> None:
    given = {"limits": ["1/s"], "key": "cookie:session"}
    assert of("rate_limit", given) == of("rate_limit", dict(given))
    assert hash(of("rate_limit", given)) == hash(of("rate_limit", given))


def test_the_public_kinds_are_ours_whoever_defines_one_of_the_name() -> None:
    class retry_of_theirs(Policy):
        kind: ClassVar[str] = "retry"

    assert kind_of("retry", "p") is retry
    assert {"bulkhead", "hedge", "rate_limit", "retry", "route", "timeout", "theirs"} <= set(kinds())
    assert OTHERS["theirs"] is theirs


def test_policies_are_made_again_of_their_options() -> None:
    for policy in (retry(4), rate_limit("1/s", wait=1), route({"to": {"zone": "a"}}), hedge(delay=1), bulkhead(1)):
        assert type(policy).of({}, "p", policy) == policy
