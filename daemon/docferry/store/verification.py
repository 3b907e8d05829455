"""What a verification found at the remotes, how far it got, and what is sent again because of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import text

from docferry.clock import Clock
from docferry.model import Transfer, joined
from docferry.store.claims import COLUMNS, transfer_of
from docferry.store.connection import Transaction
from docferry.store.cursors import GET, SET
from docferry.store.database import Database

_KEY: Final = "verify/round"
_WENT: Final = "the remote was asked and does not have it any more: its file is sent again as a new transfer"


class Verdict(StrEnum):
    """What the remote has of a sent document."""

    PRESENT = "present"
    MISSING = "missing"
    CHANGED = "changed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict about one transfer."""

    verdict: Verdict
    detail: str


@dataclass(slots=True)
class Round:
    """One verification of everything that was asked for, over any number of runs."""

    mapping: str | None
    since: float | None  # wall seconds: only what was sent from then on
    with_bytes: bool
    began: float
    company: str = ""  # Codat's companies up to this one are done
    object_id: int = 0  # Wootiv's objects up to this transfer are done
    present: int = 0
    done: bool = False

    def asks_for(self) -> tuple[object, ...]:
        """Return what identifies the round."""
        return self.mapping, self.since, self.with_bytes


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """A sent document that is not simply present."""

    document_id: int | None
    mapping: str
    path: bytes | None
    remote_name: str
    verdict: str
    detail: str


class Verifications:
    """The table `verification`: one row for each sent transfer that is not simply present."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def open_round(self, mapping: str | None, since: float | None, *, with_bytes: bool) -> Round:
        """Go on with the last round where it asked for the same and is not done; else begin a new one."""
        fresh = Round(mapping, since, with_bytes, self._clock.now())

        def work(transaction: Transaction) -> Round:
            mark = transaction.fetch_one(GET, {"key": _KEY})
            last = None if mark is None else _round_of(mark[0])
            if last is not None and not last.done and last.asks_for() == fresh.asks_for():
                return last
            transaction.execute(_CLEAR)
            self._save(transaction, fresh)
            return fresh

        return await self._database.write(work)

    async def last_done(self) -> float:
        """Return when the last round of everything was begun, if it is done; wall seconds, 0.0 when it is not."""
        row = await self._database.fetch_one(GET, {"key": _KEY})
        last = None if row is None else _round_of(row[0])
        return last.began if last is not None and last.done and last.asks_for() == (None, None, False) else 0.0

    async def companies(self, wanted: Round) -> list[str]:
        """Return Codat's companies to which something was sent, after those that are done."""
        parameters = {"mapping": wanted.mapping, "since": wanted.since or 0.0, "after": wanted.company}
        rows = await self._database.fetch_all(_COMPANIES, parameters)
        return [row[0] for row in rows]

    async def sent_to(self, company: str) -> list[Transfer]:
        """Return everything that was sent to a company of Codat."""
        rows = await self._database.fetch_all(_SENT, {"company": company})
        return [transfer_of(*row) for row in rows]

    async def object_ids(self, wanted: Round) -> list[int]:
        """Return the transfers that sent Wootiv's objects last, after those that are done."""
        parameters = {"mapping": wanted.mapping, "since": wanted.since or 0.0, "after": wanted.object_id}
        return [row[0] for row in await self._database.fetch_all(_OBJECT_IDS, parameters)]

    async def objects(self, ids: Sequence[int]) -> list[tuple[Transfer, str | None]]:
        """Return transfers by id, each with the ETag of its receipt."""
        rows = await self._database.fetch_all(_OBJECTS, {"ids": list(ids)})
        return [(transfer_of(*row[:-1]), row[-1]) for row in rows]

    async def is_being_replaced(self, transfer: Transfer) -> bool:
        """Whether another version of an object may be on its way."""
        parameters = {"lane": transfer.target.lane, "name": transfer.remote_name}
        return await self._database.fetch_one(_REPLACING, parameters) is not None

    async def record(self, results: Mapping[int, Result], progress: Round) -> None:
        """Record the results of one step, and how far the round is, in one commit."""
        now = self._clock.now()
        rows = [
            {"id": each, "now": now, "verdict": found.verdict.value, "detail": found.detail}
            for each, found in results.items()
            if found.verdict is not Verdict.PRESENT
        ]
        progress.present += len(results) - len(rows)

        def work(transaction: Transaction) -> None:
            transaction.execute_many(_ADD, rows)
            self._save(transaction, progress)

        await self._database.write(work)

    async def found(self) -> list[Discrepancy]:
        """Return what is not simply present, by the newest round."""
        rows = await self._database.fetch_all(_FOUND)
        return [
            Discrepancy(row[0], row[1], None if row[3] is None else joined(row[2], row[3]), *row[4:]) for row in rows
        ]

    async def absent(self) -> dict[str, int]:
        """Return how many sent documents of each mapping the newest round found missing or changed."""
        return dict(await self._database.fetch_all(_COUNTS))

    async def resend_missing(self) -> tuple[int, list[Discrepancy]]:
        """Let what was proved missing be sent again: their number, and those whose file is not there any more.

        The transfer is gone, with a receipt that says so; its file is new to the next scan and gets a transfer, a key
        and a name of its own.
        """
        now = self._clock.now()

        def work(transaction: Transaction) -> int:
            gone = [row[0] for row in transaction.fetch_all(_RESEND, {"now": now, "why": _WENT})]
            transaction.execute(_ABSENT, {"gone": gone})
            transaction.execute(_RESENT, {"gone": gone})
            self._database.receipts.append_gone(transaction, gone, now, _WENT)
            return len(gone)

        number = await self._database.write(work)
        return number, [each for each in await self.found() if each.verdict == Verdict.MISSING]

    def _save(self, transaction: Transaction, progress: Round) -> None:
        value = json.dumps(asdict(progress))
        transaction.execute(SET, {"key": _KEY, "value": value, "now": self._clock.now()})


def _round_of(value: str) -> Round | None:
    """Return the stored round; None when it makes no sense."""
    try:
        return Round(**json.loads(value))
    except (ValueError, TypeError):
        return None


_CLEAR = text("DELETE FROM verification")
_COMPANIES = text("""
SELECT DISTINCT company_id FROM transfer WHERE state = 'sent' AND company_id > :after AND last_sent >= :since
  AND (CAST(:mapping AS TEXT) IS NULL OR mapping = :mapping) ORDER BY company_id
""")
_SENT = text(f"SELECT {COLUMNS} FROM transfer WHERE state = 'sent' AND company_id = :company ORDER BY id")
# Of the versions of an object only the one that was sent last is there.
_OBJECT_IDS = text("""
SELECT id FROM (
  SELECT id, mapping, coalesce(last_sent, created) AS sent,
    row_number() OVER (PARTITION BY lane, remote_name ORDER BY last_sent DESC, id DESC) AS version
  FROM transfer WHERE state = 'sent' AND remote = 'wootiv') AS object
WHERE version = 1 AND id > :after AND sent >= :since AND (CAST(:mapping AS TEXT) IS NULL OR mapping = :mapping)
ORDER BY id
""")
_OBJECTS = text(f"""
SELECT {COLUMNS}, (SELECT a.etag FROM attempt a WHERE a.transfer_id = transfer.id AND a.state = 'sent')
FROM transfer WHERE id = ANY(:ids) ORDER BY id
""")
_REPLACING = text("""
SELECT 1 FROM transfer WHERE lane = :lane AND remote_name = :name
  AND state IN ('waiting', 'leased', 'sending', 'doubtful', 'asking') LIMIT 1
""")
_ADD = text("""
INSERT INTO verification (transfer_id, time, verdict, detail) VALUES (:id, :now, :verdict, :detail)
ON CONFLICT (transfer_id) DO UPDATE SET time = excluded.time, verdict = excluded.verdict, detail = excluded.detail
""")
_FOUND = text("""
SELECT d.id, t.mapping, d.folder, d.name, t.remote_name, v.verdict, v.detail
FROM verification v JOIN transfer t ON t.id = v.transfer_id
LEFT JOIN document d ON d.id = (
  SELECT id FROM document WHERE transfer_id = t.id ORDER BY present DESC, id DESC LIMIT 1)
ORDER BY t.id
""")
_COUNTS = text("""
SELECT t.mapping, count(*) FROM verification v JOIN transfer t ON t.id = v.transfer_id
WHERE v.verdict IN ('missing', 'changed') GROUP BY t.mapping
""")
_RESEND = text("""
UPDATE transfer SET state = 'gone', dedupe_key = 'gone:' || id, reason = NULL, detail = :why, updated = :now
WHERE state = 'sent' AND id IN (SELECT transfer_id FROM verification WHERE verdict = 'missing')
  AND EXISTS (SELECT 1 FROM document d WHERE d.transfer_id = transfer.id AND d.present)
RETURNING id
""")
_ABSENT = text("UPDATE document SET present = FALSE WHERE present AND transfer_id = ANY(:gone)")
_RESENT = text("DELETE FROM verification WHERE transfer_id = ANY(:gone)")
