"""Idempotency keys as Codat has them: the first answer is kept for 90 minutes and given again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from docferry.clock import Clock
from docferry.simulator.http import Answer

LIFETIME = 90 * 60.0
#: What makes two bodies the same: the boundary, and each part's head and digest.
Fingerprint = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    fingerprint: Fingerprint
    status: int
    body: bytes
    headers: dict[str, str]
    until: float


class OtherBody(Exception):
    """The key came before with another body."""


class Keys:
    """Which keys are running, and which have an answer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._running: set[str] = set()

    def is_running(self, key: str) -> bool:
        return key in self._running

    @contextmanager
    def running(self, key: str) -> Iterator[None]:
        self._running.add(key)
        try:
            yield
        finally:
            self._running.discard(key)

    def answer(self, key: str, fingerprint: Fingerprint) -> Answer | None:
        """The answer that this key has got before; OtherBody when it came with another body."""
        self._forget()
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.fingerprint != fingerprint:
            raise OtherBody
        return Answer(kept.status, kept.body, dict(kept.headers))

    def keep(self, key: str, fingerprint: Fingerprint, answer: Answer) -> None:
        """Remember an answer; a 429 is not remembered."""
        if answer.status != 429:
            until = self._clock.steady() + LIFETIME
            self._kept[key] = _Kept(fingerprint, answer.status, answer.body, dict(answer.headers), until)

    def reset(self) -> None:
        self._kept.clear()

    def _forget(self) -> None:
        now = self._clock.steady()
        while self._kept and (first := next(iter(self._kept))) and self._kept[first].until <= now:
            del self._kept[first]
