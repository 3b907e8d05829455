"""The wall clock was turned: times that still matter turn with it."""

from __future__ import annotations

from sqlalchemy import Connection, text

from docferry.clock import boot_id

#: A jump of the wall clock smaller than this is drift, seconds.
JUMP = 30.0
#: A jump is noticed within this: what was written so close to the new time was written by it, seconds.
NOTICED = 10.0
#: What was sent longer ago is counted for no doubt any more, seconds.
_COUNTED = 7 * 86_400.0
#: What may have been sent by a clock that was wrong may have been sent so long ago, seconds.
_ANY_TIME = 30 * 86_400.0


def turn(connection: Connection, drift: float, now: float) -> float:
    """The wall clock is `drift` ahead of the steady one, seconds. Returns the jump since that was last noted; 0.0 when
    there was none, or another process has seen to it."""
    subject = f"clock/{boot_id()}"
    known = connection.execute(_DRIFT, {"subject": subject}).scalar_one_or_none()
    jump = 0.0 if known is None else drift - float(known)
    if known is not None and abs(jump) < JUMP:
        return 0.0
    connection.execute(_NOTE_DRIFT, {"subject": subject, "drift": repr(drift), "now": now})
    if jump:
        recent = now - jump - _COUNTED
        for statement in _TURN:
            connection.execute(statement, {"jump": jump, "recent": recent, "now": now, "noticed": NOTICED})
    return jump


def call_back(connection: Connection, now: float) -> int:
    """Make due what was written later than now: number of transfers. By how much that clock was wrong nobody knows, so
    what it may have sent may have been sent at any time; the list must lag from here."""
    called = connection.execute(_CALL_BACK, {"now": now, "any_time": now - _ANY_TIME}).all()
    connection.execute(text("DELETE FROM gate WHERE since > :now + 60"), {"now": now})
    return len(called)


# Each state by itself, as its index is asked for it: a million rows that were sent need not be read. What the dead were
# sending is not swept yet, and what is undecidable may be retried: both will be doubts.
_CALL_BACK = text("""
UPDATE transfer SET next_attempt = :now, updated = :now,
  first_sent = min(first_sent, :any_time), last_sent = min(last_sent, :now)
WHERE updated > :now + 60 AND id IN (
  SELECT id FROM transfer WHERE state = 'waiting' UNION ALL SELECT id FROM transfer WHERE state = 'doubtful'
  UNION ALL SELECT id FROM transfer WHERE state IN ('leased', 'sending', 'asking')
  UNION ALL SELECT id FROM transfer WHERE state = 'held' AND reason = 'undecidable')
RETURNING id
""")
_DRIFT = text("SELECT mark FROM bookmark WHERE subject = :subject")
_NOTE_DRIFT = text(
    "INSERT INTO bookmark (subject, mark, updated) VALUES (:subject, :drift, :now) "
    "ON CONFLICT (subject) DO UPDATE SET mark = excluded.mark, updated = excluded.updated"
)
_TURN = (
    text(
        "UPDATE transfer SET next_attempt = next_attempt + :jump, due_since = due_since + :jump, "
        "updated = updated + :jump, first_sent = first_sent + :jump, last_sent = last_sent + :jump "
        "WHERE state NOT IN ('sent', 'gone') AND abs(updated - :now) > :noticed"
    ),
    # Written since the jump, but begun before it.
    text(
        "UPDATE transfer SET first_sent = min(first_sent, :now), due_since = min(due_since, :now) "
        "WHERE state NOT IN ('sent', 'gone') AND (first_sent > :now OR due_since > :now)"
    ),
    text(
        "UPDATE transfer SET last_sent = last_sent + :jump "
        "WHERE state = 'sent' AND last_sent > :recent AND abs(last_sent - :now) > :noticed"
    ),
    text("UPDATE gate SET until = until + :jump, since = since + :jump WHERE abs(since - :now) > :noticed"),
)
