"""Provide API keys for tests of clients."""

from __future__ import annotations

from collections.abc import Callable


class StaticKey:
    """Provide an API key from a text or a function."""

    def __init__(self, key: str | Callable[[], str | None]) -> None:
        self._key = key
        self.reloads = 0

    @property
    def value(self) -> str | None:
        return self._key if isinstance(self._key, str) else self._key()

    def reload(self) -> None:
        self.reloads += 1
