"""The numbers of all processes of one server, added up: they meet in a directory.

Each process has a *slot*, the lowest that is free, by a record lock that ends with it, and keeps there what it has counted.
Whoever takes the slot of one that has ended goes on from its numbers, so sums never go back, and there are as many slots as
processes lived at once. The first of all begins at nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from meshlib.files import check_file, lock_byte, make_directory, unlock_byte
from meshlib.metrics.families import Distribution, Family, Sample
from meshlib.threads import original

log = logging.getLogger(__name__)

MOST: Final = 4096
"""Processes that may have a slot at once."""
_MUTEX: Final = MOST
_PATIENCE: Final = 1.0
_ENDLESS: Final = ("counter", "histogram")  # what remains of a process that has ended


class Shelf:
    """The place of this process among those that have ``directory`` in common. All methods block for a moment; they raise
    OSError and ValueError for a directory that cannot be used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._handle: int | None = None
        self._slot, self._before = 0, tuple[Family, ...]()
        self._guard = original("_thread", "allocate_lock")()  # record locks exclude other processes only

    def forked(self) -> None:
        """In a child process: the slot is the parent's."""
        self._guard = original("_thread", "allocate_lock")()
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def keep(self, families: Iterable[Family]) -> None:
        """Leave what this process has counted for the others, and for who comes after it."""
        with self._guard:
            self._keep(families)

    def _keep(self, families: Iterable[Family]) -> None:
        handle = self._place()
        with _alone(handle):
            content = msgspec.json.encode(summed([self._before, [each for each in families if each.kind != "gauge"]]))
            temporary = self._file(self._slot).with_suffix(".new")
            with open(temporary, "wb", opener=_private) as file:
                file.write(content)
            temporary.replace(self._file(self._slot))

    def together(self, families: Iterable[Family]) -> tuple[Family, ...]:
        """What all have counted. What is no count (how many instances are known, say) is as this process has it."""
        own = tuple(families)
        with self._guard:
            self._keep(own)
            handle = self._place()
            with _alone(handle):
                return summed([own, self._before, *self._others(handle)])

    def _others(self, handle: int) -> Iterator[list[Family]]:
        for path in sorted(self._directory.glob("*.json")):
            slot = int(path.stem)
            if slot == self._slot:
                continue
            ended = lock_byte(handle, slot)
            if ended:
                unlock_byte(handle, slot)
            yield [each for each in self._read(slot) if not ended or each.kind in _ENDLESS]

    def _place(self) -> int:
        if self._handle is not None:
            return self._handle
        make_directory(self._directory)
        handle = os.open(self._directory / "slots", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            check_file(self._directory / "slots", os.fstat(handle))
            with _alone(handle):
                self._take(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return handle

    def _take(self, handle: int) -> None:
        slot = next((each for each in range(MOST) if lock_byte(handle, each)), None)
        if slot is None:
            raise ValueError(f"{MOST} processes have a place in {self._directory} already")
        if slot == 0 and _nobody(handle):
            for left in self._directory.glob("*.json"):
                left.unlink()
        self._slot = slot
        self._before = tuple(each for each in self._read(slot) if each.kind in _ENDLESS)

    def _read(self, slot: int) -> tuple[Family, ...]:
        try:
            return msgspec.json.decode(self._file(slot).read_bytes(), type=tuple[Family, ...])
        except FileNotFoundError:
            return ()
        except msgspec.MsgspecError as problem:
            log.warning("the counts in %s are lost: %s", self._file(slot), problem)
            return ()

    def _file(self, slot: int) -> Path:
        return self._directory / f"{slot}.json"


@contextmanager
def _alone(handle: int) -> Iterator[None]:
    if not lock_byte(handle, _MUTEX, timeout=_PATIENCE):
        raise TimeoutError(f"another process has been at the counts for {_PATIENCE:g} s")
    try:
        yield
    finally:
        unlock_byte(handle, _MUTEX)


def _nobody(handle: int) -> bool:
    """Whether no slot but the first is taken."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, MOST - 1, 1)
    except (BlockingIOError, PermissionError):
        return False
    fcntl.lockf(handle, fcntl.LOCK_UN, MOST - 1, 1)
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def summed(parts: Iterable[Iterable[Family]]) -> tuple[Family, ...]:
    """The families of all parts, with what they have of the same labels added up."""
    families: dict[str, Family] = {}
    samples: dict[str, dict[tuple[tuple[str, str], ...], Sample]] = {}
    for family in (each for part in parts for each in part):
        families.setdefault(family.name, family)
        known = samples.setdefault(family.name, {})
        for sample in family.samples:
            key = tuple(sorted(sample.labels.items()))
            known[key] = _plus(known[key], sample) if key in known else sample
    return tuple(replace(family, samples=tuple(samples[name].values())) for name, family in families.items())


def _plus(one: Sample, other: Sample) -> Sample:
    left, right = one.value, other.value
    if not isinstance(left, Distribution) or not isinstance(right, Distribution):
        assert not isinstance(left, Distribution)
        assert not isinstance(right, Distribution)
        return Sample(one.labels, left + right)
    buckets = tuple((bound, count + more) for (bound, count), (_, more) in zip(left.buckets, right.buckets, strict=True))
    return Sample(one.labels, Distribution(buckets, left.count + right.count, left.sum + right.sum))
