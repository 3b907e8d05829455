"""Define the tables of a new database. `migrations/` upgrades an older database to the same schema."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

#: 64 bits. SQLite needs the plain name for a row id.
Integer64 = BigInteger().with_variant(Integer, "sqlite")
#: Compared byte by byte, as in SQLite.
BytewiseText = Text().with_variant(Text(collation="C"), "postgresql")


def _where(condition: str) -> dict[str, Any]:
    """Return the arguments of a partial index, on SQLite and PostgreSQL.

    `create_tables` gives PostgreSQL its condition: the argument `postgresql_where` would load PostgreSQL's dialect
    for SQLite too.
    """
    return {"sqlite_where": text(condition)}


def create_tables(connection: Connection) -> None:
    """Create all tables in an empty database."""
    if connection.dialect.name == "postgresql":
        for index in (index for table in metadata.tables.values() for index in table.indexes):
            if (condition := index.dialect_options["sqlite"]["where"]) is not None:
                index.dialect_options["postgresql"]["where"] = condition
    metadata.create_all(connection, checkfirst=False)


#: Alembic's own table: the revision of the schema.
alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

#: A path of a mapping. Each path has one `present` row; changed content adds a row.
document = Table(
    "document",
    metadata,
    Column("id", Integer64, primary_key=True),
    Column("mapping", BytewiseText, nullable=False),
    Column("folder", LargeBinary, nullable=False),  # bytes relative to the mapping's root
    Column("name", LargeBinary, nullable=False),
    Column("size", Integer64, nullable=False),
    Column("mtime_ns", Integer64, nullable=False),
    Column("ctime_ns", Integer64, nullable=False),
    Column("sha256", BytewiseText),
    Column("transfer_id", Integer64),  # NULL: a download wrote the file, and it is not uploaded
    Column("present", Boolean, nullable=False),
    Column("first_seen", Float, nullable=False),
    Column("updated", Float, nullable=False),
    # Absent rows are history, which this index does not contain.
    Index("document_path", "mapping", "folder", "name", unique=True, **_where("present")).ddl_if("sqlite"),
    # A key of PostgreSQL's index has at most 2,704 bytes, and a path 4,096.
    Index("document_path", "mapping", text("sha256(folder)"), "name", unique=True, **_where("present")).ddl_if(
        "postgresql"
    ),
    Index("document_transfer", "transfer_id"),
)

#: One digest of one document to one remote.
transfer = Table(
    "transfer",
    metadata,
    Column("id", Integer64, primary_key=True),
    Column("uid", BytewiseText, nullable=False),
    Column("mapping", BytewiseText, nullable=False),
    Column("lane", BytewiseText, nullable=False),
    Column("remote", BytewiseText, nullable=False),
    Column("company_id", BytewiseText),
    Column("connection_id", BytewiseText),
    Column("remote_name", BytewiseText, nullable=False),
    Column("sha256", BytewiseText),  # NULL: a rule holds the file unread
    Column("dedupe_key", BytewiseText, nullable=False),  # unique per lane: a digest, a name, or 'gone:ID'
    Column("size", Integer64, nullable=False),
    Column("state", BytewiseText, nullable=False),
    Column("lease", Integer64, nullable=False),
    Column("lease_owner", BytewiseText),
    Column("tries", Integer64, nullable=False),
    Column("key_version", Integer64, nullable=False),
    Column("created", Float, nullable=False),
    Column("due_since", Float, nullable=False),
    Column("next_attempt", Float, nullable=False),
    Column("first_sent", Float),
    Column("last_sent", Float),
    Column("reason", BytewiseText),
    Column("detail", BytewiseText),
    Column("updated", Float, nullable=False),
    Column("fingerprint", BytewiseText),  # XXH3-128 of the bytes, hex; NULL: unknown
    Column("md5", BytewiseText),  # of the bytes, hex; NULL: unknown
    # Without a condition on the state: otherwise each transition would write a page of this index.
    Index("transfer_dedupe_key", "lane", "dedupe_key", unique=True),
    Index("transfer_waiting", "mapping", "lane", "next_attempt", **_where("state = 'waiting'")),
    Index("transfer_doubtful", "mapping", "lane", "next_attempt", **_where("state = 'doubtful'")),
    Index("transfer_in_flight", "lease_owner", "state", **_where("state IN ('leased', 'sending', 'asking')")),
    Index("transfer_held", "mapping", "reason", **_where("state = 'held'")),
    Index("transfer_sent", "company_id", "last_sent", **_where("state = 'sent'")),
    # `downloads.py` adds `transfer_digest` if docferry downloads from Codat.
)

#: One attempt for a transfer, under one lease.
attempt = Table(
    "attempt",
    metadata,
    Column("transfer_id", Integer64, primary_key=True),
    Column("lease", Integer64, primary_key=True),
    Column("began", Float, nullable=False),
    Column("ended", Float),
    Column("state", BytewiseText, nullable=False),
    Column("detail", BytewiseText),
    Column("status", Integer64),
    Column("correlation_id", BytewiseText),
    Column("etag", BytewiseText),
    Column("proof", BytewiseText),
    sqlite_with_rowid=False,
)

#: A circuit breaker of a remote, company or connection, closed until a time.
gate = Table(
    "gate",
    metadata,
    Column("key", BytewiseText, primary_key=True),
    Column("reason", BytewiseText, nullable=False),
    Column("detail", BytewiseText, nullable=False),
    Column("until", Float, nullable=False),
    Column("tries", Integer64, nullable=False),
    Column("since", Float, nullable=False),
    Column("lets_doubts_pass", Boolean, nullable=False),
)

#: Progress that survives a restart: a download's day or object, the trust in a connection's batches, a mapping's
#: target.
cursor = Table(
    "cursor",
    metadata,
    Column("key", BytewiseText, primary_key=True),
    Column("value", BytewiseText, nullable=False),
    Column("updated", Float, nullable=False),
)

#: A file that a download wrote or is about to write. The row is committed before the file appears.
download = Table(
    "download",
    metadata,
    Column("id", Integer64, primary_key=True),
    Column("mapping", BytewiseText, nullable=False),
    Column("origin", BytewiseText, nullable=False),  # company/day/source/name, or the object's name
    Column("sha256", BytewiseText, nullable=False),
    Column("path", LargeBinary),  # absolute; NULL: docferry's own upload, which is not downloaded
    Column("published", Boolean, nullable=False),
    Column("size", Integer64, nullable=False),
    Column("updated", Float, nullable=False),
    Index("download_origin", "mapping", "origin", "sha256", unique=True),
)

#: One condition from its beginning to its end; see docferry.alerts.tracker.
alert = Table(
    "alert",
    metadata,
    Column("host", BytewiseText, primary_key=True),
    Column("key", BytewiseText, primary_key=True),
    Column("since", Float, primary_key=True),
    Column("labels", BytewiseText, nullable=False),  # JSON, pairs of name and value
    Column("summary", BytewiseText, nullable=False),
    Column("advice", BytewiseText, nullable=False),
    Column("observed", BytewiseText, nullable=False),
    Column("last_seen", Float, nullable=False),
    Column("changed", Float, nullable=False),
    Column("ended", Float),
)

#: The last delivery of one alert to one receiver.
alert_delivery = Table(
    "alert_delivery",
    metadata,
    Column("host", BytewiseText, primary_key=True),
    Column("key", BytewiseText, primary_key=True),
    Column("since", Float, primary_key=True),
    Column("receiver", BytewiseText, primary_key=True),
    Column("delivered", BytewiseText),
    Column("delivered_at", Float, nullable=False),
    Column("tries", Integer64, nullable=False),
)

#: Key patterns of conditions that are silenced until a time.
alert_silence = Table(
    "alert_silence",
    metadata,
    Column("key", BytewiseText, primary_key=True),
    Column("until", Float, nullable=False),
)

#: A leaf of the log of receipts; rows are only added, and `retain` erases bodies.
receipt = Table(
    "receipt",
    metadata,
    # The index in its log, from 0 without gaps, plus the log's number times 2^40.
    Column("idx", Integer64, primary_key=True, autoincrement=False),
    Column("transfer_id", Integer64),  # NULL: a download
    Column("kind", BytewiseText, nullable=False),
    Column("body", BytewiseText),  # canonical JSON; NULL: erased
    Column("leaf", LargeBinary, nullable=False),  # hash of the body
    Index("receipt_transfer", "transfer_id"),
)

#: A log of receipts: its name, its size and the right edge of its tree. SQLite has one. On PostgreSQL each host has its
#: own, so that hosts do not wait for each other's appends.
receipt_log = Table(
    "receipt_log",
    metadata,
    Column("origin", BytewiseText, primary_key=True),  # docferry/HOST/ID
    Column("size", Integer64, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
    # Transfers and downloads from before the log get receipts later: ids above `…_done` and up to `…_old`.
    Column("transfers_done", Integer64, nullable=False),
    Column("transfers_old", Integer64, nullable=False),
    Column("downloads_done", Integer64, nullable=False),
    Column("downloads_old", Integer64, nullable=False),
    Column("erased", Integer64, nullable=False),  # bodies of receipts below this index are erased
    Column("number", Integer64, nullable=False, server_default=text("0")),  # see `receipt.idx`
    Column("host", BytewiseText),  # the appending host; NULL: SQLite, or a log from before hosts had separate logs
)

#: An anchored head of the log.
receipt_head = Table(
    "receipt_head",
    metadata,
    Column("id", Integer64, primary_key=True),
    Column("time", Float, nullable=False),
    Column("size", Integer64, nullable=False),
    Column("note", BytewiseText, nullable=False),
    Column("timestamp", LargeBinary),  # an RFC 3161 time stamp of the note
    Column("log", Integer64, nullable=False, server_default=text("0")),  # number of its log
    Index("receipt_head_size", "size"),
)

#: A sent transfer that the last verification did not find present at its remote.
verification = Table(
    "verification",
    metadata,
    Column("transfer_id", Integer64, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("verdict", BytewiseText, nullable=False),  # missing | changed | unknown
    Column("detail", BytewiseText, nullable=False),
)

#: A process that shares a PostgreSQL queue, with times of the server's clock. Not used on SQLite.
process = Table(
    "process",
    metadata,
    Column("owner", BytewiseText, primary_key=True),
    Column("host", BytewiseText, nullable=False),
    Column("pid", Integer64, nullable=False),
    Column("version", BytewiseText, nullable=False),
    Column("started", Float, nullable=False),
    Column("heartbeat", Float, nullable=False),
    Column("clock_offset", Float),  # seconds by which the host's clock is ahead of the server's
    Column("unreadable", BytewiseText),  # shared mappings that the host cannot read, JSON
)

#: The process that may claim transfers of a company, on PostgreSQL. The row counts only while transfers of the company
#: are in flight under that owner. `claims` changes with every claim, so that two processes never take a company at
#: once.
company_lease = Table(
    "company_lease",
    metadata,
    Column("company", BytewiseText, primary_key=True),  # remote/company
    Column("owner", BytewiseText, nullable=False),
    Column("since", Float, nullable=False),  # the server's clock, like all times of leases
    Column("claims", Integer64, nullable=False),
    Column("asked", Float),  # the time of the last request by another process
)

#: The process that scans a shared mapping, on PostgreSQL. The row counts while the owner's heartbeat does.
scan_lease = Table(
    "scan_lease",
    metadata,
    Column("mapping", BytewiseText, primary_key=True),
    Column("owner", BytewiseText, nullable=False),
    Column("since", Float, nullable=False),
)
