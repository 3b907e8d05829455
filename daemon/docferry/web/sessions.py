"""Grant access to the page on a TCP port: a one-time link from `docferry ui` starts a session in memory."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

#: The lifetime of a link, which works once, and of a session, seconds.
LINK_S: Final = 60.0
SESSION_S: Final = 12 * 3600.0
_PREFIX: Final = "login-"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
#: The largest number of sessions; a further one ends the oldest.
_MOST_SESSIONS: Final = 32


def make_link_token(state_dir: Path) -> str:
    """Return a new token for one login; any user with write access to the state folder may log in.

    The folder gets an empty file named by the token's digest, which does not reveal the token.

    Raises:
        OSError: The state folder cannot be written.
    """
    token = secrets.token_urlsafe(32)
    path = state_dir / f"{_PREFIX}{_digest(token)}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    return token


def use_link_token(state_dir: Path, token: str) -> bool:
    """Use up a token, and return whether it was valid."""
    _remove_expired(state_dir)
    if not _TOKEN.fullmatch(token):
        return False
    try:
        (state_dir / f"{_PREFIX}{_digest(token)}").unlink()  # of two simultaneous uses, one succeeds
    except OSError:
        return False
    return True


def _remove_expired(state_dir: Path) -> None:
    for path in state_dir.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if not 0 <= time.time() - path.stat().st_mtime <= LINK_S:
                path.unlink()


class Sessions:
    """Hold logged-in browsers, by the digest of their cookie."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}  # steady seconds

    def begin(self) -> str:
        """Return the cookie of a new session."""
        cookie = secrets.token_urlsafe(32)
        self._forget_ended()
        while len(self._ends) >= _MOST_SESSIONS:
            del self._ends[next(iter(self._ends))]
        self._ends[_digest(cookie)] = time.monotonic() + SESSION_S
        return cookie

    def has(self, cookie: str | None) -> bool:
        """Return whether a cookie belongs to an active session."""
        return cookie is not None and self._ends.get(_digest(cookie), 0.0) > time.monotonic()

    def name(self, cookie: str | None) -> str | None:
        """Return a name for a session that does not reveal its cookie, None after its end."""
        return _digest(cookie)[:12] if cookie is not None and self.has(cookie) else None

    def end(self, cookie: str | None) -> None:
        """Log out."""
        if cookie is not None:
            self._ends.pop(_digest(cookie), None)

    def _forget_ended(self) -> None:
        now = time.monotonic()
        self._ends = {digest: end for digest, end in self._ends.items() if end > now}


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
