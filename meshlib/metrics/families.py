"""What was counted, as facts: frozen families of samples, in the terms of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from meshlib.metrics.exposition import text_of

Kind: TypeAlias = Literal["counter", "updowncounter", "gauge", "histogram"]
"""Of several processes, all but gauges may be added up."""

CONTENT_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""The type of what :meth:`Metrics.prometheus` gives."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """``buckets`` are pairs of an upper bound and how many were not above it, ``count`` how many there were, ``sum`` all of
    them together."""

    buckets: tuple[tuple[float, int], ...]
    count: int
    sum: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One series: its ``labels`` (none is empty), and its value, which of a histogram is a :class:`Distribution`."""

    labels: Mapping[str, str]
    value: float | Distribution


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one ``name`` (``http.client.request.duration``); ``unit`` is ``"s"`` for seconds, else empty."""

    name: str
    kind: Kind
    help: str
    unit: str = ""
    samples: tuple[Sample, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Metrics:
    """What this process has counted since it began (a forked one: since the fork), and how things stand now."""

    families: tuple[Family, ...] = ()

    def family(self, name: str) -> Family:
        """The family ``name``. Raises KeyError."""
        for each in self.families:
            if each.name == name:
                return each
        raise KeyError(name)

    def prometheus(self) -> str:
        """The text that Prometheus scrapes, in the form of OpenMetrics 1.0 (:data:`CONTENT_TYPE`)."""
        return text_of(self.families)


def labelled(names: Iterable[str], values: Iterable[str]) -> Mapping[str, str]:
    """Labels by their names, without those that are empty."""
    return {name: value for name, value in zip(names, values, strict=True) if value}
