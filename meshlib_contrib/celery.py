"""Celery: tasks that call services. A worker is a consumer: it serves nobody, so it registers nothing.

mesh = consume(Mesh.from_env())     # where the app is made; consume(get_mesh) with Django
orders = mesh.client(Orders)

@app.task
def bill(id): return orders.fetch(id).total
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from celery import signals

from meshlib import Mesh

M = TypeVar("M", bound="Mesh | Callable[[], Mesh]")


def consume(mesh: M) -> M:
    """Have the workers of this program use ``mesh`` (or what it returns, when it is needed), which is returned. The children of
    a pool have connections and views of their own, as any forked process, and close them when they end, for Celery ends them
    with nothing run that others run at exit. What the app has announced, as it does for a server, is not registered."""

    def of() -> Mesh:
        return mesh if isinstance(mesh, Mesh) else mesh()

    def begin(**_: Any) -> None:
        of().leave()

    def end(**_: Any) -> None:
        of().close()

    signals.worker_init.connect(begin, weak=False)  # before there is a pool
    signals.worker_process_init.connect(begin, weak=False)
    signals.worker_process_shutdown.connect(end, weak=False)  # in the child
    signals.worker_shutdown.connect(end, weak=False)  # the worker itself, in which solo and threads run their tasks
    return mesh
