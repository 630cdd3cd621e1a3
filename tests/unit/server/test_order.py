"""THE ORDER of a provider, limits for some requests only, and rules that are laid over them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from meshlib import (
    ConfigError,
    Match,
    Mesh,
    Settings,
    bulkhead,
    circuit_breaker,
    hedge,
    inject_fault,
    keys,
    on,
    rate_limit,
    retry,
    shed,
    timeout,
)
from meshlib.events import Events
from meshlib.flow import Call
from meshlib.policies.base import Policy, Site
from meshlib.server import ORDER, ProviderStack, governed_asgi, governed_wsgi
from meshlib.server.order import in_order
from meshlib.testing import FakeClock, Reply, play
from tests.unit.flows import call_to
from tests.unit.server.serving import Started, asked, environ, layer_of, scope, stack
from tests.unit.server.test_asgi import tea

POSTS = Match(method="POST", path="/orders/*")


def statuses(app: Any, *requests: Any) -> list[int]:
    return [asked(app, each)[0] for each in requests]


class Custom(Policy):
    kind = "custom"

    def bind(self, site: Site) -> Any:
        return lambda call, proceed: proceed(call)


def test_the_order() -> None:
    given = [shed(), on(POSTS, bulkhead(1), rate_limit("1/s")), bulkhead(2), rate_limit("2/s"), timeout(1.0), Custom()]
    assert [(part.policy.kind, part.match) for part in in_order(given)] == [
        ("custom", None), ("timeout", None), ("rate_limit", None), ("rate_limit", POSTS), ("bulkhead", None),
        ("bulkhead", POSTS), ("shed", None),
    ]  # fmt: skip


def test_the_order_is_drawn() -> None:
    from meshlib.server import order

    drawn = [line.split()[0] for line in (order.__doc__ or "").splitlines() if line[:1].islower() and "  " in line]
    assert [each for each in drawn if each in ORDER] == list(ORDER)


class TestOn:
    def test_only_what_matches_is_limited(self) -> None:
        app = governed_asgi(tea, stack(on(POSTS, rate_limit("1/h"))))
        requests = scope("/orders/7", "POST"), scope("/orders/8", "POST"), scope("/orders/7"), scope("/carts/7", "POST")
        assert statuses(app, *requests) == [200, 429, 200, 200]

    def test_by_caller(self) -> None:
        app = governed_asgi(tea, stack(on(POSTS, rate_limit("1/h", key=keys.caller()))))
        by = {name: scope("/orders/7", "POST", [(b"x-mesh-caller", name)]) for name in (b"shop", b"till")}
        assert statuses(app, by[b"shop"], by[b"shop"], by[b"till"]) == [200, 429, 200]

    def test_by_query_parameter(self) -> None:
        app = governed_asgi(tea, stack(rate_limit("1/h", key=keys.parameter("customer"))))
        assert statuses(app, *(scope(f"/orders?customer={n}") for n in (7, 7, 8))) == [200, 429, 200]

    def test_all_that_match_count_and_are_told(self) -> None:
        app = governed_asgi(tea, stack(rate_limit("9/h"), on(POSTS, rate_limit("1/h")), on(Match(path="/o*"), bulkhead(1))))
        _, both, _ = asked(app, scope("/orders/7", "POST"))
        assert both["ratelimit-policy"] == '"9/3600s";q=9;w=3600, "1/3600s";q=1;w=3600'
        _, one, _ = asked(app, scope("/orders/7"))
        assert one["ratelimit-policy"] == '"9/3600s";q=9;w=3600'

    def test_events_say_which(self) -> None:
        events = Events()
        provider = ProviderStack(Site(service="orders", events=events), [on(POSTS, rate_limit("1/h"))])
        app = governed_asgi(tea, provider)
        statuses(app, *[scope("/orders/7", "POST")] * 2)
        assert events.counts() == {("rate_limit.refused", "orders", "method='POST', path='/orders/*'"): 1}

    def test_on_a_client_or_function_too(self) -> None:
        layer = on(POSTS, bulkhead(1)).bind(Site())
        played = [play([layer], [Reply()], call=call_to(b"/orders/7", method)) for method in ("POST", "POST", "GET")]
        assert [each.status for each in played] == [200, None, 200]

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: on(POSTS), "has no policies"),
            (lambda: on("/orders", bulkhead(1)), "'/orders' is no Match"),
            (lambda: on(POSTS, on(POSTS, bulkhead(1))), "holds another on()"),
            (lambda: on(POSTS, 7), "7 is not a policy"),
            (lambda: stack(on(POSTS, retry())), "retry cannot stand on a provider"),
            (lambda: stack(hedge(delay=0.1)), "hedge cannot stand on a provider"),
        ],
    )
    def test_bad_ones(self, make: Any, said: str) -> None:
        with pytest.raises(ConfigError, match=said.replace("(", r"\(").replace(")", r"\)")):
            make()

    def test_they_compare(self) -> None:
        assert on(POSTS, bulkhead(1)) == on(Match(path="/orders/*", method="post"), bulkhead(1))
        assert len({on(POSTS, bulkhead(1)), on(POSTS, bulkhead(1)), on(POSTS, bulkhead(2))}) == 2


class TestOverlay:
    def test_rules_stand_in_place_of_the_codes(self) -> None:
        provider = stack(rate_limit("1/h"), on(POSTS, bulkhead(1)), on(Match(path="/a"), bulkhead(1)))
        provider.overlay([rate_limit("2/h"), on(POSTS, bulkhead(5))])
        assert provider.effective == (on(Match(path="/a"), bulkhead(1)), rate_limit("2/h"), on(POSTS, bulkhead(5)))
        provider.overlay([])
        assert provider.effective == provider.policies

    def test_what_stays_keeps_its_state_and_what_changes_begins_anew(self) -> None:
        provider = stack(rate_limit("1/h"))
        app = governed_asgi(tea, provider)
        assert statuses(app, scope(), scope()) == [200, 429]
        provider.overlay([bulkhead(5)])
        assert statuses(app, scope()) == [429]
        provider.overlay([rate_limit("2/h")])
        assert statuses(app, scope(), scope(), scope()) == [200, 200, 429]

    def test_a_provider_without_policies_gets_some(self) -> None:
        provider = stack()
        app = governed_asgi(tea, provider)
        assert provider.proceed is None
        assert statuses(app, scope()) == [200]
        provider.overlay([rate_limit("1/h")])
        assert statuses(app, scope(), scope()) == [200, 429]
        provider.overlay([])
        assert provider.proceed is None

    def test_what_cannot_be_changes_nothing(self) -> None:
        provider = stack(rate_limit("1/h"))
        before = provider.proceed
        with pytest.raises(ConfigError):
            provider.overlay([bulkhead(1), retry()])
        assert (provider.proceed, provider.effective) == (before, (rate_limit("1/h"),))

    def test_a_request_under_way_keeps_its_rules(self) -> None:
        provider = stack(bulkhead(1))
        seen: list[Any] = []

        async def changing(_scope: Any, _receive: Any, send: Any) -> None:
            provider.overlay([bulkhead(2)])
            seen.append(provider.effective)
            await tea(_scope, _receive, send)

        assert statuses(governed_asgi(changing, provider), scope()) == [200]
        assert seen == [(bulkhead(2),)]


def test_explain_says_how_it_stands() -> None:
    provider = stack(shed(), on(POSTS, shed(normal=0.5, sheddable=0.5)))
    (said,) = provider.explain(Call(provider.service, "GET", b"/", [(b"x-mesh-priority", b"critical")]))
    assert said == ("shed", "critical; 0 under way, at most 20.0 (latency 0.0 ms, without a queue 0.0 ms)")
    assert len(provider.explain(Call(provider.service, "POST", b"/orders/7"))) == 2


def test_a_mesh_knows_its_provider_stacks() -> None:
    with Mesh(Settings(service="orders", namespace="shop.prod", registry="memory://providers")) as mesh:
        app = mesh.asgi(tea, policies=[rate_limit("1/h")])
        (provider,) = mesh._provider_stacks
        assert (provider.site.service, provider.site.method) == ("shop.prod.orders", "")
        assert provider.site.state_dir() == mesh.settings.state_path / "provider"
        assert statuses(app, scope(), scope()) == [200, 429]
        assert mesh.events.counts()["rate_limit.refused", "shop.prod.orders", ""] == 1
        wsgi = mesh.wsgi(lambda *_: [b"tea"], policies=[bulkhead(1)])
        assert {each.policies for each in mesh._provider_stacks} == {(rate_limit("1/h"),), (bulkhead(1),)}
        del app, wsgi, provider
    with pytest.raises(ConfigError, match="retry cannot stand on a provider"):
        Mesh(Settings(registry="memory://providers")).wsgi(lambda *_: [], policies=[retry()])


@pytest.mark.parametrize("first", [True, False])
def test_nothing_is_held_by_who_is_refused_below(first: bool) -> None:
    """A rate limit stands above the bulkhead: whoever is over it takes no place."""
    given = [rate_limit("1/h"), bulkhead(1)]
    provider = stack(*(given if first else reversed(given)))
    app = governed_asgi(tea, provider)
    assert statuses(app, scope(), scope()) == [200, 429]
    (places,) = [layer for part, layer in provider._bound.items() if part.policy.kind == "bulkhead"]
    assert places.permits.free == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("raises", [True, False])
def test_a_circuit_for_an_app_that_fails_all_the_time(raises: bool) -> None:
    seen: list[int] = []

    async def failing(_scope: Any, _receive: Any, send: Any) -> None:
        seen.append(1)
        if raises:
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": 500})
        await send({"type": "http.response.body", "body": b""})

    app = governed_asgi(failing, stack(circuit_breaker(calls=5, minimum=5, open_for=30.0), clock=FakeClock()))
    for _ in range(5):
        with suppress(ZeroDivisionError):
            asked(app, scope())
    status, headers, _ = asked(app, scope())
    assert (status, headers["retry-after"], len(seen)) == (503, "30", 5)


def test_an_injected_fault_answers_in_place_of_the_app() -> None:
    provider = stack(bulkhead(1), inject_fault(abort=418, percent=100, when=POSTS))
    status, headers, body = asked(governed_asgi(tea, provider), scope("/orders/7", "POST"))
    assert (status, headers["x-mesh-fault"], body) == (418, "abort", b"injected fault")
    started = Started()
    wsgi: Any = governed_wsgi(lambda *_: [], provider)(environ("/orders/7", "POST"), started)
    assert (started.status, list(wsgi)) == ("418 I'm a Teapot", [b"injected fault"])
    wsgi.close()
    assert asked(governed_asgi(tea, provider), scope())[0] == 200
    assert layer_of(provider, "bulkhead").permits.free == 1
