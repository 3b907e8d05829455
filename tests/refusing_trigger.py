"""Provide statements that let a trigger refuse rows, as another program's trigger or CHECK could."""

from __future__ import annotations


def refusing(event: str, condition: str = "1 = 1", *, postgresql: bool) -> list[str]:
    """Return statements that refuse a change, such as `UPDATE ON transfer`, of rows for which a condition holds."""
    if not postgresql:
        return [f"CREATE TRIGGER no BEFORE {event} WHEN {condition} BEGIN SELECT RAISE(ABORT, 'no 17'); END"]
    return [
        "CREATE OR REPLACE FUNCTION refuse_row() RETURNS trigger AS "
        "$$ BEGIN RAISE EXCEPTION 'no 17'; END $$ LANGUAGE plpgsql",
        f"CREATE TRIGGER no BEFORE {event} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse_row()",
    ]


def allowing(event: str, *, postgresql: bool) -> str:
    """Return the statement that removes the trigger."""
    return f"DROP TRIGGER no ON {event.rpartition(' ')[2]}" if postgresql else "DROP TRIGGER no"
