"""Maintain the receipt log of a running docferry: upkeep, anchors of heads, and detection of an old database copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import anyio
import anyio.lowlevel

from docferry import logs
from docferry.app.anchors import Anchor, AnchorError, FileAnchor, open_anchors
from docferry.clock import Clock
from docferry.errors import DocferryError
from docferry.model import escaped
from docferry.receipts.heads import Signer, open_signer
from docferry.settings import Settings
from docferry.store.database import Database
from docferry.store.old_copy import OldCopy
from docferry.store.receipt_log import ReceiptLog, StoredHead
from docferry.store.receipt_upkeep import ReceiptUpkeep
from docferry.store.refusals import refusal_logged

log = logs.get("receipts")

#: The interval between two anchored heads, seconds; shorter after a failure.
ANCHOR_EVERY_S: Final = 3600.0
ANCHOR_AGAIN_S: Final = 300.0
#: The time limit of `finish`, for a one-shot pass and for the daemon, seconds. A stop ends within `stop_grace` + 5 s.
FINISH_S: Final = 40.0
FINISH_DAEMON_S: Final = 4.0
#: Receipts in one step of reconstruction or erasure: a few tens of milliseconds in the writer's thread.
RECEIPTS_AT_ONCE: Final = 500


class ReceiptKeeper:
    """Maintain the receipt log of one process."""

    def __init__(self, settings: Settings, database: Database, clock: Clock) -> None:
        self.log = ReceiptLog(database, clock)
        self.old_copy = OldCopy(database, clock)
        self._upkeep = ReceiptUpkeep(database)
        self._clock = clock
        self._retain = settings.receipts.retain
        self._signer: Signer | None = None
        if settings.receipts.key_file is not None:
            self._signer = open_signer(settings.receipts.key_file)
        self._anchors: list[Anchor] = open_anchors(settings, clock)
        self._problems: dict[str, str] = {}  # by anchor
        self._copy_problem: str | None = None
        self.adopt_before = 0.0  # files from before this time may have been sent by a lost queue; wall seconds

    @property
    def notices(self) -> Mapping[str, str]:
        """Return the notices for people, keyed by the event of the alert: `unanchored` or `old_copy`."""
        found = {}
        if self._problems:
            found["unanchored"] = "; ".join(self._problems.values())
        if self._copy_problem is not None:
            found["old_copy"] = self._copy_problem
        return found

    async def check_copy(self, *, adopt: bool = False) -> None:
        """Compare the newest external head with the database, before anything is sent.

        If the database is older or a different one, mark documents doubtful that may have been sent since. With
        `adopt`, a person confirms the difference.
        """
        for anchor in self._anchors:
            if isinstance(anchor, FileAnchor):
                problem = await self._compare(anchor)
                if problem is not None:
                    doubts = await self.old_copy.doubt()
                    self._copy_problem = (
                        f"{problem}; the remotes are asked about what may have been sent since before it is sent"
                    )
                    log.error("old_copy", self._copy_problem, doubtful=doubts)
                    break
        self.adopt_before = float("inf") if adopt else await self.old_copy.since()

    async def run(self) -> None:
        """Reconstruct, then anchor hourly and erase old receipts, until cancelled."""
        while True:
            try:
                await self.reconstruct()
                await self._erase()
                await self.anchor()
                if self._copy_problem is not None and not await self.old_copy.any_left():
                    self._copy_problem = None
            except DocferryError as error:
                self._note_problem("database", str(error))
            is_well = not self._problems and self._copy_problem is None
            await anyio.sleep(ANCHOR_EVERY_S if is_well else ANCHOR_AGAIN_S)

    async def finish(self, within: float = FINISH_S) -> None:
        """End a one-shot pass or the daemon in limited time: reconstruct the rest, and anchor the head."""
        with anyio.move_on_after(within):
            with anyio.move_on_after(within / 2), refusal_logged("receipts of earlier documents"):
                await self.reconstruct()
            await self.anchor()

    async def reconstruct(self) -> None:
        """Append receipts for transfers that are older than the log."""
        while await self._upkeep.reconstruct(RECEIPTS_AT_ONCE):
            await anyio.lowlevel.checkpoint()  # documents have priority

    async def anchor(self) -> StoredHead | None:
        """Copy the head of the log to every anchor and return it; None if the log is empty.

        A failure is recorded as a problem for `status`, not raised.
        """
        try:
            head = await self.log.take_head(self._signer)
            if not head.signed.head.size:
                return None
            for anchor in self._anchors:
                await self._put(anchor, head)
        except DocferryError as error:
            self._note_problem("database", str(error))
            return None
        return head

    async def digest_lines(self) -> tuple[str, ...]:
        """Anchor the head, and return it for the daily digest."""
        head = await self.anchor()
        return () if head is None else ("", "Head of the receipts:", *head.signed.note().split("\n"))

    async def _put(self, anchor: Anchor, head: StoredHead) -> None:
        try:
            timestamp = await anchor.put(head)
        except AnchorError as error:
            self._note_problem(anchor.name, f"heads are not copied to {anchor.name}: {error}")
            return
        self._problems.pop(anchor.name, None)
        if timestamp is not None:
            await self.log.set_timestamp(head, timestamp)

    def _note_problem(self, name: str, problem: str) -> None:
        if self._problems.get(name) != problem:
            log.warning("unanchored", problem)
        self._problems[name] = problem

    async def _compare(self, anchor: FileAnchor) -> str | None:
        """Return why the database does not match the newest head in a file; None if it matches or is unknown."""
        try:
            heads = await anchor.newest()
        except AnchorError as error:
            self._note_problem(anchor.name, f"the newest head cannot be compared: {error}")
            return None
        state = await self.log.state()
        origins = {state.origin, *(each.origin for each in await self.log.logs())}
        ours = [each.head for each in heads if each.head.origin in origins]
        host = state.origin.rpartition("/")[0] + "/"
        others = [each.head for each in heads if each.head.origin.startswith(host)]
        where = escaped(str(anchor.path))
        if ours and not await self.log.knows(ours[-1]):
            counted = ours[-1].size
            return f"{where} has a head of {counted:,} receipts that the database (with {state.size:,}) does not know"
        if others and not ours:
            return f"{where} has heads of another database of this host, {others[-1].origin}: this one is new"
        return None

    async def _erase(self) -> None:
        if self._retain is None:
            return
        while await self._upkeep.erase(self._clock.now() - self._retain, RECEIPTS_AT_ONCE) == RECEIPTS_AT_ONCE:
            await anyio.lowlevel.checkpoint()
