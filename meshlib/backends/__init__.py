"""Registries and key-value stores behind two protocols.

``open_backend`` turns :class:`~meshlib.settings.Settings` into a backend; the modules of the backends are imported only
then, because some need libraries of extras.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from meshlib.backends.base import Backend, Entry, KeyValue, Listing, Lock, Registry
from meshlib.errors import ConfigError

if TYPE_CHECKING:
    from meshlib.settings import Settings

__all__ = ["Backend", "Entry", "KeyValue", "Listing", "Lock", "Registry", "open_backend"]


def open_backend(settings: Settings) -> Backend:
    """The backend of ``settings.registry``. It connects to nothing yet and belongs to the process and event loop that first
    use it. Raises :class:`ConfigError` (or :class:`~meshlib.errors.MissingExtra`) for what it can see to be unusable."""
    module = import_module(f"meshlib.backends.{settings.registry.scheme}")
    try:
        backend: Backend = module.open_backend(settings)
    except ValueError as problem:
        source = settings.sources.get("registry", "code")
        raise ConfigError("MESH_REGISTRY", str(problem), source=source, example=module.EXAMPLE) from None
    return backend
