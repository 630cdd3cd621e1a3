"""Policies with wrong options, and in wrong places."""

from __future__ import annotations

from meshlib import (
    ConfigError,
    Match,
    Mirror,
    Rule,
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
from tests.mistakes.corpus import raises, warns


def work(page: str = "a") -> str:
    return page


@raises(ConfigError, "retry(attemps=) (from code)", "is no option; attempts, stop, wait", "retry(attempts=…)")
def option_with_a_typo() -> None:
    retry(attemps=3)  # type: ignore[call-arg]


@raises(ConfigError, "rate_limit(wiat=) (from code)", "is no option", "rate_limit(wait=…)")
def option_of_a_limit_with_a_typo() -> None:
    rate_limit("10/s", wiat=1.0)  # type: ignore[call-arg]


@raises(ConfigError, "retry (from code)", "was put on the function work without its parentheses", "@retry(…)")
def retry_without_parentheses() -> None:
    retry(work)  # type: ignore[arg-type]


@raises(ConfigError, "hedge (from code)", "was put on the function work without its parentheses", "@hedge(…)")
def hedge_without_parentheses() -> None:
    hedge(work)  # type: ignore[misc]


@raises(ConfigError, "fallback (from code)", "was put on one without its parentheses", "@fallback(…)")
def fallback_without_parentheses() -> None:
    @fallback
    def latest() -> str:
        return "tea"

    latest()  # type: ignore[call-arg]


@raises(ConfigError, "rate_limit (from code)", "cannot stand on the staticmethod", "@rate_limit(…) above a def")
def policy_above_a_staticmethod() -> None:
    class Shop:
        @rate_limit("10/s")
        @staticmethod
        def render() -> None: ...


@raises(ConfigError, "rate_limit (from code)", "'fortnight' is no unit of time (known: ms, s, m, h, d", '"100/second"')
def unit_that_is_none() -> None:
    rate_limit("100/fortnight")


@raises(ConfigError, "rate_limit (from code)", "100 is not of the form COUNT/WINDOW", '"100/second"')
def limit_without_a_window() -> None:
    rate_limit(100)  # type: ignore[arg-type]


@raises(ConfigError, "rate_limit (from code)", "100/1s can never be reached: 50/60s allows no more", '"5000/10m"')
def limits_that_contradict_each_other() -> None:
    rate_limit("100/s", "50/m")


@raises(ConfigError, "rate_limit(scope=) (from code)", "'hosts' is none of process, host", 'scope="host"')
def scope_that_is_none() -> None:
    rate_limit("100/s", scope="hosts")


@raises(ConfigError, "rate_limit(url=) (from code)", 'belongs to scope="redis"', 'url="redis://10.0.0.1:6379"')
def redis_without_its_url() -> None:
    rate_limit("100/s", scope="redis")


@raises(ConfigError, "rate_limit(key=) (from code)", "is not a function of a call", "keys.caller()")
def key_that_is_a_name() -> None:
    rate_limit("100/s", key="customer")  # type: ignore[arg-type]


@raises(ConfigError, "rate_limit(key=) (from code)", "is the parameter 'pgae', which render has not", 'keys.parameter("page")')
def key_for_an_argument_that_is_not_there() -> None:
    def render(page: str) -> str:
        return page

    render.__qualname__ = "render"
    rate_limit("10/s", key=keys.parameter("pgae"))(render)


@raises(ConfigError, "timeout(seconds=…) (from code)", "0 is not a positive number of seconds", "timeout(2.0)")
def time_out_of_nothing() -> None:
    timeout(0)


@warns("timeout(seconds=…) is 5000 seconds, which is 83 minutes", "milliseconds?", "for example 5")
def time_out_of_milliseconds() -> None:
    timeout(5000)


@raises(ConfigError, "timeout(attempt=…) (from code)", "3 s is longer than the whole call's 2 s", "timeout(2.0, attempt=0.5)")
def attempt_longer_than_the_call() -> None:
    timeout(2, attempt=3)


@raises(ConfigError, "bulkhead(limit=) (from code)", "0 is not a number from 1", "bulkhead(20)")
def bulkhead_for_nobody() -> None:
    bulkhead(0)


@raises(ConfigError, "circuit_breaker(failure_rate=) (from code)", "50 is not a share above 0, up to 1", "failure_rate=0.5")
def percent_in_place_of_a_share() -> None:
    circuit_breaker(50)


@raises(ConfigError, "circuit_breaker(minimum=) (from code)", "is more than calls=5, so it would never open", "minimum=5")
def breaker_that_never_opens() -> None:
    circuit_breaker(calls=5, minimum=10)


@raises(ConfigError, "cache(ttl=) (from code)", "0 is not a number of seconds", "ttl=60.0")
def cache_for_no_time() -> None:
    cache(0)


@raises(ConfigError, "cache (from code)", "is a generator, of which there is no answer to keep", "a def")
def cache_of_a_generator() -> None:
    @cache(60.0)
    def pages():  # type: ignore[no-untyped-def]
        yield "a"


@raises(ConfigError, "fallback(make=) (from code)", "there is nothing to fall back on", "fallback(list)")
def fallback_on_nothing() -> None:
    fallback()


@raises(ConfigError, "inject_fault(abort=) (from code)", "200 is not a status from 400 to 599", "abort=503")
def fault_that_is_none() -> None:
    inject_fault(abort=200, percent=5)


@raises(ConfigError, "inject_fault(percent=) (from code)", "150 is not in 0..100", "percent=10")
def more_than_everything() -> None:
    inject_fault(abort=503, percent=150)


@raises(ConfigError, "version (from code)", "'>=2,<1' is an empty range", '">=2,<3"')
def versions_of_which_there_are_none() -> None:
    Subset(version=">=2,<1")


@raises(ConfigError, "version (from code)", "'latest' is none; a range of versions", '"^1.2"')
def version_that_is_a_word() -> None:
    Subset(version="latest")


@raises(ConfigError, "route.rules[0].to (from code)", "'v2' is no name of subsets", "route(subsets=)")
def subset_that_nobody_described() -> None:
    route(Rule(to="v2"))


@raises(ConfigError, "headers.x canary (from code)", 'headers={"x-tenant": "acme*"}')
def match_by_a_header_that_is_none() -> None:
    Match(headers={"x canary": "1"})


@raises(ConfigError, "percent", "from code", "for example")
def mirror_of_more_than_everything() -> None:
    Mirror(to=Subset(zone="lab"), percent=200)


@raises(
    ConfigError, "timeout (from code)", "too many positional arguments", "it takes seconds, attempt", "@timeout(…) above a def"
)
def one_option_too_many() -> None:
    timeout(1.0, 0.5, 3)  # type: ignore[call-arg]
