"""Commit plans: copy them into a temporary table, so that each step is one statement for all documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from docferry.model import SeenFile, State, parted
from docferry.store import plan_table
from docferry.store.connection import Transaction
from docferry.store.plan_table import Planned
from docferry.store.receipts import ReceiptWriter
from docferry.store.statement import Sql

OBJECT_KEY: Final = "object:"
#: The longest delay after which an attempt with a lost response may take effect, seconds.
LATE_PUT_S: Final = 5.0
#: Detail of a transfer that is held for approval.
APPROVAL: Final = "this mapping sends only what a person released: `docferry retry ID`, or Release on the status page"
#: Detail of a transfer that is gone before it was sent.
WENT_AWAY: Final = "the file vanished or changed before it was sent"


class Applied(Struct, frozen=True):
    """Count documents by the effect of their plan."""

    queued: int
    held: int
    unchanged: int
    #: Plans that wait until an earlier version with the same name was sent; plan them again soon.
    deferred: tuple[SeenFile, ...] = ()
    taken: tuple[SeenFile, ...] = ()  # held, because their name is taken
    refused: tuple[tuple[SeenFile, str], ...] = ()  # not even held, and why

    def __add__(self, other: Applied) -> Applied:
        return Applied(
            self.queued + other.queued,
            self.held + other.held,
            self.unchanged + other.unchanged,
            self.deferred + other.deferred,
            self.taken + other.taken,
            self.refused + other.refused,
        )


def apply(
    transaction: Transaction, mapping: str, planned: Sequence[Planned], now: float, receipts: ReceiptWriter
) -> Applied:
    """Commit plans; see `Documents.apply`."""
    rows = [plan_table.row_of(number, mapping, plan) for number, plan in enumerate(planned)]
    plan_table.fill(transaction, rows)
    transaction.start(_DROP_REPEATED)
    if any(row["sha256"] is None for row in rows):
        _refresh_held(transaction, now)
    transaction.start(_REFRESH_STAMPS, {"now": now})
    is_exclusive = any(plan.exclusion != "content" for plan in planned)
    deferred = _defer(transaction, planned, now) if is_exclusive else ()
    if is_exclusive and transaction.fetch_all(_HOLD_STILL_TAKEN):
        _refresh_held(transaction, now)
    _retire(transaction, now, receipts)
    taken: list[int] = []
    if is_exclusive:
        taken = [number for (number,) in transaction.fetch_all(_HOLD_TAKEN)]
        transaction.start(_SUPERSEDE, {"now": now})
    states = [state for (state,) in transaction.fetch_all(_INSERT_TRANSFERS, {"now": now})]
    if len(states) < len(planned):  # otherwise no plan found an earlier transfer
        transaction.start(_UNHOLD, {"now": now})
        transaction.start(_FOLLOW_MAPPING)
    transaction.start(_INSERT_DOCUMENTS, {"now": now})
    held = sum(state == State.HELD for state in states)
    unchanged = len(planned) - len(states) - len(deferred)
    return Applied(len(states) - held, held, unchanged, deferred, tuple(planned[number].seen_file for number in taken))


def mark_gone(
    transaction: Transaction, mapping: str, paths: Sequence[bytes], now: float, receipts: ReceiptWriter
) -> int:
    """Record that paths are absent; see `Documents.mark_gone`."""
    empty = dict.fromkeys(plan_table.PLAN_COLUMNS)
    rows = [(number, *parted(path)) for number, path in enumerate(paths)]
    plan_table.fill(
        transaction, [empty | {"n": n, "mapping": mapping, "folder": f, "name": name} for n, f, name in rows]
    )
    return _retire(transaction, now, receipts)


def mark_removed(transaction: Transaction, document_ids: Sequence[int], now: float) -> None:
    """Record that the files of sent documents were removed; see `Documents.mark_removed`."""
    removed = transaction.fetch_all(_REMOVE_DOCUMENTS, {"ids": document_ids, "now": now})
    transaction.start(_FREE_TAKEN, {"retired": [transfer_id for (transfer_id,) in removed if transfer_id is not None]})


def _refresh_held(transaction: Transaction, now: float) -> None:
    """Give the stamps of held plans to documents that are held for the same reason, and drop these plans."""
    transaction.start(_REFRESH_HELD_STAMPS, {"now": now})
    transaction.start(_REFRESH_HELD_DETAILS, {"now": now})
    transaction.start(_DROP_STILL_HELD)


def _defer(transaction: Transaction, planned: Sequence[Planned], now: float) -> tuple[SeenFile, ...]:
    """Remove plans whose earlier version is in flight or doubtful, so that versions arrive in order.

    A version with several attempts counts as doubtful for a time: a lost attempt may still take effect.
    """
    if not transaction.has_recordsets:
        plan_table.index(transaction)
    transaction.start(_DROP_REFRESHED)
    numbers = [number for (number,) in transaction.fetch_all(_DEFERRED, {"settled": now - LATE_PUT_S})]
    if numbers:
        transaction.start(_DROP_DEFERRED, {"numbers": numbers})
    return tuple(planned[number].seen_file for number in numbers)


def _retire(transaction: Transaction, now: float, receipts: ReceiptWriter) -> int:
    """Mark replaced documents as absent and their unneeded transfers as gone. Return the number of documents."""
    retired = [transfer_id for (transfer_id,) in transaction.fetch_all(_RETIRE_DOCUMENTS, {"now": now})]
    transfers = [transfer_id for transfer_id in retired if transfer_id is not None]
    if transfers:
        transaction.start(_FREE_TAKEN, {"retired": transfers})
        parameters = {"now": now, "retired": transfers, "detail": WENT_AWAY}
        gone = [transfer_id for (transfer_id,) in transaction.fetch_all(_RETIRE_TRANSFERS, parameters)]
        receipts.append_gone(transaction, gone, now, WENT_AWAY)
    return len(retired)


# The later plan of a path counts.
_DROP_REPEATED = Sql("DELETE FROM plan WHERE n NOT IN (SELECT max(n) FROM plan GROUP BY mapping, folder, name)")
# Keep the document if a rule holds another version of the file for the same reason. A file changed in a loop would
# otherwise add rows without end.
_REFRESH_HELD_STAMPS = Sql("""
UPDATE document SET size = p.size, mtime_ns = p.mtime_ns, ctime_ns = p.ctime_ns, updated = :now
FROM plan p, transfer t WHERE document.present AND document.mapping = p.mapping
  AND sha256(document.folder) = sha256(p.folder) AND document.name = p.name AND document.sha256 IS NULL
  AND p.sha256 IS NULL AND t.id = document.transfer_id
  AND t.state = 'held' AND (t.lane, t.reason, t.remote_name) = (p.lane, p.reason, p.remote_name)
""")
_REFRESH_HELD_DETAILS = Sql("""
UPDATE transfer SET size = p.size, detail = p.detail, updated = :now
FROM plan p, document d WHERE d.transfer_id = transfer.id AND d.present AND d.mapping = p.mapping
  AND sha256(d.folder) = sha256(p.folder) AND d.name = p.name AND d.sha256 IS NULL AND p.sha256 IS NULL
  AND transfer.state = 'held' AND transfer.reason = p.reason
  AND (transfer.size, transfer.detail) IS DISTINCT FROM (p.size, p.detail)
""")
# Include files that another process held at this moment.
_DROP_STILL_HELD = Sql("""
DELETE FROM plan WHERE sha256 IS NULL AND EXISTS (SELECT 1 FROM document d WHERE d.present
    AND d.mapping = plan.mapping AND sha256(d.folder) = sha256(plan.folder) AND d.name = plan.name AND d.sha256 IS NULL
    AND (d.size, d.mtime_ns, d.ctime_ns) = (plan.size, plan.mtime_ns, plan.ctime_ns))
""")
# The same bytes for the same target with another stamp: the file was touched.
_REFRESH_STAMPS = Sql("""
UPDATE document SET size = p.size, mtime_ns = p.mtime_ns, ctime_ns = p.ctime_ns, updated = :now
FROM plan p WHERE document.present AND document.mapping = p.mapping
  AND sha256(document.folder) = sha256(p.folder) AND document.name = p.name AND document.sha256 = p.sha256
  AND (document.transfer_id IS NULL AND p.lane IS NULL OR EXISTS (
    SELECT 1 FROM transfer t WHERE t.id = document.transfer_id AND t.lane = p.lane
    AND (t.dedupe_key = p.dedupe_key OR p.exclusion = 'volatile' AND substr(t.dedupe_key, 1, 7) = 'object:')))
""")
# A refreshed document keeps its transfer: the next plan of a volatile name would have another name.
_DROP_REFRESHED = Sql("""
DELETE FROM plan WHERE exclusion = 'volatile' AND EXISTS (SELECT 1 FROM document d WHERE d.present
  AND d.mapping = plan.mapping AND sha256(d.folder) = sha256(plan.folder) AND d.name = plan.name
  AND d.sha256 = plan.sha256
  AND (d.size, d.mtime_ns, d.ctime_ns) = (plan.size, plan.mtime_ns, plan.ctime_ns))
""")
# Find another version, or at an object store another spelling of the name.
_DIFFERS = """
({other}.sha256 IS DISTINCT FROM {plan}.sha256
  OR {plan}.exclusion = 'object' AND {other}.remote_name <> {plan}.remote_name)
"""
_DEFERRED = Sql(f"""
SELECT p.n FROM plan p JOIN transfer t ON t.lane = p.lane AND t.dedupe_key = p.dedupe_key
WHERE p.exclusion <> 'content' AND (t.state IN ('leased', 'sending', 'asking', 'doubtful')
    OR t.state = 'sent' AND t.tries > 1 AND t.last_sent > :settled AND p.exclusion <> 'name')
  AND {_DIFFERS.format(other="t", plan="p")}
""")
_DROP_DEFERRED = Sql("DELETE FROM plan WHERE n = ANY(:numbers)")
# The name belongs to another present file, to an earlier plan of this commit, or to a sent version if names are sent
# once.
_HOLD_NAMES = f"""
UPDATE plan SET state = 'held', reason = 'name_taken', sha256 = NULL, fingerprint = NULL, md5 = NULL,
  dedupe_key = 'taken:' || dedupe_key || ':' || uid,
  detail = 'the name "' || remote_name || '" at the remote is taken by another file or version; rename the file, or '
    || 'let names differ (file_name, object_name, dedupe), then run `docferry retry`'
WHERE exclusion <> 'content' AND sha256 IS NOT NULL {{condition}} AND (
  EXISTS (SELECT 1 FROM transfer t WHERE t.lane = plan.lane AND t.dedupe_key = plan.dedupe_key
    AND {_DIFFERS.format(other="t", plan="plan")}
    AND (plan.exclusion = 'name' OR EXISTS (SELECT 1 FROM document o WHERE o.transfer_id = t.id AND o.present
      AND (o.mapping, o.folder, o.name) <> (plan.mapping, plan.folder, plan.name))))
  OR EXISTS (SELECT 1 FROM plan q WHERE q.lane = plan.lane AND q.dedupe_key = plan.dedupe_key AND q.n < plan.n
    AND {_DIFFERS.format(other="q", plan="plan")}))
RETURNING n
"""
_HOLD_TAKEN = Sql(_HOLD_NAMES.format(condition=""))
# A held file that changes in a loop keeps its document. Names that this commit frees still count as taken: the next
# scan plans the documents that wait for them.
_HOLD_STILL_TAKEN = Sql(
    _HOLD_NAMES.format(
        condition="""AND EXISTS (SELECT 1 FROM document h JOIN transfer u ON u.id = h.transfer_id
  WHERE h.present AND h.mapping = plan.mapping AND sha256(h.folder) = sha256(plan.folder) AND h.name = plan.name
    AND u.lane = plan.lane AND u.state = 'held' AND u.reason = 'name_taken')"""
    )
)
# The object gets another version, so the earlier transfer no longer represents the object.
_SUPERSEDE = Sql(f"""
UPDATE transfer SET dedupe_key = 'superseded:' || transfer.id, updated = :now FROM plan p
WHERE transfer.lane = p.lane AND transfer.dedupe_key = p.dedupe_key AND p.exclusion IN ('object', 'volatile')
  AND p.sha256 IS NOT NULL AND transfer.state IN ('sent', 'held')
  AND {_DIFFERS.format(other="transfer", plan="p")}
""")
# A file released its name: the next scan plans the documents again that were held for it.
_FREE_TAKEN = Sql("""
UPDATE document SET ctime_ns = -1 WHERE present AND transfer_id IN (
  SELECT h.id FROM transfer r CROSS JOIN transfer h
  WHERE r.id = ANY(:retired) AND h.lane = r.lane AND h.state = 'held' AND h.reason = 'name_taken'
    AND h.dedupe_key >= 'taken:' || r.dedupe_key || ':' AND h.dedupe_key < 'taken:' || r.dedupe_key || ';')
""")
_RETIRE_DOCUMENTS = Sql("""
UPDATE document SET present = false, updated = :now
FROM plan p WHERE document.present AND document.mapping = p.mapping
  AND sha256(document.folder) = sha256(p.folder) AND document.name = p.name
  AND (document.size, document.mtime_ns, document.ctime_ns, document.sha256)
    IS DISTINCT FROM (p.size, p.mtime_ns, p.ctime_ns, p.sha256)
RETURNING document.transfer_id
""")
_REMOVE_DOCUMENTS = Sql("""
UPDATE document SET present = false, updated = :now WHERE id = ANY(:ids) RETURNING transfer_id
""")
_RETIRE_TRANSFERS = Sql("""
UPDATE transfer SET state = 'gone', dedupe_key = 'gone:' || id, updated = :now,
  detail = :detail
WHERE (state = 'waiting' OR state = 'held' AND reason IS DISTINCT FROM 'undecidable')
  AND id = ANY(:retired)
  AND NOT EXISTS (SELECT 1 FROM document o WHERE o.transfer_id = transfer.id AND o.present)
RETURNING id
""")
_INSERT_TRANSFERS = Sql("""
INSERT INTO transfer (uid, mapping, lane, remote, company_id, connection_id, remote_name, sha256, fingerprint, md5,
  dedupe_key, size, state, lease, tries, key_version, created, due_since, next_attempt, reason, detail, first_sent,
  last_sent, updated)
SELECT uid, mapping, lane, remote, company_id, connection_id, remote_name, sha256, fingerprint, md5,
  dedupe_key, size, state, 0, 0, 0, :now, :now, :now, reason, detail, sent_since,
  sent_since, :now
FROM plan WHERE lane IS NOT NULL ORDER BY n
ON CONFLICT (lane, dedupe_key) DO NOTHING
RETURNING state
""")
# The same bytes were held by a check that does not apply here: of another mapping, or for another name.
_UNHOLD = Sql("""
UPDATE transfer SET state = CASE WHEN transfer.first_sent IS NULL THEN 'waiting' ELSE 'doubtful' END,
  remote_name = CASE WHEN transfer.first_sent IS NULL THEN p.remote_name ELSE transfer.remote_name END,
  reason = NULL, detail = NULL, next_attempt = :now, due_since = :now, updated = :now
FROM plan p WHERE transfer.lane = p.lane AND transfer.dedupe_key = p.dedupe_key AND transfer.sha256 = p.sha256
  AND p.state = 'waiting' AND transfer.state = 'held' AND transfer.reason IN ('approval', 'content', 'incomplete')
""")
# A transfer belongs to the mapping that had its bytes last: a renamed or removed mapping claims nothing.
_FOLLOW_MAPPING = Sql("""
UPDATE transfer SET mapping = p.mapping FROM plan p
WHERE transfer.lane = p.lane AND transfer.dedupe_key = p.dedupe_key AND transfer.mapping <> p.mapping
  AND transfer.state IN ('waiting', 'doubtful', 'held')
""")
_INSERT_DOCUMENTS = Sql("""
INSERT INTO document (mapping, folder, name, size, mtime_ns, ctime_ns, sha256, transfer_id, present, first_seen,
  updated)
SELECT p.mapping, p.folder, p.name, p.size, p.mtime_ns, p.ctime_ns, p.sha256,
  (SELECT id FROM transfer t WHERE t.lane = p.lane AND t.dedupe_key = p.dedupe_key), true, :now, :now
FROM plan p WHERE true ORDER BY p.n
ON CONFLICT (mapping, sha256(folder), name) WHERE present DO NOTHING
""")
