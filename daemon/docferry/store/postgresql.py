"""A PostgreSQL database: its connections, and the meaning of its errors."""

from __future__ import annotations

import psycopg
from sqlalchemy import Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import DBAPIError

from docferry.errors import DatabaseBusy, StateError
from docferry.store import schema
from docferry.store.connection import ThreadConnection

#: How long a connection attempt may take, seconds.
CONNECT_TIMEOUT_S = 10
#: The server ends a transaction that sends nothing for so long: a stopped host must not keep its locks. Milliseconds.
IDLE_TIMEOUT_MS = 5_000
#: How long a statement waits for the locks of other hosts, milliseconds.
LOCK_TIMEOUT_MS = 30_000
#: Key of the advisory lock that all writers take, as SQLite's BEGIN IMMEDIATE does. "docferry" in hex, 8 bytes.
WRITER_LOCK = 0x646F636665727279

_LIMITS = (
    f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_TIMEOUT_MS}; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
)
_BEGIN_WRITE = f"BEGIN; {_LIMITS}; SELECT pg_advisory_xact_lock({WRITER_LOCK})"
_BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

#: Codes of errors that a later attempt may not see again: no connection (08), no resources (53), an operator or a
#: restart (57), a conflict with another transaction (40, 55P03), a standby before its promotion (25006), a transaction
#: that was idle for too long (25P03), an I/O error (58).
_TRANSIENT = ("08", "53", "57", "40", "55P03", "25006", "25P03", "58")
#: Codes of errors that need a person: a wrong password, database or permission.
_REFUSED = ("28", "3D", "42501")


def prepare(url: str) -> PostgresServer:
    """Return the server at `url` after creating or upgrading its schema. Raises StateError if that is impossible."""
    server = PostgresServer(url)
    try:
        with server.engine.connect() as connection:
            connection.exec_driver_sql(_BEGIN_WRITE)  # of processes that start together, one does it
            schema.prepare_connection(connection, describe(server.engine))
            connection.exec_driver_sql("COMMIT")
    except DBAPIError as error:
        cause = error.orig if isinstance(error.orig, Exception) else error
        if is_transient(cause):
            raise server.busy(cause) from error
        explained = server.explain(cause)
        if isinstance(explained, StateError):
            raise explained from error
        raise StateError(f"{describe(server.engine)} could not be created or upgraded: {cause}") from error
    return server


class PostgresServer:
    """One PostgreSQL database, found by its URL."""

    def __init__(self, url: str) -> None:
        self.engine = engine(url)

    def connection(self, *, writer: bool) -> ThreadConnection:
        """Return a connection that is not open yet."""
        return ThreadConnection(self.engine, _BEGIN_WRITE if writer else _BEGIN_READ)

    def assert_unchanged(self) -> None:
        """Do nothing: a server that was replaced is noticed by its connections."""

    def stamp(self) -> None:
        """Return None: the commits of other hosts leave no mark here."""

    def alarm(self) -> None:
        """Return None: the server's operator watches its size."""

    def is_transient(self, error: BaseException) -> bool:
        """Return whether waiting may cure `error`."""
        return is_transient(error)

    def explain(self, error: Exception) -> Exception:
        """Return a StateError with the remedy for a refused login, and any other error unchanged."""
        return explain(self.engine, error)

    def busy(self, error: BaseException) -> DatabaseBusy:
        """Return the error for a caller that waited long enough."""
        return DatabaseBusy(unreachable(self.engine, error))


def engine(url: str) -> Engine:
    """Return an engine for a `postgresql://` URL. It keeps no connections.

    Prepared statements and session settings are not used, so that pgbouncer may share connections by transaction.
    """
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        connect_args={
            "autocommit": True,
            "prepare_threshold": None,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "docferry",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
        },
        use_native_hstore=False,
        poolclass=NullPool,
    )


def is_transient(error: BaseException) -> bool:
    """Return whether waiting may cure an error of PostgreSQL. A lost connection has no code."""
    if not isinstance(error, psycopg.Error):
        return False
    code = error.sqlstate
    if code is None:
        return isinstance(error, psycopg.OperationalError) and not _is_refused(error)
    return code.startswith(_TRANSIENT)


def explain(engine: Engine, error: Exception) -> Exception:
    """Return a StateError with the remedy for a refused login, and any other error unchanged."""
    if isinstance(error, psycopg.Error) and _is_refused(error):
        return StateError(
            f"{describe(engine)} refuses docferry ({_first_line(error)}); correct database_url or its user"
        )
    return error


def unreachable(engine: Engine, error: BaseException) -> str:
    """Return the message for a server that cannot be used now."""
    return (
        f"{describe(engine)} cannot be used now ({_first_line(error)}); nothing is lost. Start the server or restore "
        "the network, then run the command again"
    )


def describe(engine: Engine) -> str:
    """Return the database's URL without its password."""
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=True)


def _is_refused(error: psycopg.Error) -> bool:
    code = error.sqlstate
    if code is None:  # a failed connection attempt: libpq gives a text alone
        return any(
            sign in str(error) for sign in ("password authentication failed", "does not exist", "no pg_hba.conf")
        )
    return code.startswith(_REFUSED)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
