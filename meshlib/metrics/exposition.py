"""Families as the text that Prometheus reads: OpenMetrics 1.0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshlib.metrics.families import Family, Sample

_UNITS: Final = {"s": "seconds", "": ""}
_SPECIAL: Final = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})


def name_of(family: Family) -> str:
    """The name in Prometheus: ``http.client.request.duration`` in seconds is ``http_client_request_duration_seconds``."""
    unit = _UNITS[family.unit]
    return _plain(family.name) + (f"_{unit}" if unit else "")


def unit_of(family: Family) -> str:
    """Its unit there: ``seconds``, or none."""
    return _UNITS[family.unit]


def labels_of(sample: Sample) -> dict[str, str]:
    """Its labels by their names there."""
    return {_plain(name): value for name, value in sample.labels.items()}


def text_of(families: Iterable[Family]) -> str:
    """All of them, with the mark of the end."""
    return "".join(f"{line}\n" for family in families for line in _lines(family)) + "# EOF\n"


def _lines(family: Family) -> Iterator[str]:
    name = name_of(family)
    yield f"# TYPE {name} {family.kind}"
    if family.unit:
        yield f"# UNIT {name} {unit_of(family)}"
    yield f"# HELP {name} {family.help.translate(_ESCAPES)}"
    for sample in family.samples:
        yield from _of(name, family.kind, sample)


def _of(name: str, kind: str, sample: Sample) -> Iterator[str]:
    labels, value = labels_of(sample), sample.value
    if isinstance(value, (int, float)):
        yield f"{name}{'_total' if kind == 'counter' else ''}{_braced(labels)} {_number(value)}"
        return
    for bound, count in value.buckets:
        yield f"{name}_bucket{_braced({**labels, 'le': _number(float(bound))})} {count}"
    yield f"{name}_bucket{_braced({**labels, 'le': '+Inf'})} {value.count}"
    yield f"{name}_count{_braced(labels)} {value.count}"
    yield f"{name}_sum{_braced(labels)} {_number(value.sum)}"


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _braced(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _number(value: float) -> str:
    text = repr(value)
    return _SPECIAL.get(text, text)
