"""Remembers documents that were listed and did not come, and decides when to ask for them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from docferry.clock import Clock
from docferry.store.cursors import Cursors

#: A document that was listed and did not come is asked for this long, seconds.
ASK_FOR_S: Final = 30 * 86_400.0
#: The longest pause between two attempts, seconds.
LONGEST_DOWNLOAD_PAUSE_S: Final = 86_400.0
#: Names that one problem lists.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Gap:
    """The documents of one day that did not come, for a list as it was then."""

    fingerprint: str  # of the list; another list is asked for at once
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
    """The gaps of downloads, kept over restarts."""

    def __init__(self, cursors: Cursors, clock: Clock) -> None:
        self._cursors = cursors
        self._clock = clock

    async def load(self, prefix: str) -> dict[str, Gap]:
        """Return the gaps whose key begins with `prefix`, by the rest of the key."""
        found = {}
        for key, value in (await self._cursors.get_all(_key(prefix))).items():
            if value and (gap := _parsed(value)) is not None:
                found[key.removeprefix(_key(prefix))] = gap
        return found

    def is_due(self, gap: Gap | None, fingerprint: str) -> bool:
        """Return whether the documents behind a list should be fetched now."""
        return gap is None or gap.fingerprint != fingerprint or gap.next_attempt <= self._clock.now()

    async def note(
        self, key: str, before: Gap | None, fingerprint: str, problems: Sequence[str], pause: float
    ) -> Gap | None:
        """Record another attempt without success; None where it was asked for long enough and is given up.

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
        """Forget a gap: the documents came, or are given up."""
        await self._cursors.set(_key(key), "")


def _key(rest: str) -> str:
    return f"gap/{rest}"


def _parsed(value: str) -> Gap | None:
    try:
        return Gap(**json.loads(value))
    except (ValueError, TypeError):
        return None
