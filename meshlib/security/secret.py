"""A value that never shows itself: not in a repr, an error, a traceback or a pickle."""

from __future__ import annotations

import hmac
import os
from typing import NoReturn

from meshlib.errors import ConfigError


class Secret:
    """Holds a secret given as text or as a file.

    A file is read again whenever it changes, so a token that is renewed on disk is picked up without a restart.
    """

    __slots__ = ("_path", "_seen", "_text")

    def __init__(self, text: str = "", *, path: str = "") -> None:
        self._text, self._path = text, path
        self._seen: tuple[int, ...] = ()

    def reveal(self) -> str:
        """The secret. Raises :class:`ConfigError` when its file cannot be read and never could."""
        if self._path:
            try:
                self._refresh()
            except (OSError, UnicodeDecodeError) as problem:
                if not self._seen:
                    why = problem.strerror if isinstance(problem, OSError) else "it is not text"
                    # From nothing: an error of decoding carries what it could not decode.
                    raise ConfigError("secret file", f"cannot read {self._path}: {why}") from None
        return self._text

    def _refresh(self) -> None:
        status = os.stat(self._path)
        seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        if seen != self._seen:
            with open(self._path, encoding="utf-8") as file:
                self._text = file.read().strip()
            self._seen = seen

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.reveal().encode(), other.reveal().encode())

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")
