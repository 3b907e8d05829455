"""Detect that a PostgreSQL server was replaced, and make transfers doubtful that the earlier one may have sent.

A promoted standby may lack the newest commits, and a restored backup lacks all later ones. Documents sent in lost
commits are waiting again, or are unknown. Therefore every due transfer is first looked up at its remote.
"""

from __future__ import annotations

from typing import Any, Final

from docferry.store import cursors, old_copy
from docferry.store.connection import Transaction
from docferry.store.statement import Sql

#: The largest lead of a host's clock over the server's clock, seconds.
REPLACED_CLOCK_S: Final = 300.0
#: The time after the change within which hosts cancel their requests, seconds: see `owners.UNCONFIRMED_AFTER_S`.
CUT_AFTER_S: Final = 15.0
_DETAIL: Final = "the database server was replaced or restored: the remote is asked whether this was sent before"

#: Cursor keys and SQL expressions of the server's identity; the first expression with sufficient permission is used.
#: The name of the current WAL file begins with the timeline, which changes with a promotion or a restored backup. The
#: control file would show the timeline only after the next checkpoint. Without these permissions, the start time is
#: used: each restart then counts as a change.
IDENTITIES: Final = (
    (
        "server/identity",
        "(SELECT system_identifier FROM pg_control_system())::text "
        "|| '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)",
    ),
    ("server/started", "CAST(extract(epoch FROM pg_postmaster_start_time()) AS text)"),
)
#: A dropped and restored database or table has another number.
_TABLE: Final = "'transfer'::regclass::oid"


def identity_query(key: str, expression: str) -> str:
    """Return the query of three columns: the present identity, the recorded one, and the time of `adopt_before`."""
    return (
        f"SELECT {expression} || '/' || {_TABLE}, "  # noqa: S608 - constant expressions
        f"(SELECT value FROM cursor WHERE key = '{key}'), "
        f"(SELECT value FROM cursor WHERE key = '{old_copy.KEY}')"
    )


def record(transaction: Transaction, key: str, identity: str) -> int | None:
    """Store the identity of the server; after a change, make all transfers doubtful that may have been sent.

    Returns the number of doubtful transfers, or None if another process did this or the queue had no identity yet.
    """
    now = transaction.fetch_one(_NOW)[0]
    stored = transaction.fetch_one(_LOCKED, {"key": key})
    if stored is not None and stored[0] == identity:
        return None
    transaction.execute(cursors.SET, {"key": key, "value": identity, "now": now})
    return None if stored is None else _doubt(transaction, now)


def _doubt(transaction: Transaction, now: float) -> int:
    parameters: dict[str, Any] = {
        "now": now,
        "cut": now + CUT_AFTER_S,
        "reason": old_copy.REASON,
        "detail": _DETAIL,
    }
    doubtful = transaction.execute(_DOUBT, parameters)
    transaction.execute(old_copy.DOUBT_HELD, {"now": now})
    transaction.execute(_OPEN_GATES)
    transaction.execute(_KEEP_ALIVE, {"now": now})
    mark = {"key": old_copy.KEY, "value": repr(now + REPLACED_CLOCK_S), "now": now}
    transaction.execute(cursors.SET, mark)
    return doubtful


#: The time until which a lost queue may have sent a file.
ADOPT_BEFORE = Sql(f"SELECT (SELECT value FROM cursor WHERE key = '{old_copy.KEY}')")  # noqa: S608 - a constant
_NOW = Sql("SELECT CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)")
_LOCKED = Sql("SELECT value FROM cursor WHERE key = :key FOR UPDATE")
# All leases are void, because the commits that gave or ended them may be lost. An earlier doubt may have been sent
# again meanwhile, so its `list_lag` also starts again.
_DOUBT = Sql("""
UPDATE transfer SET state = 'doubtful', lease_owner = NULL, lease = lease + 1,
  reason = CASE WHEN state IN ('waiting', 'leased', 'sending') THEN :reason ELSE reason END, detail = :detail,
  first_sent = coalesce(first_sent, created), last_sent = :cut, next_attempt = :now, updated = :now
WHERE state IN ('waiting', 'leased', 'sending', 'asking', 'doubtful')
""")
# A remote that still refuses requests closes its gate again.
_OPEN_GATES = Sql("DELETE FROM gate")
# Heartbeats by the earlier server's clock are meaningless here; each process gets the time to send one.
_KEEP_ALIVE = Sql("UPDATE process SET heartbeat = :now")
