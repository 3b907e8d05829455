"""How many documents travel in one request: a connection's first batch is a trial, and only the list can judge it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from docferry.model import State, Transfer
from docferry.store.cursors import Cursors

Mark = Literal["trial", "trusted", "singly"]


class BatchTrials:
    """What is known of each connection, kept over restarts; a trial that a stop cut off is begun again."""

    def __init__(self, cursors: Cursors, size: int) -> None:
        self._cursors = cursors
        self.size = size  # documents in one request where batches are trusted, at most
        self._marks: dict[str, str] = {}

    async def prepare(self) -> None:
        marks = await self._cursors.marks("batch/")
        self._marks = {key.removeprefix("batch/"): mark for key, mark in marks.items() if mark != "trial"}

    def trusts(self, lane: str) -> bool:
        return self._marks.get(lane) == "trusted"

    def tries(self, lane: str) -> bool:
        """Whether a connection's first batch is under way, or is being judged."""
        return self._marks.get(lane) == "trial"

    async def seen(self, lane: str, whole: bool | None) -> None:
        """What the list said about a connection's first batch; None: nothing, and the next one is a trial again."""
        if self._marks.get(lane) == "singly":
            return
        if whole is None:
            self._marks.pop(lane, None)
        else:
            await self._note(lane, "trusted" if whole else "singly")

    def of(self, lane: str) -> int:
        """Documents in one load of a lane: one, unless its connection takes batches or may prove it now."""
        if not lane.startswith("codat/") or self._marks.get(lane, "trusted") != "trusted":
            return 1
        return self.size

    async def batches(self, claimed: Sequence[Transfer]) -> list[list[Transfer]]:
        """Claimed transfers as loads, lanes taking turns. An unknown connection gets one batch, the rest singly."""
        by_lane: dict[tuple[str, bool], list[Transfer]] = {}
        for transfer in claimed:
            by_lane.setdefault((transfer.target.lane, transfer.state is State.ASKING), []).append(transfer)
        turns: list[tuple[int, list[Transfer]]] = []
        for (lane, asks), transfers in by_lane.items():
            turns += [(1, transfers)] if asks else await self._parted(lane, transfers)
        turns.sort(key=lambda turn: turn[0])
        return [transfers for _, transfers in turns]

    async def _parted(self, lane: str, transfers: Sequence[Transfer]) -> list[tuple[int, list[Transfer]]]:
        """One lane's loads, each with its turn."""
        # What failed once goes alone from then on: perhaps it spoils the others' request.
        alone, rest = [t for t in transfers if t.tries], [t for t in transfers if not t.tries]
        size = self.of(lane)
        turns: list[tuple[int, list[Transfer]]] = []
        if size > 1 and len(rest) > 1 and lane not in self._marks:
            await self._note(lane, "trial")
            turns.append((0, rest[:size]))
            size, rest = 1, rest[size:]
        batches = [rest[start : start + size] for start in range(0, len(rest), size)] + [[each] for each in alone]
        return turns + list(enumerate(batches, 1))

    async def _note(self, lane: str, mark: Mark) -> None:
        self._marks[lane] = mark
        await self._cursors.note(f"batch/{lane}", mark)
