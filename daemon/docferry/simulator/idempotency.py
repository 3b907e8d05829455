"""Implement Codat's idempotency keys: the first response is stored for 90 minutes and repeated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from docferry.clock import Clock
from docferry.simulator.http import Response

LIFETIME_S = 90 * 60.0
#: Identifies a body: the boundary, and each part's head and digest.
Fingerprint = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _SavedResponse:
    fingerprint: Fingerprint
    status: int
    body: bytes
    headers: dict[str, str]
    until: float


class KeyReused(Exception):
    """Report that a key was used before with another body."""


class IdempotencyKeys:
    """Record the keys in use, and the responses to earlier keys."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._responses: dict[str, _SavedResponse] = {}
        self._running: set[str] = set()

    def is_running(self, key: str) -> bool:
        """Return whether a request with this key is in progress."""
        return key in self._running

    @contextmanager
    def running(self, key: str) -> Iterator[None]:
        """Mark a key as in use within the context."""
        self._running.add(key)
        try:
            yield
        finally:
            self._running.discard(key)

    def response(self, key: str, fingerprint: Fingerprint) -> Response | None:
        """Return the earlier response of this key, or None. Raises KeyReused if the body differs."""
        self._expire()
        saved = self._responses.get(key)
        if saved is None:
            return None
        if saved.fingerprint != fingerprint:
            raise KeyReused
        return Response(saved.status, saved.body, dict(saved.headers))

    def keep(self, key: str, fingerprint: Fingerprint, response: Response) -> None:
        """Save a response, unless it is a 429."""
        if response.status != 429:
            until = self._clock.steady() + LIFETIME_S
            self._responses[key] = _SavedResponse(
                fingerprint, response.status, response.body, dict(response.headers), until
            )

    def reset(self) -> None:
        """Remove all responses."""
        self._responses.clear()

    def _expire(self) -> None:
        now = self._clock.steady()
        while self._responses and (first := next(iter(self._responses))) and self._responses[first].until <= now:
            del self._responses[first]
