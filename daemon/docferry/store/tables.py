"""Define the tables of a new database. `migrations/` upgrades an older database to the same schema.

They are SQL, so that a first start does not import SQLAlchemy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from docferry.store.statement import Sql, for_sqlite

#: The columns of each table, with SQLite's types.
TABLES: Final = {
    # Alembic's own table: the revision of the schema.
    "alembic_version": """
        version_num VARCHAR(32) NOT NULL,
        CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
    """,
    # A path of a mapping. Each path has one `present` row; changed content adds a row.
    "document": """
        id INTEGER NOT NULL,
        mapping TEXT NOT NULL,
        folder BLOB NOT NULL, -- bytes relative to the mapping's root
        name BLOB NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL,
        sha256 TEXT,
        transfer_id INTEGER, -- NULL: a download wrote the file, and it is not uploaded
        present BOOLEAN NOT NULL,
        first_seen FLOAT NOT NULL,
        updated FLOAT NOT NULL,
        PRIMARY KEY (id)
    """,
    # One digest of one document to one remote.
    "transfer": """
        id INTEGER NOT NULL,
        uid TEXT NOT NULL,
        mapping TEXT NOT NULL,
        lane TEXT NOT NULL,
        remote TEXT NOT NULL,
        company_id TEXT,
        connection_id TEXT,
        remote_name TEXT NOT NULL,
        sha256 TEXT, -- NULL: a rule holds the file unread
        dedupe_key TEXT NOT NULL, -- unique per lane: a digest, a name, or 'gone:ID'
        size INTEGER NOT NULL,
        state TEXT NOT NULL,
        lease INTEGER NOT NULL,
        lease_owner TEXT,
        tries INTEGER NOT NULL,
        key_version INTEGER NOT NULL,
        created FLOAT NOT NULL,
        due_since FLOAT NOT NULL,
        next_attempt FLOAT NOT NULL,
        first_sent FLOAT,
        last_sent FLOAT,
        reason TEXT,
        detail TEXT,
        updated FLOAT NOT NULL,
        fingerprint TEXT, -- XXH3-128 of the bytes, hex; NULL: unknown
        md5 TEXT, -- of the bytes, hex; NULL: unknown
        PRIMARY KEY (id)
    """,
    # One attempt for a transfer, under one lease.
    "attempt": """
        transfer_id INTEGER NOT NULL,
        lease INTEGER NOT NULL,
        began FLOAT NOT NULL,
        ended FLOAT,
        state TEXT NOT NULL,
        detail TEXT,
        status INTEGER,
        correlation_id TEXT,
        etag TEXT,
        proof TEXT,
        PRIMARY KEY (transfer_id, lease)
    """,
    # A circuit breaker of a remote, company or connection, closed until a time.
    "gate": """
        key TEXT NOT NULL,
        reason TEXT NOT NULL,
        detail TEXT NOT NULL,
        until FLOAT NOT NULL,
        tries INTEGER NOT NULL,
        since FLOAT NOT NULL,
        lets_doubts_pass BOOLEAN NOT NULL,
        PRIMARY KEY (key)
    """,
    # Progress that survives a restart: a download's day or object, the trust in a connection's batches, a mapping's
    # target.
    "cursor": """
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        updated FLOAT NOT NULL,
        PRIMARY KEY (key)
    """,
    # A file that a download wrote or is about to write. The row is committed before the file appears.
    "download": """
        id INTEGER NOT NULL,
        mapping TEXT NOT NULL,
        origin TEXT NOT NULL, -- company/day/source/name, or the object's name
        sha256 TEXT NOT NULL,
        path BLOB, -- absolute; NULL: docferry's own upload, which is not downloaded
        published BOOLEAN NOT NULL,
        size INTEGER NOT NULL,
        updated FLOAT NOT NULL,
        PRIMARY KEY (id)
    """,
    # One condition from its beginning to its end; see docferry.alerts.tracker.
    "alert": """
        host TEXT NOT NULL,
        key TEXT NOT NULL,
        since FLOAT NOT NULL,
        labels TEXT NOT NULL, -- JSON, pairs of name and value
        summary TEXT NOT NULL,
        advice TEXT NOT NULL,
        observed TEXT NOT NULL,
        last_seen FLOAT NOT NULL,
        changed FLOAT NOT NULL,
        ended FLOAT,
        PRIMARY KEY (host, key, since)
    """,
    # The last delivery of one alert to one receiver.
    "alert_delivery": """
        host TEXT NOT NULL,
        key TEXT NOT NULL,
        since FLOAT NOT NULL,
        receiver TEXT NOT NULL,
        delivered TEXT,
        delivered_at FLOAT NOT NULL,
        tries INTEGER NOT NULL,
        PRIMARY KEY (host, key, since, receiver)
    """,
    # Key patterns of conditions that are silenced until a time.
    "alert_silence": """
        key TEXT NOT NULL,
        until FLOAT NOT NULL,
        PRIMARY KEY (key)
    """,
    # A leaf of the log of receipts; rows are only added, and `retain` erases bodies.
    "receipt": """
        idx INTEGER NOT NULL, -- the index in its log, from 0 without gaps, plus the log's number times 2^40
        transfer_id INTEGER, -- NULL: a download
        kind TEXT NOT NULL,
        body TEXT, -- canonical JSON; NULL: erased
        leaf BLOB NOT NULL, -- hash of the body
        PRIMARY KEY (idx)
    """,
    # A log of receipts: its name, its size and the right edge of its tree. SQLite has one. On PostgreSQL each host has
    # its own, so that hosts do not wait for each other's appends. Transfers and downloads from before the log get
    # receipts later: ids above `…_done` and up to `…_old`.
    "receipt_log": """
        origin TEXT NOT NULL, -- docferry/HOST/ID
        size INTEGER NOT NULL,
        frontier BLOB NOT NULL,
        transfers_done INTEGER NOT NULL,
        transfers_old INTEGER NOT NULL,
        downloads_done INTEGER NOT NULL,
        downloads_old INTEGER NOT NULL,
        erased INTEGER NOT NULL, -- bodies of receipts below this index are erased
        number INTEGER DEFAULT 0 NOT NULL, -- see `receipt.idx`
        host TEXT, -- the appending host; NULL: SQLite, or a log from before hosts had separate logs
        PRIMARY KEY (origin)
    """,
    # An anchored head of the log.
    "receipt_head": """
        id INTEGER NOT NULL,
        time FLOAT NOT NULL,
        size INTEGER NOT NULL,
        note TEXT NOT NULL,
        timestamp BLOB, -- an RFC 3161 time stamp of the note
        log INTEGER DEFAULT 0 NOT NULL, -- number of its log
        PRIMARY KEY (id)
    """,
    # A sent transfer that the last verification did not find present at its remote.
    "verification": """
        transfer_id INTEGER NOT NULL,
        time FLOAT NOT NULL,
        verdict TEXT NOT NULL, -- missing | changed | unknown
        detail TEXT NOT NULL,
        PRIMARY KEY (transfer_id)
    """,
    # A process that shares a PostgreSQL queue, with times of the server's clock. Not used on SQLite.
    "process": """
        owner TEXT NOT NULL,
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        version TEXT NOT NULL,
        started FLOAT NOT NULL,
        heartbeat FLOAT NOT NULL,
        clock_offset FLOAT, -- seconds by which the host's clock is ahead of the server's
        unreadable TEXT, -- shared mappings that the host cannot read, JSON
        PRIMARY KEY (owner)
    """,
    # The process that may claim transfers of a company, on PostgreSQL. The row counts only while transfers of the
    # company are in flight under that owner. `claims` changes with every claim, so that two processes never take a
    # company at once.
    "company_lease": """
        company TEXT NOT NULL, -- remote/company
        owner TEXT NOT NULL,
        since FLOAT NOT NULL, -- the server's clock, like all times of leases
        claims INTEGER NOT NULL,
        asked FLOAT, -- the time of the last request by another process
        PRIMARY KEY (company)
    """,
    # The process that scans a shared mapping, on PostgreSQL. The row counts while the owner's heartbeat does.
    "scan_lease": """
        mapping TEXT NOT NULL,
        owner TEXT NOT NULL,
        since FLOAT NOT NULL,
        PRIMARY KEY (mapping)
    """,
}
_INDEXES: Final = (
    # Absent rows are history, which this index does not contain. A key of PostgreSQL's index has at most 2,704 bytes,
    # and a path 4,096.
    Sql("CREATE UNIQUE INDEX document_path ON document (mapping, sha256(folder), name) WHERE present"),
    Sql("CREATE INDEX document_transfer ON document (transfer_id)"),
    # Without a condition on the state: otherwise each transition would write a page of this index.
    Sql("CREATE UNIQUE INDEX transfer_dedupe_key ON transfer (lane, dedupe_key)"),
    Sql("CREATE INDEX transfer_waiting ON transfer (mapping, lane, next_attempt) WHERE state = 'waiting'"),
    Sql("CREATE INDEX transfer_doubtful ON transfer (mapping, lane, next_attempt) WHERE state = 'doubtful'"),
    Sql(
        "CREATE INDEX transfer_in_flight ON transfer (lease_owner, state) "
        "WHERE state IN ('leased', 'sending', 'asking')"
    ),
    Sql("CREATE INDEX transfer_held ON transfer (mapping, reason) WHERE state = 'held'"),
    Sql("CREATE INDEX transfer_sent ON transfer (company_id, last_sent) WHERE state = 'sent'"),
    # `downloads.py` adds `transfer_digest` if docferry downloads from Codat.
    Sql("CREATE UNIQUE INDEX download_origin ON download (mapping, origin, sha256)"),
    Sql("CREATE INDEX receipt_transfer ON receipt (transfer_id)"),
    Sql("CREATE INDEX receipt_head_size ON receipt_head (size)"),
)
#: PostgreSQL's types. Texts are compared byte by byte, as in SQLite; SQLite needs the plain name for a row id.
_POSTGRESQL_TYPES: Final = {
    "id INTEGER": "id BIGSERIAL",
    "INTEGER": "BIGINT",
    "TEXT": 'TEXT COLLATE "C"',
    "BLOB": "BYTEA",
}
_TYPE = re.compile(r"\b(?:id INTEGER|INTEGER|TEXT|BLOB)\b")
_COMMENT = re.compile(r" *--.*")
#: Tables without a row id in SQLite: their key is their only index.
_WITHOUT_ROWID: Final = ("attempt",)


def create_sqlite() -> list[str]:
    """Return the statements that create the tables and their indexes in an empty SQLite file."""
    created = [
        f"CREATE TABLE {name} ({columns}){' WITHOUT ROWID' if name in _WITHOUT_ROWID else ''}"
        for name, columns in _columns()
    ]
    return created + [for_sqlite(index).sql for index in _INDEXES]


def create_postgresql() -> list[str]:
    """Return the statements that create the tables and their indexes in an empty PostgreSQL database."""
    created = [
        f"CREATE TABLE {name} ({_TYPE.sub(lambda found: _POSTGRESQL_TYPES[found[0]], columns)})"
        for name, columns in _columns()
    ]
    return created + list(_INDEXES)


def _columns() -> Iterator[tuple[str, str]]:
    """Yield the names of the tables and their columns without comments, which SQLite would store."""
    return ((name, _COMMENT.sub("", columns)) for name, columns in TABLES.items())
