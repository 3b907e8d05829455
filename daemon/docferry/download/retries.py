"""Remember listed documents that could not be downloaded, and schedule their next attempts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict

from docferry.clock import Clock
from docferry.store.cursors import Cursors

#: The time after which a listed but missing document is given up, seconds.
ASK_FOR_S: Final = 30 * 86_400.0
#: The longest pause between two attempts, seconds.
LONGEST_DOWNLOAD_PAUSE_S: Final = 86_400.0
#: The largest number of names in one problem.
_NAMED: Final = 5


class Gap(Struct, frozen=True):
    """Describe the missing documents of one day, for one version of the list."""

    fingerprint: str  # of the list; a changed list is fetched at once
    problems: Sequence[str]
    since: float  # wall seconds of the first attempt
    attempts: int
    next_attempt: float  # wall seconds

    def summary(self) -> str:
        """Return the problems as one sentence."""
        named = "; ".join(self.problems[:_NAMED])
        more = len(self.problems) - _NAMED
        return f"{named}; and {more:,} more" if more > 0 else named


class Gaps:
    """Store the gaps of downloads across restarts."""

    def __init__(self, cursors: Cursors, clock: Clock) -> None:
        self._cursors = cursors
        self._clock = clock

    async def load(self, prefix: str) -> dict[str, Gap]:
        """Return the gaps whose key begins with `prefix`, keyed by the rest of the key."""
        found = {}
        for key, value in (await self._cursors.get_all(_key(prefix))).items():
            if value and (gap := _parsed(value)) is not None:
                found[key.removeprefix(_key(prefix))] = gap
        return found

    def is_due(self, gap: Gap | None, fingerprint: str) -> bool:
        """Return whether the documents of a list are due for download."""
        return gap is None or gap.fingerprint != fingerprint or gap.next_attempt <= self._clock.now()

    async def note(
        self, key: str, before: Gap | None, fingerprint: str, problems: Sequence[str], pause: float
    ) -> Gap | None:
        """Record another failed attempt and return the gap; None if the gap is given up after its time limit.

        The pauses grow from `pause`, seconds, up to a day.
        """
        now = self._clock.now()
        since = before.since if before is not None else now
        attempts = 1 if before is None or before.fingerprint != fingerprint else before.attempts + 1
        if now - since > ASK_FOR_S:
            await self.close(key)
            return None
        wait = min(pause * 2.0 ** min(attempts - 1, 30), LONGEST_DOWNLOAD_PAUSE_S)
        gap = Gap(fingerprint, tuple(problems), since, attempts, now + wait)
        await self._cursors.set(_key(key), json.dumps(asdict(gap)))
        return gap

    async def close(self, key: str) -> None:
        """Remove a gap: the documents arrived, or are given up."""
        await self._cursors.set(_key(key), "")


def _key(rest: str) -> str:
    return f"gap/{rest}"


def _parsed(value: str) -> Gap | None:
    try:
        return Gap(**json.loads(value))
    except (ValueError, TypeError):
        return None
