"""Open a PostgreSQL database, and interpret its errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import conninfo
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from docferry import logs
from docferry.errors import DatabaseBusy, StateError
from docferry.store import failover, schema
from docferry.store.connection import ThreadConnection, Transaction, first_line
from docferry.store.pipeline import UNPREPARED, PipelinedConnection, adapt
from docferry.store.tables import create_postgresql

log = logs.get("database")
# The error already reports a lost connection; psycopg also warns about the open pipeline.
logging.getLogger("psycopg").setLevel(logging.ERROR)

#: The time limit of a connection attempt, seconds.
CONNECT_TIMEOUT_S = 10
#: The time after which the server ends a transaction without statements, milliseconds: a stopped host must not keep
#: locks.
IDLE_TIMEOUT_MS = 5_000
#: The longest wait of a statement for locks of other hosts, milliseconds.
LOCK_TIMEOUT_MS = 30_000
#: Key of the advisory lock that every transaction takes before it writes, like SQLite's BEGIN IMMEDIATE. No transaction
#: waits for any other lock, so no order of statements can cause a deadlock. A row or table must never be locked before
#: it. "docferry" in hex, 8 bytes.
WRITER_LOCK = 0x646F636665727279

#: Settings of a writing transaction. Its statements are prepared while the tables may still be empty. So every
#: statement must use an index, and JIT compilation is off. A bitmap scan reads the rows of all index entries since the
#: last vacuum each time. An index scan marks dead entries once.
_WRITER_SETTINGS = {
    "idle_in_transaction_session_timeout": f"{IDLE_TIMEOUT_MS}",
    "lock_timeout": f"{LOCK_TIMEOUT_MS}",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_SET_LOCAL = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _WRITER_SETTINGS.items())
# Without it, a crash of the server silently loses receipts. Other levels wait for more standbys, or for the disk.
_DURABLE = "set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), true)"
_BEGIN_WRITE = ("BEGIN", f"SELECT {_SET_LOCAL}, {_DURABLE}, pg_advisory_xact_lock({WRITER_LOCK})")
_BEGIN_READ = ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",)

#: Codes of errors that may not occur again: no connection (08), no resources (53), an operator or a restart (57). Also
#: a conflict with another transaction (40, 55P03), a standby before its promotion (25006, 55000), a transaction that
#: was idle for too long (25P03), an I/O error (58), and another session than that of the statements.
_TRANSIENT = ("08", "53", "57", "40", "55P03", "25006", "55000", "25P03", "58", *UNPREPARED)
#: Codes of errors that need a person: a wrong password, database or permission.
_REFUSED = ("28", "3D", "42501")
#: Codes of errors that a person may fix while docferry waits: a restore in progress (42P01, 3F), damage (XX).
_REPAIRABLE = (*_REFUSED, "42P01", "3F", "XX")

#: Parameters of libpq; database_url may set others. A vanished server is noticed within 11 s.
_DEFAULTS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "docferry",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


def prepare(url: str, host: str) -> PostgresServer:
    """Return the server at `url` after creating or upgrading its schema for `host`.

    Raises StateError if that is impossible.
    """
    server = PostgresServer(url)
    try:
        with server.engine.connect() as connection:
            for statement in _BEGIN_WRITE:  # of several processes that start together, one does this
                connection.exec_driver_sql(statement)
            _prepare_schema(connection, server.name, host)
            connection.exec_driver_sql("COMMIT")
            server.choose_identity(connection)
    except DBAPIError as error:
        cause = error.orig if isinstance(error.orig, Exception) else error
        if is_transient(cause):
            raise server.busy(cause) from error
        explained = server.explain(cause)
        if isinstance(explained, StateError):
            raise explained from error
        raise StateError(f"{server.name} could not be created or upgraded: {cause}") from error
    return server


def _prepare_schema(connection: Connection, name: str, host: str) -> None:
    """Create or upgrade the schema of the database `name`, and give `host` its own log of receipts."""
    if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar_one() is None:
        for statement in (*create_postgresql(), schema.SET_REVISION):
            connection.exec_driver_sql(statement)
    else:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        schema.assert_known(found, name)
        if found != schema.HEAD:
            schema.upgrade(connection)
    if connection.execute(text("SELECT 1 FROM receipt_log WHERE host = :host"), {"host": host}).first() is None:
        log_of_host = {"origin": schema.new_origin(host), "host": host, "frontier": b""}
        connection.execute(text(schema.ADD_LOG), log_of_host)


def lock_writers(connection: Connection) -> None:
    """Block writes of all hosts until the transaction of `connection` ends."""
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")


class PostgresServer:
    """Access one PostgreSQL database by its URL. The URL may name several servers, of which one is the primary."""

    def __init__(self, url: str) -> None:
        self.name = describe(url)
        self.engine = engine(url)
        self.connect = connector(url)
        self.replacements = 0
        self.adopt_before = 0.0
        self._identity_key, self._identity_query = "", ""
        self._identity: str | None = None  # the server's identity, as last read by this process

    def connection(self, *, writer: bool) -> ThreadConnection:
        """Return an unopened connection."""
        if writer:
            return PipelinedConnection(self.connect, (*_BEGIN_WRITE, self._identity_query), self)
        return PipelinedConnection(self.connect, _BEGIN_READ)

    def choose_identity(self, connection: Connection) -> None:
        """Find an expression for the server's identity that the role may execute."""
        for key, expression in failover.IDENTITIES:
            query = failover.identity_query(key, expression)
            try:
                connection.exec_driver_sql(query)
            except DBAPIError as error:
                if is_transient(error.orig):
                    raise
                refused = error
            else:
                self._identity_key, self._identity_query = key, query
                return
        raise refused

    def is_same(self, found: Sequence[Any]) -> bool:
        """Return whether the server is that of the queue, by the row of the identity query.

        Each writing transaction runs this query: pgbouncer may switch to another server without a new connection.
        """
        identity, stored, adopt_before = found
        if not identity == self._identity == stored:
            return False
        self.adopt_before = float(adopt_before or 0.0)
        return True

    def accept(self, transaction: Transaction, found: Sequence[Any]) -> None:
        """Record another server in the queue before the work of a transaction."""
        identity, stored, _ = found
        if identity != self._identity:
            self.replacements += self._identity is not None
            self._identity = identity
        if identity != stored:
            doubtful = failover.record(transaction, self._identity_key, identity)
            if doubtful is not None:
                message = "the database server was replaced or restored; what it may have sent is looked up first"
                log.warning("database_replaced", message, doubtful=doubtful)
        (adopt_before,) = transaction.fetch_one(failover.ADOPT_BEFORE)
        self.adopt_before = float(adopt_before or 0.0)

    def assert_unchanged(self) -> None:
        """Do nothing: `is_same` detects a replaced server."""

    def stamp(self) -> None:
        """Return None: commits of other hosts are not visible in a local value."""

    def alarm(self) -> None:
        """Return None: the server's operator monitors its size."""

    def is_transient(self, error: BaseException) -> bool:
        """Return whether waiting may resolve an error of a database that worked before.

        A changed password or permission counts, because a person may change it back.
        """
        if not isinstance(error, psycopg.Error):
            return False
        return is_transient(error) or _is_refused(error) or (error.sqlstate or "").startswith(_REPAIRABLE)

    def explain(self, error: Exception) -> Exception:
        """Return a StateError with the fix for a refused login, and any other error unchanged."""
        if isinstance(error, psycopg.Error) and _is_refused(error):
            return StateError(f"{self.name} refuses docferry ({first_line(error)}); correct database_url or its user")
        return error

    def busy(self, error: BaseException) -> DatabaseBusy:
        """Return the error for a caller whose time limit has passed."""
        return DatabaseBusy(
            f"{self.name} cannot be used now ({first_line(error)}); nothing is lost. Start the server or restore "
            "the network, then run the command again"
        )


def engine(url: str) -> Engine:
    """Return an engine for a URL in libpq's format. The engine keeps no connections.

    Raises StateError if the URL is malformed.
    """
    connect = connector(url)
    return create_engine("postgresql+psycopg://", creator=connect, use_native_hstore=False, poolclass=NullPool)


def connector(url: str) -> Callable[[], psycopg.Connection[Any]]:
    """Return a function that connects to a URL in libpq's format.

    pgbouncer may share connections by transaction: session settings are not used, nor prepared statements behind a
    pooler (see `pipeline`). Of several servers in the URL, the one that accepts writes is used. Raises StateError if
    the URL is malformed.
    """
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.Error as error:
        raise StateError(f"database_url is malformed ({first_line(error)}); see docs/scale.md for examples") from error
    several = {"target_session_attrs": "read-write"} if "," in str(given.get("host", "")) else {}
    parameters: dict[str, Any] = {**_DEFAULTS, **several, **given}
    return lambda: adapt(psycopg.connect(**parameters, autocommit=True, prepare_threshold=None))


def is_transient(error: BaseException | None) -> bool:
    """Return whether waiting may resolve an error of PostgreSQL. A lost connection has no code."""
    if not isinstance(error, psycopg.Error):
        return False
    code = error.sqlstate
    if code is None:
        return isinstance(error, psycopg.OperationalError) and not _is_refused(error)
    return code.startswith(_TRANSIENT)


def describe(url: str) -> str:
    """Return the database's URL without its passwords."""
    shown = re.sub(r"(//[^:/@]*):[^/]*@", r"\1:***@", url)
    return re.sub(r"(?<=[?&])(\w*password)=[^&]*", r"\1=***", shown)


def _is_refused(error: psycopg.Error) -> bool:
    code = error.sqlstate
    if code is None:  # a failed connection attempt: libpq gives only a text
        return any(
            sign in str(error) for sign in ("password authentication failed", "does not exist", "no pg_hba.conf")
        )
    return code.startswith(_REFUSED)
