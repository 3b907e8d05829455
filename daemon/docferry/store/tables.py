"""The tables of a fresh database. `migrations/` upgrades an older database to the same schema."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
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

#: Alembic's own table: the revision of the schema.
alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

#: A path of a mapping. Each path has one row with `present`; changed content adds a row.
document = Table(
    "document",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("mapping", Text, nullable=False),
    Column("folder", LargeBinary, nullable=False),  # relative to the mapping's root, the kernel's bytes
    Column("name", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
    Column("ctime_ns", Integer, nullable=False),
    Column("sha256", Text),
    Column("transfer_id", Integer),  # NULL: a download wrote the file, and it is not uploaded
    Column("present", Boolean, nullable=False),
    Column("first_seen", Float, nullable=False),
    Column("updated", Float, nullable=False),
    # Absent rows are history, which this index does not contain.
    Index("document_path", "mapping", "folder", "name", unique=True, sqlite_where=text("present")),
    Index("document_transfer", "transfer_id"),
)

#: One digest of one document to one remote.
transfer = Table(
    "transfer",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", Text, nullable=False),
    Column("mapping", Text, nullable=False),
    Column("lane", Text, nullable=False),
    Column("remote", Text, nullable=False),
    Column("company_id", Text),
    Column("connection_id", Text),
    Column("remote_name", Text, nullable=False),
    Column("sha256", Text),  # NULL: a rule holds it and nothing was read
    Column("dedupe_key", Text, nullable=False),  # unique per lane: a digest or a name; 'gone:ID' once it is gone
    Column("size", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("lease", Integer, nullable=False),
    Column("lease_owner", Text),
    Column("tries", Integer, nullable=False),
    Column("key_version", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("due_since", Float, nullable=False),
    Column("next_attempt", Float, nullable=False),
    Column("first_sent", Float),
    Column("last_sent", Float),
    Column("reason", Text),
    Column("detail", Text),
    Column("updated", Float, nullable=False),
    Column("fingerprint", Text),  # XXH3-128 of the bytes, hex; NULL: unknown
    Column("md5", Text),  # of the bytes, hex; NULL: unknown
    # No condition on the state: else each transition would write a page of this index.
    Index("transfer_dedupe_key", "lane", "dedupe_key", unique=True),
    Index("transfer_waiting", "mapping", "lane", "next_attempt", sqlite_where=text("state = 'waiting'")),
    Index("transfer_doubtful", "mapping", "lane", "next_attempt", sqlite_where=text("state = 'doubtful'")),
    Index("transfer_in_flight", "lease_owner", "state", sqlite_where=text("state IN ('leased', 'sending', 'asking')")),
    Index("transfer_held", "mapping", "reason", sqlite_where=text("state = 'held'")),
    Index("transfer_sent", "company_id", "last_sent", sqlite_where=text("state = 'sent'")),
    # `downloads.py` adds `transfer_digest` where docferry downloads from Codat.
)

#: One try of a transfer, under one lease.
attempt = Table(
    "attempt",
    metadata,
    Column("transfer_id", Integer, primary_key=True),
    Column("lease", Integer, primary_key=True),
    Column("began", Float, nullable=False),
    Column("ended", Float),
    Column("state", Text, nullable=False),
    Column("detail", Text),
    Column("status", Integer),
    Column("correlation_id", Text),
    Column("etag", Text),
    Column("proof", Text),
    sqlite_with_rowid=False,
)

#: A circuit breaker of a remote, company or connection, closed until a time.
gate = Table(
    "gate",
    metadata,
    Column("key", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("until", Float, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("since", Float, nullable=False),
    Column("lets_doubts_pass", Boolean, nullable=False),
)

#: Progress that outlives a restart: a download's day or object, a connection's trust in batches, a mapping's target.
cursor = Table(
    "cursor",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("updated", Float, nullable=False),
)

#: A file that a download wrote or is about to write. The row is committed before the file appears.
download = Table(
    "download",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("mapping", Text, nullable=False),
    Column("origin", Text, nullable=False),  # company/day/source/name, or the object's name
    Column("sha256", Text, nullable=False),
    Column("path", LargeBinary),  # absolute; NULL: docferry's own upload, which is not downloaded
    Column("published", Boolean, nullable=False),
    Column("size", Integer, nullable=False),
    Column("updated", Float, nullable=False),
    Index("download_origin", "mapping", "origin", "sha256", unique=True),
    Index("download_path", "path"),
)

#: One condition from its first sighting to its end; see docferry.alerts.tracker.
alert = Table(
    "alert",
    metadata,
    Column("host", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("since", Float, primary_key=True),
    Column("labels", Text, nullable=False),  # JSON, pairs of name and value
    Column("summary", Text, nullable=False),
    Column("advice", Text, nullable=False),
    Column("observed", Text, nullable=False),
    Column("last_seen", Float, nullable=False),
    Column("changed", Float, nullable=False),
    Column("ended", Float),
)

#: What one receiver was told of one alert.
alert_delivery = Table(
    "alert_delivery",
    metadata,
    Column("host", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("since", Float, primary_key=True),
    Column("receiver", Text, primary_key=True),
    Column("delivered", Text),
    Column("delivered_at", Float, nullable=False),
    Column("tries", Integer, nullable=False),
)

#: Key patterns of conditions of which nobody is told until a time.
alert_silence = Table(
    "alert_silence",
    metadata,
    Column("key", Text, primary_key=True),
    Column("until", Float, nullable=False),
)

#: A leaf of the log of receipts; rows are only added, and `retain` erases bodies.
receipt = Table(
    "receipt",
    metadata,
    Column("idx", Integer, primary_key=True, autoincrement=False),  # from 0 on, without gaps
    Column("transfer_id", Integer),  # NULL: a download
    Column("kind", Text, nullable=False),
    Column("body", Text),  # canonical JSON; NULL: erased
    Column("leaf", LargeBinary, nullable=False),  # hash of the body
    Index("receipt_transfer", "transfer_id"),
)

#: One row: the log's name, its size and the right edge of its tree.
receipt_log = Table(
    "receipt_log",
    metadata,
    Column("origin", Text, primary_key=True),  # docferry/HOST/ID
    Column("size", Integer, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
    # What was sent or brought before there were receipts gets one afterwards: ids above `…_done` and up to `…_old`.
    Column("transfers_done", Integer, nullable=False),
    Column("transfers_old", Integer, nullable=False),
    Column("downloads_done", Integer, nullable=False),
    Column("downloads_old", Integer, nullable=False),
    Column("erased", Integer, nullable=False),  # bodies of receipts below this index are erased
)

#: A head of the log, as it was anchored.
receipt_head = Table(
    "receipt_head",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("time", Float, nullable=False),
    Column("size", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("timestamp", LargeBinary),  # an RFC 3161 time stamp of the note
    Index("receipt_head_size", "size"),
)

#: A sent transfer that the last verification did not find present at its remote.
verification = Table(
    "verification",
    metadata,
    Column("transfer_id", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("verdict", Text, nullable=False),  # missing | changed | unknown
    Column("detail", Text, nullable=False),
)
