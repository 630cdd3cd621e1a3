"""A wall clock of its own for a process, which a test sets while the process runs."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults.stage import TOP
from tests.servers.base import lacking

HOUR = 3600.0


class Clock:
    """libfaketime, for processes that get :attr:`env`: the monotonic clock stays true. ``by_wall`` makes them programs that
    measure all time by the wall."""

    def __init__(self, file: Path, *, by_wall: bool = False) -> None:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None) or lacking("libfaketime")
        self.file = file
        self.set(0.0)
        self.env = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",  # times of files are those of the disk
            # Its default prolongs timed waits for conditions, by which Python's threads hand over to each other: they starve.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }
        if by_wall:
            room = file.with_suffix(".by-wall")
            room.mkdir()
            (room / "sitecustomize.py").write_text("import time\ntime.monotonic = time.time\n")
            self.env["PYTHONPATH"] = f"{room}:{TOP}"

    def set(self, ahead: float) -> None:
        """So many seconds ahead of the true time from now on; behind it if negative."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{ahead:+.0f}\n")
        fresh.replace(self.file)  # in one step: it is read all the time

    def set_to_1970(self) -> None:
        """As a machine begins that has no clock of its own: a minute after the epoch."""
        self.set(60 - time.time())
