"""Hold plans in a temporary table while they are committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from docferry.model import Reason, SeenFile, State, Target
from docferry.store.connection import Transaction, is_storable, storable
from docferry.store.recordset import BYTES, as_json, recordset, selected
from docferry.store.statement import ByDialect, Sql

#: The scope of a dedupe key. "content": equal bytes are sent once. "name": a name is sent once, and another version is
#: held. "object": a name has one content at a time, and versions follow each other. "volatile": like "object", but each
#: version gets its own name.
Exclusion = Literal["content", "name", "object", "volatile"]


class Planned(Struct, frozen=True):
    """Hold the planner's decision about a seen file: its target, or the rule that holds it."""

    seen_file: SeenFile
    target: Target | None  # None: a download wrote the file, and it is not uploaded
    uid: str
    remote_name: str
    sha256: str | None  # None: a rule holds the file unread
    dedupe_key: str
    state: State = State.WAITING
    reason: str | None = None
    detail: str | None = None
    sent_since: float | None = None  # for DOUBTFUL: the earliest time at which it may have been sent
    fingerprint: str | None = None  # of the same bytes as sha256; None: not computed
    md5: str | None = None
    exclusion: Exclusion = "content"


def fill(transaction: Transaction, rows: Sequence[Mapping[str, object]]) -> None:
    """Create the temporary table, and copy rows with all of its columns into it."""
    transaction.start(CREATE)
    transaction.start(_CLEAR)
    if transaction.has_recordsets:
        index(transaction)
        transaction.start(_FILL_TOGETHER, {"rows": as_json(rows)})
    else:
        transaction.execute_many(_FILL, rows)


def index(transaction: Transaction) -> None:
    """Create the index by dedupe key, which pays when names are exclusive."""
    transaction.start(_INDEX)


def row_of(number: int, mapping: str, plan: Planned) -> dict[str, object]:
    """Return the row of a plan. An unstorable number or text makes the plan held, without failing other plans."""
    seen_file, stamp, target = plan.seen_file, plan.seen_file.stamp, plan.target
    row = {
        "n": number,
        "mapping": mapping,
        "folder": seen_file.folder,
        "name": seen_file.name,
        "size": stamp.size,
        "mtime_ns": stamp.mtime_ns,
        "ctime_ns": stamp.ctime_ns,
        "sha256": plan.sha256,
        "fingerprint": plan.fingerprint,
        "md5": plan.md5,
        "uid": plan.uid,
        "lane": target and target.lane,
        "remote": target and target.remote,
        "company_id": target and target.company_id,
        "connection_id": target and target.connection_id,
        "remote_name": plan.remote_name,
        "dedupe_key": plan.dedupe_key,
        "state": plan.state,
        "reason": plan.reason,
        "detail": plan.detail,
        "sent_since": plan.sent_since,
        "exclusion": plan.exclusion,
    }
    texts = "".join([value for value in row.values() if isinstance(value, str)])
    is_plain = texts.isascii() and "\0" not in texts and all(map(is_storable, stamp))  # most are, and it is found soon
    if is_plain or all(map(is_storable, row.values())):
        return row
    detail = "its times, size or name at the remote cannot be stored; correct them (`touch`, rename)"
    return {name: storable(value) for name, value in (row | _held(plan, detail)).items()}


def held(plan: Planned, detail: str) -> Planned:
    """Return the plan that holds a file because its row cannot be stored."""
    return replace(plan, **_held(plan, detail))


def _held(plan: Planned, detail: str) -> dict[str, Any]:
    return {
        "sha256": None,
        "fingerprint": None,
        "md5": None,
        "dedupe_key": f"held:{plan.uid}",
        "state": State.HELD,
        "reason": Reason.METADATA,
        "detail": detail,
    }


#: The columns of the temporary table, with SQLite's types.
PLAN_COLUMNS = {
    "n": "INTEGER PRIMARY KEY",
    "mapping": "TEXT",
    "folder": "BLOB",
    "name": "BLOB",
    "size": "INTEGER",
    "mtime_ns": "INTEGER",
    "ctime_ns": "INTEGER",
    "sha256": "TEXT",
    "fingerprint": "TEXT",
    "md5": "TEXT",
    "uid": "TEXT",
    "lane": "TEXT",
    "remote": "TEXT",
    "company_id": "TEXT",
    "connection_id": "TEXT",
    "remote_name": "TEXT",
    "dedupe_key": "TEXT",
    "state": "TEXT",
    "reason": "TEXT",
    "detail": "TEXT",
    "sent_since": "REAL",
    "exclusion": "TEXT",
}
_POSTGRESQL_TYPES = {"TEXT": 'TEXT COLLATE "C"', "INTEGER": "BIGINT", "BLOB": "BYTEA", "REAL": "DOUBLE PRECISION"}

_RECORD_TYPES = {
    name: {"TEXT": "text", "BLOB": BYTES, "REAL": "double precision"}.get(kind, "bigint")
    for name, kind in PLAN_COLUMNS.items()
}


def _columns(types: Mapping[str, str]) -> str:
    """Return the definition of the columns, with types replaced by `types`."""
    return ", ".join(f"{name} {types.get(kind, kind)}" for name, kind in PLAN_COLUMNS.items())


CREATE = ByDialect(
    Sql(f"CREATE TEMP TABLE IF NOT EXISTS plan ({_columns({})})"),
    # Dropped at the end of the transaction, because pgbouncer may pass the session to another process.
    Sql(f"CREATE TEMP TABLE IF NOT EXISTS plan ({_columns(_POSTGRESQL_TYPES)}) ON COMMIT DROP"),
)
_CLEAR = Sql("DELETE FROM plan")
_FILL = Sql(f"INSERT INTO plan ({', '.join(PLAN_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in PLAN_COLUMNS)})")
_FILL_TOGETHER = Sql(
    f"INSERT INTO plan ({', '.join(PLAN_COLUMNS)}) SELECT {selected(_RECORD_TYPES)} FROM {recordset(_RECORD_TYPES)}"
)
_INDEX = Sql("CREATE INDEX IF NOT EXISTS plan_key ON plan (dedupe_key)")
