"""What a mesh counts, beside the app's own metrics in a registry of ``prometheus_client``::

    from prometheus_client import REGISTRY
    from meshlib_contrib.prometheus import collector

    REGISTRY.register(collector(mesh))

Without that library, ``mesh.metrics().prometheus()`` is the same as text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshlib import Mesh, MissingExtra
from meshlib.metrics.exposition import kind_of, name_of, numbers_of, unit_of
from meshlib.metrics.families import Family


def collector(mesh: Mesh) -> Any:
    """A collector for ``CollectorRegistry.register()``: it asks ``mesh`` at each scrape. Raises
    :class:`~meshlib.MissingExtra` without ``prometheus_client``."""
    try:
        from prometheus_client.registry import Collector  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtra("meshlib_contrib.prometheus", "prometheus", "prometheus_client") from None

    class MeshCollector(Collector):
        def collect(self) -> Iterable[Any]:
            return [_family(each) for each in mesh.metrics().families]

        def describe(self) -> Iterable[Any]:
            return []  # its families are known only when somebody asks

    return MeshCollector()


def _family(family: Family) -> Any:
    from prometheus_client.metrics_core import Metric  # noqa: PLC0415

    metric = Metric(name_of(family), family.help, kind_of(family), unit_of(family))
    for name, labels, value in numbers_of(family):
        metric.add_sample(name, labels, value)
    return metric
