"""Shift stored times after a jump of the wall clock."""

from __future__ import annotations

from docferry.clock import boot_id
from docferry.store import cursors
from docferry.store.connection import Transaction
from docferry.store.statement import Sql

#: The smallest change of the wall clock that counts as a jump, not as drift, seconds.
JUMP_S = 30.0
#: The longest delay until a jump is noticed, seconds: rows written this close to the new time are already correct.
NOTICED_S = 10.0
#: The age from which no lookup counts a sent transfer, seconds.
_COUNTED_S = 7 * 86_400.0
#: The largest possible age of a transfer whose time a wrong clock wrote, seconds.
_ANY_TIME_S = 30 * 86_400.0


def shift_times(transaction: Transaction, drift: float, now: float) -> float:
    """Shift all relevant times, and return the jump in seconds.

    `drift` is the wall clock minus the steady clock. Returns 0.0 if it did not change or another process shifted the
    times.
    """
    key = f"clock/{boot_id()}"
    known = transaction.fetch_one(cursors.GET, {"key": key})
    jump = 0.0 if known is None else drift - float(known[0])
    if known is not None and abs(jump) < JUMP_S:
        return 0.0
    transaction.execute(cursors.SET, {"key": key, "value": repr(drift), "now": now})
    if jump:
        recent = now - jump - _COUNTED_S
        for statement in _SHIFT:
            transaction.execute(statement, {"jump": jump, "recent": recent, "now": now, "noticed": NOTICED_S})
        if transaction.has_recordsets:
            transaction.execute(_SHIFT_OTHERS, {"jump": jump, "key": key})
    return jump


def reset_future_rows(transaction: Transaction, now: float) -> int:
    """Make transfers with a time in the future due, and return their number.

    The error of the clock is unknown, so each may have been sent at any time. `list_lag` counts from now.
    """
    changed = transaction.execute(_RESET_FUTURE, {"now": now, "limit": now + 60, "any_time": now - _ANY_TIME_S})
    transaction.execute(_RESET_FUTURE_GATES, {"limit": now + 60})
    return changed


# All hosts of a PostgreSQL queue use the server's time, and each notices the same jump.
_SHIFT_OTHERS = Sql("""
UPDATE cursor SET value = CAST(CAST(value AS DOUBLE PRECISION) + :jump AS TEXT)
WHERE key >= 'clock/' AND key < 'clock0' AND key <> :key
""")
# Each state is read through its own partial index, to skip a million sent rows. Leases of dead owners and undecidable
# transfers are included, because they can become doubtful.
_RESET_FUTURE = Sql("""
UPDATE transfer SET next_attempt = :now, updated = :now,
  first_sent = CASE WHEN first_sent > :any_time THEN :any_time ELSE first_sent END,
  last_sent = CASE WHEN last_sent > :now THEN :now ELSE last_sent END
WHERE updated > :limit AND id IN (
  SELECT id FROM transfer WHERE state = 'waiting' UNION ALL SELECT id FROM transfer WHERE state = 'doubtful'
  UNION ALL SELECT id FROM transfer WHERE state IN ('leased', 'sending', 'asking')
  UNION ALL SELECT id FROM transfer WHERE state = 'held' AND reason = 'undecidable')
""")
_RESET_FUTURE_GATES = Sql("DELETE FROM gate WHERE since > :limit")
_SHIFT = (
    Sql("""
    UPDATE transfer SET next_attempt = next_attempt + :jump, due_since = due_since + :jump,
      updated = updated + :jump, first_sent = first_sent + :jump, last_sent = last_sent + :jump
    WHERE state NOT IN ('sent', 'gone') AND abs(updated - :now) > :noticed
    """),
    # Exclude rows written after the jump by an attempt that began before it.
    Sql("""
    UPDATE transfer SET first_sent = CASE WHEN first_sent > :now THEN :now ELSE first_sent END,
      due_since = CASE WHEN due_since > :now THEN :now ELSE due_since END
    WHERE state NOT IN ('sent', 'gone') AND (first_sent > :now OR due_since > :now)
    """),
    Sql("""
    UPDATE transfer SET last_sent = last_sent + :jump
    WHERE state = 'sent' AND last_sent > :recent AND abs(last_sent - :now) > :noticed
    """),
    Sql("UPDATE gate SET until = until + :jump, since = since + :jump WHERE abs(since - :now) > :noticed"),
)
