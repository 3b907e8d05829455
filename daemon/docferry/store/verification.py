"""Store the results and the progress of verification, and queue missing documents again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict

from docferry.clock import Clock
from docferry.model import Transfer, joined
from docferry.store.claims import COLUMNS, transfer_of
from docferry.store.connection import Transaction, as_bytes
from docferry.store.cursors import GET, SET
from docferry.store.database import Database
from docferry.store.statement import Sql

_KEY: Final = "verify/round"
_WENT: Final = "the remote was asked and does not have it any more: its file is sent again as a new transfer"


class Verdict(StrEnum):
    """Name the state of a sent document at the remote."""

    PRESENT = "present"
    MISSING = "missing"
    CHANGED = "changed"
    UNKNOWN = "unknown"


class Result(Struct, frozen=True):
    """Hold the verdict about one transfer."""

    verdict: Verdict
    detail: str


class Round(Struct):
    """Describe one verification with its options, over any number of runs."""

    mapping: str | None
    since: float | None  # wall seconds: only documents sent since then
    with_bytes: bool
    began: float
    company: str = ""  # Codat's companies up to this one are verified
    object_id: int = 0  # Wootiv's objects up to this transfer are verified
    present: int = 0
    done: bool = False

    def asks_for(self) -> tuple[object, ...]:
        """Return the options that identify the round."""
        return self.mapping, self.since, self.with_bytes


class Discrepancy(Struct, frozen=True):
    """Describe a sent document that was not found present."""

    document_id: int | None
    mapping: str
    path: bytes | None
    remote_name: str
    verdict: str
    detail: str


class Verifications:
    """Access the table `verification`: one row for each sent transfer that was not found present."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def open_round(self, mapping: str | None, since: float | None, *, with_bytes: bool) -> Round:
        """Continue the last round if it has these options and is not complete; else begin a new one."""
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
        """Return the begin of the last round over everything if complete, wall seconds; 0.0 otherwise."""
        row = await self._database.fetch_one(GET, {"key": _KEY})
        last = None if row is None else _round_of(row[0])
        return last.began if last is not None and last.done and last.asks_for() == (None, None, False) else 0.0

    async def companies(self, wanted: Round) -> list[str]:
        """Return the companies of Codat with sent documents that follow the verified ones."""
        parameters = {"mapping": wanted.mapping, "since": wanted.since or 0.0, "after": wanted.company}
        rows = await self._database.fetch_all(_COMPANIES, parameters)
        return [row[0] for row in rows]

    async def sent_to(self, company: str) -> list[Transfer]:
        """Return all documents sent to a company of Codat."""
        rows = await self._database.fetch_all(_SENT, {"company": company})
        return [transfer_of(*row) for row in rows]

    async def object_ids(self, wanted: Round) -> list[int]:
        """Return the latest transfers of Wootiv's objects that follow the verified ones."""
        parameters = {"mapping": wanted.mapping, "since": wanted.since or 0.0, "after": wanted.object_id}
        return [row[0] for row in await self._database.fetch_all(_OBJECT_IDS, parameters)]

    async def objects(self, ids: Sequence[int]) -> list[tuple[Transfer, str | None]]:
        """Return transfers by id, each with the ETag of its receipt."""
        rows = await self._database.fetch_all(_OBJECTS, {"ids": list(ids)})
        return [(transfer_of(*row[:-1]), row[-1]) for row in rows]

    async def is_being_replaced(self, transfer: Transfer) -> bool:
        """Return whether another version of an object may be in flight."""
        parameters = {"lane": transfer.target.lane, "name": transfer.remote_name}
        return await self._database.fetch_one(_REPLACING, parameters) is not None

    async def record(self, results: Mapping[int, Result], progress: Round) -> None:
        """Record the results of one step and the progress of the round, in one commit."""
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
        """Return the documents that the newest round did not find present."""
        rows = await self._database.fetch_all(_FOUND)
        return [
            Discrepancy(
                row[0], row[1], None if row[3] is None else joined(as_bytes(row[2]), as_bytes(row[3])), *row[4:]
            )
            for row in rows
        ]

    async def absent(self) -> dict[str, int]:
        """Return the number of sent documents of each mapping that the newest round found missing or changed."""
        return dict(await self._database.fetch_all(_COUNTS))

    async def resend_missing(self) -> tuple[int, list[Discrepancy]]:
        """Send documents again that were proved missing. Return their number, and the documents without a file.

        The transfer is gone, with a receipt. Its file is new to the next scan and gets a new transfer with its own key
        and name.
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
    """Return the stored round; None if invalid."""
    try:
        return Round(**json.loads(value))
    except (ValueError, TypeError):
        return None


_CLEAR = Sql("DELETE FROM verification")
_COMPANIES = Sql("""
SELECT DISTINCT company_id FROM transfer WHERE state = 'sent' AND company_id > :after AND last_sent >= :since
  AND (CAST(:mapping AS TEXT) IS NULL OR mapping = :mapping) ORDER BY company_id
""")
_SENT = Sql(f"SELECT {COLUMNS} FROM transfer WHERE state = 'sent' AND company_id = :company ORDER BY id")
# Of the versions of an object, only the last sent one exists.
_OBJECT_IDS = Sql("""
SELECT id FROM (
  SELECT id, mapping, coalesce(last_sent, created) AS sent,
    row_number() OVER (PARTITION BY lane, remote_name ORDER BY last_sent DESC, id DESC) AS version
  FROM transfer WHERE state = 'sent' AND remote = 'wootiv') AS object
WHERE version = 1 AND id > :after AND sent >= :since AND (CAST(:mapping AS TEXT) IS NULL OR mapping = :mapping)
ORDER BY id
""")
_OBJECTS = Sql(f"""
SELECT {COLUMNS}, (SELECT a.etag FROM attempt a WHERE a.transfer_id = transfer.id AND a.state = 'sent')
FROM transfer WHERE id = ANY(:ids) ORDER BY id
""")
_REPLACING = Sql("""
SELECT 1 FROM transfer WHERE lane = :lane AND remote_name = :name
  AND state IN ('waiting', 'leased', 'sending', 'doubtful', 'asking') LIMIT 1
""")
_ADD = Sql("""
INSERT INTO verification (transfer_id, time, verdict, detail) VALUES (:id, :now, :verdict, :detail)
ON CONFLICT (transfer_id) DO UPDATE SET time = excluded.time, verdict = excluded.verdict, detail = excluded.detail
""")
_FOUND = Sql("""
SELECT d.id, t.mapping, d.folder, d.name, t.remote_name, v.verdict, v.detail
FROM verification v JOIN transfer t ON t.id = v.transfer_id
LEFT JOIN document d ON d.id = (
  SELECT id FROM document WHERE transfer_id = t.id ORDER BY present DESC, id DESC LIMIT 1)
ORDER BY t.id
""")
_COUNTS = Sql("""
SELECT t.mapping, count(*) FROM verification v JOIN transfer t ON t.id = v.transfer_id
WHERE v.verdict IN ('missing', 'changed') GROUP BY t.mapping
""")
_RESEND = Sql("""
UPDATE transfer SET state = 'gone', dedupe_key = 'gone:' || id, reason = NULL, detail = :why, updated = :now
WHERE state = 'sent' AND id IN (SELECT transfer_id FROM verification WHERE verdict = 'missing')
  AND EXISTS (SELECT 1 FROM document d WHERE d.transfer_id = transfer.id AND d.present)
RETURNING id
""")
_ABSENT = Sql("UPDATE document SET present = FALSE WHERE present AND transfer_id = ANY(:gone)")
_RESENT = Sql("DELETE FROM verification WHERE transfer_id = ANY(:gone)")
