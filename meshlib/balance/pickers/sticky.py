"""Sessions that stay where they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, TypeAlias

from meshlib.balance.endpoint import Endpoint
from meshlib.balance.pickers.around import Around
from meshlib.balance.pickers.base import Choose, Picker
from meshlib.balance.pickers.hashing import ConsistentHash
from meshlib.balance.pickers.plain import least_request
from meshlib.balance.tiers import Pool
from meshlib.errors import ConfigError
from meshlib.flow import Call
from meshlib.keys import Key, checked, not_bytes

_YEAR: Final = 366 * 86_400.0
_LONG: Final = 64  # bytes of a key, above which a digest of it is kept instead

Session: TypeAlias = tuple[str, str, bytes]


class Sticky(Around):
    """Calls with the same key go where they went before, for as long as that instance is usable: also when others join, or
    when the one that the session once left comes back.

    The first choice is that of a :class:`ConsistentHash` without a bound on load, so other processes make the same. A key
    that is the id of a listed instance names that one: a provider that puts its own id into a cookie has the session back
    whatever this process knows. A second attempt elsewhere (the first timed out, say) does not move the session.

    ``entries`` sessions are remembered at most, the latest half of so many at least, each until ``idle`` seconds after its
    last call; a forgotten one is chosen for as at first. Calls without a key go to ``inner``. Keep it outermost: within a
    :class:`Zone` that spills over it would move to and fro. Raises :class:`ConfigError`.
    """

    def __init__(
        self,
        key: Key,
        *,
        inner: Picker = least_request,
        entries: int = 10_000,
        idle: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self.key, self._clock = checked(key, "Sticky"), clock
        if type(entries) is not int or entries < 2:
            raise ConfigError("Sticky(entries=)", f"{entries!r:.20} is not a number of sessions", example="entries=10_000")
        if not (isinstance(idle, (int, float)) and 0 < idle < _YEAR):
            raise ConfigError("Sticky(idle=)", f"{idle!r:.20} is not a number of seconds within a year", example="idle=1800.0")
        self._first = ConsistentHash(self.key, load=None)
        self._sessions = Sessions(entries, idle)

    def __call__(self, pool: Pool) -> Choose:
        key, keyless, clock, sessions = self.key, self.inner(pool), self._clock, self._sessions
        by_id = {one.instance.id.encode(): one for one in pool.endpoints}
        first: Callable[[bytes], Endpoint] = self._first.chooser(pool, bytes, _no_key)
        one = pool.endpoints[0].instance
        namespace, service = one.namespace, one.service  # one picker may serve many services

        def choose(call: Call) -> Endpoint:
            value = key(call)
            if value is None:
                return keyless(call)
            if type(value) is not bytes:
                raise not_bytes(value)
            named = by_id.get(value)
            if named is not None:
                return named
            session, now = (namespace, service, _short(value)), clock()
            endpoint = by_id.get(sessions.get(session, now))
            if endpoint is None:
                endpoint = first(value)
            if not call.tried:
                sessions.put(session, endpoint.instance.id.encode(), now)
            return endpoint

        return choose


def _no_key(_key: bytes) -> Endpoint:
    raise AssertionError("bytes are a key")


def _short(value: bytes) -> bytes:
    return value if len(value) <= _LONG else blake2b(value, digest_size=16).digest()


class Sessions:
    """Which session is where, the least recently used forgotten first, roughly: there is a young half and an old one, what is
    used is put into the young one, and when that is full it becomes the old one. Single operations on dicts, which are
    atomic: no lock that a fork could find held. Of threads at once, one may undo what another remembered: it is chosen for
    again."""

    def __init__(self, entries: int, idle: float) -> None:
        self._half, self._idle = entries // 2, idle
        self._halves: tuple[dict[Session, tuple[bytes, float]], ...] = ({}, {})

    def get(self, session: Session, now: float) -> bytes:
        """The id of its instance, empty when that is not known (any more)."""
        young, old = self._halves
        where, used = young.get(session) or old.get(session) or (b"", now)
        return where if now < used + self._idle else b""

    def put(self, session: Session, where: bytes, now: float) -> None:
        """It is at the instance of id ``where``."""
        young, _ = self._halves
        if len(young) >= self._half and session not in young:
            self._halves = young, _ = {}, young
        young[session] = where, now

    def __len__(self) -> int:
        return sum(map(len, self._halves))
