"""Decide how many documents share a request: the list must prove the first batch of each connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from docferry.model import State, Transfer
from docferry.remotes.wootiv.direct import BulkPolicy
from docferry.store.cursors import Cursors
from docferry.store.refusals import refusal_logged
from docferry.store.transfers import Transfers

Verdict = Literal["trial", "trusted", "singly"]

#: The reason of a doubt that only tests whether a connection accepts batches.
BATCH_DOUBT = "batch"
#: Unproved first batches after which the connection gets single documents until the next start.
MAX_TRIALS = 3
_PREFIX = "batch/"
#: The lane whose responses prove its batches, so that it needs no trial.
_BULK_LANE = "wootiv"
#: Every document is sent alone.
_NO_BULK = BulkPolicy(frozenset(), 1)


class BatchTrials:
    """Store the verdicts about batches by lane across restarts; a trial interrupted by a stop starts again."""

    def __init__(self, cursors: Cursors, transfers: Transfers, size: int, bulk: BulkPolicy = _NO_BULK) -> None:
        self._cursors = cursors
        self._transfers = transfers
        self._codat_size = size
        self._bulk = bulk
        self.size = max(size, bulk.size if bulk.mappings else 1)  # the largest number of documents in one request
        self._verdicts: dict[str, str] = {}
        self._proofs: dict[str, list[bool]] = {}  # decided documents of a first batch, by lane
        self._failed_trials: Counter[str] = Counter()

    async def prepare(self) -> None:
        """Read the verdicts of earlier runs."""
        known = await self._cursors.get_all(_PREFIX)
        self._verdicts = {key.removeprefix(_PREFIX): verdict for key, verdict in known.items() if verdict != "trial"}

    def is_trusted(self, lane: str) -> bool:
        """Return whether a batch of this lane needs no proof: the list proved one, or each response proves its own."""
        return lane == _BULK_LANE or self._verdicts.get(lane) == "trusted"

    def is_on_trial(self, lane: str) -> bool:
        """Return whether a first batch of this lane is in flight or doubtful."""
        return self._verdicts.get(lane) == "trial"

    async def record(self, lane: str, whole: bool | None) -> None:
        """Record the verdict about a first batch; None: unknown, so the next batch is a trial again."""
        if self._verdicts.get(lane) == "singly":
            return
        if whole is None:
            self._verdicts.pop(lane, None)
        else:
            await self._set(lane, "trusted" if whole else "singly")

    async def record_unsent(self, transfers: Sequence[Transfer]) -> None:
        """Record that a batch was not sent: a first batch is then repeated."""
        lane = transfers[0].target.lane
        if len(transfers) > 1 and self.is_on_trial(lane):
            await self.record(lane, None)

    async def record_decided(self, lane: str, present: Sequence[bool | None] = ()) -> None:
        """Record documents of a first batch: present, absent, or undecidable (None).

        One absent document proves that the connection does not accept batches. If no doubt is left and all were
        present, batches are trusted. Otherwise the next batch is a trial, at most `MAX_TRIALS` times.
        """
        if False in present:
            self._proofs.pop(lane, None)
            await self.record(lane, False)
            return
        proofs = self._proofs.setdefault(lane, [])
        proofs += [bool(each) for each in present]
        if await self._transfers.any_doubt(lane, BATCH_DOUBT):
            return
        del self._proofs[lane]
        if len(proofs) > 1 and all(proofs):
            await self.record(lane, True)
            return
        self._failed_trials[lane] += 1
        if self._failed_trials[lane] < MAX_TRIALS:
            await self.record(lane, None)

    def batch_size(self, lane: str) -> int:
        """Return the number of documents that one request of this lane may contain now."""
        if lane == _BULK_LANE:
            return self._bulk.size if self._bulk.mappings else 1
        if not lane.startswith("codat/") or self._verdicts.get(lane, "trusted") != "trusted":
            return 1
        return self._codat_size

    async def make_batches(self, claimed: Sequence[Transfer]) -> list[list[Transfer]]:
        """Divide claimed transfers into batches and interleave the lanes.

        Doubts of one lane stay together. A lane without a verdict gets one batch, and its other documents are single.
        """
        by_lane: dict[tuple[str, bool], list[Transfer]] = {}
        for transfer in claimed:
            by_lane.setdefault((transfer.target.lane, transfer.state is State.ASKING), []).append(transfer)
        ranked: list[tuple[int, list[Transfer]]] = []
        for (lane, is_lookup), transfers in by_lane.items():
            ranked += [(1, transfers)] if is_lookup else await self._divide(lane, transfers)
        ranked.sort(key=lambda each: each[0])
        return [transfers for _, transfers in ranked]

    async def _divide(self, lane: str, transfers: Sequence[Transfer]) -> list[tuple[int, list[Transfer]]]:
        """Return the batches of one lane with their positions among all lanes."""
        if lane == _BULK_LANE:
            return list(enumerate(self._bulk.divide(transfers), 1))
        # A document that failed before is sent alone: if it is the cause, it would spoil the request of the others.
        single, rest = [t for t in transfers if t.tries], [t for t in transfers if not t.tries]
        size = self.batch_size(lane)
        ranked: list[tuple[int, list[Transfer]]] = []
        if size > 1 and len(rest) > 1 and lane not in self._verdicts:
            await self._set(lane, "trial")
            ranked.append((0, rest[:size]))
            size, rest = 1, rest[size:]
        batches = [rest[start : start + size] for start in range(0, len(rest), size)] + [[each] for each in single]
        return ranked + list(enumerate(batches, 1))

    async def _set(self, lane: str, verdict: Verdict) -> None:
        self._verdicts[lane] = verdict
        with refusal_logged(f"batches of {lane}"):
            await self._cursors.set(f"{_PREFIX}{lane}", verdict)
