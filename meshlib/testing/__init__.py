"""For tests, of meshlib and of what is built with it: a mesh in memory with mocks and faults (the fixture ``mesh`` of the
pytest plugin), a clock that is told the time, a third shell that plays a script, and an event loop on which waiting takes no
time.

The names are loaded on first use, for the plugin is imported by every pytest run.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib.testing.clock import FakeClock, VirtualLoop, run_virtual
    from meshlib.testing.memory import MemoryMesh
    from meshlib.testing.mock import Made, Mock, Stub, call
    from meshlib.testing.provider import Received
    from meshlib.testing.script import Played, Reply, play

__all__ = ["FakeClock", "Made", "MemoryMesh", "Mock", "Played", "Received", "Reply", "Stub", "VirtualLoop", "call", "play",
           "run_virtual"]  # fmt: skip

_HOMES = {"clock": "FakeClock VirtualLoop run_virtual", "memory": "MemoryMesh", "mock": "Made Mock Stub call",
          "script": "Played Reply play", "provider": "Received"}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'meshlib.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"meshlib.testing.{_HOME_OF[name]}"), name)
    return value
