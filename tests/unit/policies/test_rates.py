"""How limits are written, and what is said of those that cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib import ConfigError
from meshlib.policies.rates import Rate, rates_of


@pytest.mark.parametrize(
    ("text", "count", "seconds"),
    [
        ("100/second", 100, 1.0),
        ("100/s", 100, 1.0),
        ("100 / sec", 100, 1.0),
        ("5000/10m", 5000, 600.0),
        ("10/2h", 10, 7200.0),
        ("1/500ms", 1, 0.5),
        ("1/1.5s", 1, 1.5),
        ("7/2 minutes", 7, 120.0),
        ("1000000000/day", 1_000_000_000, 86_400.0),
    ],
)
def test_rates(text: str, count: int, seconds: float) -> None:
    rate = Rate.parse(text)
    assert (rate.count, rate.seconds) == (count, seconds)
    assert Rate.parse(str(rate)) == rate


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ([], "no limit is given"),
        (["100"], "'100' is not of the form COUNT/WINDOW"),
        (["100/"], "not of the form"),
        (["-1/s"], "not of the form"),
        (["1.5/s"], "not of the form"),
        (["10/s/s"], "not of the form"),
        (["١٠/s"], "not of the form"),
        (["9" * 5000 + "/s"], "not of the form"),
        ([7], "7 is not of the form"),
        (["0/s"], "a count of 0 is not in 1..1000000000"),
        (["2000000000/s"], "a count of 2000000000 is not in"),
        (["10/fortnight"], "'fortnight' is no unit of time (known: ms, s, m, h, d"),
        (["10/0s"], "a window of 0 s is not between 0.001 s and 86400 s"),
        (["10/2d"], "a window of 172800 s is not between"),
        (["10/s", "20/1000ms"], "two limits have the same window: 10/1s and 20/1s"),
        (["100/s", "50/m"], "100/1s can never be reached: 50/60s allows no more in a longer time"),
        (["10/s", "600/m"], "600/60s can never be reached: 10/1s allows no more than that anyway"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(limits: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match="^rate_limit ") as caught:
        rates_of(limits, "rate_limit")
    assert said in str(caught.value)
    assert '"100/second"' in str(caught.value)
    assert len(str(caught.value)) < 250


def test_the_shortest_window_comes_first() -> None:
    assert rates_of(["5000/10m", "100/s"], "x") == (Rate(1.0, 100), Rate(600.0, 5000))
