"""For tests, of meshlib and of what is built with it: a clock that is told the time, a third shell that plays a script, and
an event loop on which waiting takes no time."""

from meshlib.testing.clock import FakeClock, VirtualLoop, run_virtual
from meshlib.testing.play import Played, Reply, play

__all__ = ["FakeClock", "Played", "Reply", "VirtualLoop", "play", "run_virtual"]
