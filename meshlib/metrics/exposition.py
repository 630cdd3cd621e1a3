"""Families as the text that Prometheus reads: OpenMetrics 1.0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshlib.metrics.families import Family

_UNITS: Final = {"s": "seconds", "": ""}
_SPECIAL: Final = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})


def name_of(family: Family) -> str:
    """The name in Prometheus: ``http.client.request.duration`` in seconds is ``http_client_request_duration_seconds``."""
    unit = _UNITS[family.unit]
    return _plain(family.name) + (f"_{unit}" if unit else "")


def kind_of(family: Family) -> str:
    """Its kind there, where what goes up and down is a gauge."""
    return "gauge" if family.kind == "updowncounter" else family.kind


def unit_of(family: Family) -> str:
    """Its unit there: ``seconds``, or none."""
    return _UNITS[family.unit]


def numbers_of(family: Family) -> Iterator[tuple[str, dict[str, str], float]]:
    """Its samples as Prometheus has them, one number each: their names, labels and values."""
    name, end = name_of(family), "_total" if family.kind == "counter" else ""
    for sample in family.samples:
        labels, value = {_plain(key): text for key, text in sample.labels.items()}, sample.value
        if isinstance(value, (int, float)):
            yield name + end, labels, value
            continue
        for bound, count in value.buckets:
            yield f"{name}_bucket", {**labels, "le": _number(float(bound))}, count
        yield f"{name}_bucket", {**labels, "le": "+Inf"}, value.count
        yield f"{name}_count", labels, value.count
        yield f"{name}_sum", labels, value.sum


def text_of(families: Iterable[Family]) -> str:
    """All of them, with the mark of the end."""
    return "".join(f"{line}\n" for family in families for line in _lines(family)) + "# EOF\n"


def _lines(family: Family) -> Iterator[str]:
    name = name_of(family)
    yield f"# TYPE {name} {kind_of(family)}"
    if family.unit:
        yield f"# UNIT {name} {unit_of(family)}"
    yield f"# HELP {name} {family.help.translate(_ESCAPES)}"
    for number, labels, value in numbers_of(family):
        yield f"{number}{_braced(labels)} {_number(value)}"


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _braced(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _number(value: float) -> str:
    text = repr(value)
    return _SPECIAL.get(text, text)
