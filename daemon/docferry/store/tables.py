"""The tables of a fresh database; `migrations/` brings an older one to the same."""

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

#: Which of the migrations the tables are as new as, as alembic wants it.
alembic_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

#: A path of a mapping. One row with `present` a path; a change makes a new row.
document = Table(
    "document",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("mapping", Text, nullable=False),
    Column("folder", LargeBinary, nullable=False),  # relative to the mapping's root, bytes as the kernel has them
    Column("name", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
    Column("ctime_ns", Integer, nullable=False),
    Column("sha256", Text),
    Column("transfer_id", Integer),  # NULL: it came down by a download and is not sent back
    Column("present", Boolean, nullable=False),
    Column("first_seen", Float, nullable=False),
    Column("updated", Float, nullable=False),
    # One present row a path; what went away stays as history and never slows a scan.
    Index("document_path", "mapping", "folder", "name", unique=True, sqlite_where=text("present")),
    Index("document_transfer", "transfer_id"),
)

#: One digest of one document to one target.
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
    Column("sha256", Text),  # NULL while a rule holds it: nothing was read
    Column("once", Text, nullable=False),  # what goes once per lane: a digest, a name; what is gone gives it up
    Column("size", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("lease", Integer, nullable=False),
    Column("owner", Text),
    Column("tries", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("due_since", Float, nullable=False),
    Column("next_attempt", Float, nullable=False),
    Column("first_sent", Float),
    Column("last_sent", Float),
    Column("reason", Text),
    Column("detail", Text),
    Column("updated", Float, nullable=False),
    Column("fingerprint", Text),  # XXH3-128 of the bytes, hex: a later pass over them is proved by it; NULL: not known
    Column("md5", Text),  # of the bytes, hex, for a remote that is told it; NULL: not known
    # It does not hang on the state: each move would write a page of it anew, and of a million rows always another.
    Index("transfer_once", "lane", "once", unique=True),
    Index("transfer_waiting", "mapping", "lane", "next_attempt", sqlite_where=text("state = 'waiting'")),
    Index("transfer_doubtful", "mapping", "lane", "next_attempt", sqlite_where=text("state = 'doubtful'")),
    Index("transfer_in_flight", "owner", "state", sqlite_where=text("state IN ('leased', 'sending', 'asking')")),
    Index("transfer_held", "mapping", "reason", sqlite_where=text("state = 'held'")),
    Index("transfer_sent", "company_id", "last_sent", sqlite_where=text("state = 'sent'")),
    # And one more by digest, in the databases of those who bring files down: see bookmarks.
)

#: One try under one lease.
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

#: A remote, company or connection closed for all until a time.
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

#: How far something got: a pull's day or object, a connection's trust in batches, a mapping's target.
bookmark = Table(
    "bookmark",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("mark", Text, nullable=False),
    Column("updated", Float, nullable=False),
)

#: A file that a download brought, or is about to bring; written before the file appears.
arrival = Table(
    "arrival",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("mapping", Text, nullable=False),
    Column("origin", Text, nullable=False),  # company/day/source/name, or the object's name
    Column("sha256", Text, nullable=False),
    Column("path", LargeBinary),  # where it lies, absolute; NULL: our own upload, not brought back
    Column("landed", Boolean, nullable=False),
    Column("size", Integer, nullable=False),
    Column("updated", Float, nullable=False),
    Index("arrival_origin", "mapping", "origin", "sha256", unique=True),
    Index("arrival_path", "path"),
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
    Column("arrivals_done", Integer, nullable=False),
    Column("arrivals_old", Integer, nullable=False),
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
