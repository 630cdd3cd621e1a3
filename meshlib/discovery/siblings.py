"""The processes that serve one host:port: siblings, as the workers of a prefork server are. To consumers they are one instance.

They share a file in the state directory, one per host:port. Whoever has the lock on one byte of it is the *registrar*, who
keeps the entry in the registry; everybody has a shared lock on another one while it serves, so whoever can get that one for
itself is the last. The kernel releases them when a process dies. What the file says is the same for all: the id, the
generation (a new registrar is no restart: consumers keep their connections), the status that was wished for, and when the
entry was last confirmed, so that others can act where the registrar is alive but stuck.

The locks are record locks (POSIX), not ``flock``: that one belongs to the open file, which a forked child shares, and a child
that knows nothing of it would keep the lock of a dead registrar. Their price: closing *any* descriptor of the file drops
all locks that the process has on it. So a process opens it once, and what a child inherited stays open there.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import msgspec

from meshlib.errors import ConfigError, RegistryUnavailable
from meshlib.files import check_file, lock_byte, make_directory, unlock_byte
from meshlib.model import Instance, Status
from meshlib.settings import Settings
from meshlib.threads import original

REGISTRAR: Final = 0
MEMBERS: Final = 1
CONTENT: Final = 2
"""The bytes that are locked; the last one for moments, while the content is read or changed."""
PATIENCE: Final = 1.0
"""Seconds one waits for what others have for moments only, unless they are stopped."""

# Who has a file open in this process (the pid: a forked child has none open that it may use).
_joined: dict[tuple[int, Path], Siblings] = {}


class Record(msgspec.Struct, frozen=True):
    """What siblings have in common. ``confirmed`` is the monotonic time of this machine at which the registry last accepted
    the entry or, before it is ``listed``, at which the first of them came."""

    id: str
    generation: str
    status: Status = Status.UP
    listed: bool = False
    confirmed: float = 0.0

    @classmethod
    def of(cls, instance: Instance) -> Record:
        """What the first of them begins with."""
        return cls(instance.id, instance.generation, instance.status)

    def apply(self, instance: Instance) -> Instance:
        """``instance`` as it is to be listed."""
        return replace(instance, id=self.id, generation=self.generation, status=self.status)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a process stands among its siblings. ``quiet`` are the seconds since the entry was last confirmed."""

    record: Record
    registrar: bool
    quiet: float


class Group(Protocol):
    """All methods may block for a moment: call them in a worker thread. They raise OSError and ValueError for what keeps
    the processes from finding each other; then each is to go on :class:`Alone`."""

    record: Record

    def look(self) -> Standing:
        """Where we stand now; joins the others first if need be, and becomes the registrar if there is none."""
        ...

    def confirm(self) -> None:
        """Tell the others that the registry lists us."""
        ...

    def wish(self, status: Status) -> None:
        """Have all of us listed with ``status``."""
        ...

    def leave(self) -> bool:
        """Stop being one of them. True when nobody is left; then nobody can join before :meth:`close`."""
        ...

    def close(self) -> None:
        """Release everything; fine more than once."""
        ...


class Alone:
    """Without any others: the registry is inside the process, or there is no place to meet."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def look(self) -> Standing:
        return Standing(self.record, registrar=True, quiet=0.0)

    def confirm(self) -> None:
        self.record = msgspec.structs.replace(self.record, listed=True)

    def wish(self, status: Status) -> None:
        self.record = msgspec.structs.replace(self.record, status=status)

    def leave(self) -> bool:
        return True

    def close(self) -> None:
        pass


class Siblings:
    """The others that have ``path`` in common. ``record`` is what to begin with, should we be the first."""

    def __init__(self, path: Path, record: Record, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.record, self._clock = path, record, clock
        self._handle: int | None = None
        self._left = False
        self._guard = original("_thread", "allocate_lock")()  # a cancelled task does not stop its thread

    def look(self) -> Standing:
        with self._guard:
            if self._left:
                return Standing(self.record, registrar=False, quiet=0.0)
            handle = self._member()
            self._read(handle)
            return Standing(self.record, lock_byte(handle, REGISTRAR), self._clock() - self.record.confirmed)

    def confirm(self) -> None:
        self._change(listed=True, confirmed=self._clock())

    def wish(self, status: Status) -> None:
        self._change(status=status)

    def leave(self) -> bool:
        with self._guard:
            self._left = True
            if self._handle is None:
                return False
            # Let go first: of two that leave at once and look before, both would find the other one.
            unlock_byte(self._handle, MEMBERS)
            if lock_byte(self._handle, MEMBERS):
                self._read(self._handle)  # one that has left meanwhile may have listed us since we looked
                return True
            self._release()
            return False

    def close(self) -> None:
        with self._guard:
            if self._handle is not None and self._left and _same(self._handle, self.path):
                self.path.unlink()  # we were the last, and still keep newcomers out
            self._release()

    def _release(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            os.close(handle)
            _joined.pop((os.getpid(), self.path), None)  # not before: closing drops the locks of whoever came next

    # -- membership

    def _member(self) -> int:
        """The file, with our place among the members; a new one when somebody has removed it."""
        if self._handle is not None and not _same(self._handle, self.path):
            self._read(self._handle)  # the last of what all knew
            self._release()
        if self._handle is None:
            place = (os.getpid(), self.path)
            if _joined.setdefault(place, self) is not self:
                raise ConfigError("port", "is registered by this process already", example="close the other registration first")
            try:
                self._handle = self._join()
            except BaseException:
                del _joined[place]
                raise
        return self._handle

    def _join(self) -> int:
        for level in (self.path.parent.parent, self.path.parent):
            make_directory(level)
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                check_file(self.path, os.fstat(handle))
                if self._take_place(handle):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _take_place(self, handle: int) -> bool:
        """False when the last one of others has removed the file meanwhile."""
        first = lock_byte(handle, MEMBERS)
        if first and _same(handle, self.path):
            self.record = msgspec.structs.replace(self.record, confirmed=self._clock())
            _write(handle, self.record)
        if not lock_byte(handle, MEMBERS, shared=True, timeout=PATIENCE):
            raise RegistryUnavailable("the last process that served this port is still deregistering it")
        return _same(handle, self.path)

    # -- content

    def _read(self, handle: int) -> None:
        if lock_byte(handle, CONTENT, shared=True, timeout=PATIENCE):  # else what we know will do
            try:
                self.record = _content(handle)
            finally:
                unlock_byte(handle, CONTENT)

    def _change(self, **fields: object) -> None:
        with self._guard:
            handle = self._handle
            if handle is None:
                return
            self.record = changed(handle, self.path, **fields)


def changed(handle: int, path: Path, **fields: object) -> Record:
    """Change ``fields`` of what the file says, and return it. Raises TimeoutError while another process does not let us."""
    if not lock_byte(handle, CONTENT, timeout=PATIENCE):
        raise TimeoutError(f"another process has held {path} for {PATIENCE:g} s")
    try:
        record = msgspec.structs.replace(_content(handle), **fields)
        _write(handle, record)
        return record
    finally:
        unlock_byte(handle, CONTENT)


def content_of(handle: int, path: Path) -> Record:
    """What the file says. Raises ValueError when it is damaged, TimeoutError while another process does not let us."""
    if not lock_byte(handle, CONTENT, shared=True, timeout=PATIENCE):
        raise TimeoutError(f"another process has held {path} for {PATIENCE:g} s")
    try:
        return _content(handle)
    finally:
        unlock_byte(handle, CONTENT)


def joined(path: Path) -> Siblings | None:
    """This process's own place among those of ``path``, if it has one: then nothing else in it may open and close the file."""
    return _joined.get((os.getpid(), path))


def _content(handle: int) -> Record:
    line = os.pread(handle, 4096, 0).partition(b"\n")[0]
    try:
        return msgspec.json.decode(line, type=Record)
    except msgspec.DecodeError as problem:
        raise ValueError(f"what siblings share is damaged: {problem}") from problem


def _write(handle: int, record: Record) -> None:
    os.pwrite(handle, msgspec.json.encode(record) + b"\n", 0)  # what was longer before stays behind the end of the line


def _same(handle: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    ours = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def siblings_of(settings: Settings, instance: Instance) -> Group:
    """Those of ``instance``, which is about to be listed. Nothing is opened yet."""
    record = Record.of(instance)
    if settings.registry.scheme in ("memory", "static"):  # no other process can list anything there
        return Alone(record)
    return Siblings(file_of(settings, instance), record)


def file_of(settings: Settings, instance: Instance) -> Path:
    """Where those of ``instance`` meet."""
    peer = (str(settings.registry), instance.namespace, instance.service, instance.host, instance.port)
    digest = hashlib.sha256(repr(peer).encode()).hexdigest()[:16]
    return place(settings) / f"{instance.service}-{instance.port}-{digest}"


def place(settings: Settings) -> Path:
    """The directory of all such files."""
    return settings.state_path / "siblings"
