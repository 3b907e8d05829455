"""Who may use the page on a TCP port: a one-time link from `docferry ui` makes a session, kept in memory."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

#: A link is good for so long, and once; a session for so long. Seconds.
LINK_S: Final = 60.0
SESSION_S: Final = 12 * 3600.0
_PREFIX: Final = "login-"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
#: A session more ends the oldest.
_MOST_SESSIONS: Final = 32


def make_link_token(state_dir: Path) -> str:
    """Return a fresh token for one login; whoever may write to the state folder may log in.

    The folder gets an empty file that is named after the token's digest: nobody can read a token from it.

    Raises:
        OSError: The state folder cannot be written.
    """
    token = secrets.token_urlsafe(32)
    path = state_dir / f"{_PREFIX}{_digest(token)}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    return token


def use_link_token(state_dir: Path, token: str) -> bool:
    """Take a token, which is no longer good after this; whether it was good."""
    _remove_expired(state_dir)
    if not _TOKEN.fullmatch(token):
        return False
    try:
        (state_dir / f"{_PREFIX}{_digest(token)}").unlink()  # of two that come at once, one succeeds
    except OSError:
        return False
    return True


def _remove_expired(state_dir: Path) -> None:
    for path in state_dir.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if not 0 <= time.time() - path.stat().st_mtime <= LINK_S:
                path.unlink()


class Sessions:
    """Logged-in browsers, by the digest of their cookie."""

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
        """Whether a cookie is that of a session that has not ended."""
        return cookie is not None and self._ends.get(_digest(cookie), 0.0) > time.monotonic()

    def name(self, cookie: str | None) -> str | None:
        """Return a name for a session that gives nothing of its cookie away, None when it has ended."""
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
