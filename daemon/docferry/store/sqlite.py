"""Open the SQLite database file, check its state on the disk, and interpret its errors."""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from pathlib import Path

from docferry.errors import DatabaseBusy, DatabaseLost, StateError
from docferry.store.connection import ThreadConnection

#: Longest wait of a statement for the lock of another program, seconds.
BUSY_TIMEOUT_S = 30.0
#: The size of the write-ahead log that raises an alarm, bytes: a reader of an old snapshot prevents the checkpoint.
LOG_ALARM_BYTES = 64 * 1024 * 1024
#: Granularity of file times, seconds.
FILE_TIME_TICK_S = 0.1
#: Page cache of the writer and of each reader, KiB. Digests are spread over an index of millions of rows.
WRITER_CACHE_KIB, READER_CACHE_KIB = 8_000, 2_000
#: Pages in the write-ahead log, 16 MiB, after which a commit copies them into the database. A page that changes with
#: most commits is copied once. No other thread may do it: SQLite before 3.51.3 loses commits then (WAL reset).
CHECKPOINT_PAGES = 4_000
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "temp_store=MEMORY",
    f"wal_autocheckpoint={CHECKPOINT_PAGES}",
)
#: Error texts that may not occur again: a full disk, a lock, an I/O error.
_TRANSIENT = ("full", "locked", "busy", "disk i/o", "unable to open")
#: Error texts of a damaged file.
_BROKEN = ("malformed", "not a database")
_READ_ONLY = "readonly database"


class SqliteFile:
    """Access one SQLite database file."""

    replacements = 0  # SQLite cannot continue with a replaced file, so the process ends
    adopt_before = 0.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _identity(path)

    def connection(self, *, writer: bool) -> ThreadConnection:
        """Return an unopened connection. A writer takes the write lock when its transaction begins."""
        connect = partial(_connect, self.path, WRITER_CACHE_KIB if writer else READER_CACHE_KIB)
        return ThreadConnection(connect, "BEGIN IMMEDIATE" if writer else "BEGIN", sqlite3.Error)

    def assert_unchanged(self) -> None:
        """Raise DatabaseLost if the path no longer leads to the opened file, which SQLite does not notice."""
        try:
            found = _identity(self.path)
        except FileNotFoundError:
            found = None
        if found != self._identity:
            raise DatabaseLost(
                f"{self.path} was {'removed' if found is None else 'replaced'} while docferry was using it; docferry "
                "stops so that nothing is sent twice. Put the file back, or run `docferry sync --adopt`"
            )

    def stamp(self) -> tuple[int, int] | None:
        """Return time and size of the write-ahead log, or None while a later commit could get the same time."""
        try:
            log = self._log.stat()
        except FileNotFoundError:
            return None
        return None if abs(time.time() - log.st_mtime) < FILE_TIME_TICK_S else (log.st_mtime_ns, log.st_size)

    def alarm(self) -> str | None:
        """Return a message if the write-ahead log grows without limit."""
        try:
            size = self._log.stat().st_size
        except FileNotFoundError:
            return None
        if size < LOG_ALARM_BYTES:
            return None
        return (
            f"{self._log} has grown to {size >> 20} MiB because a program has been reading the database for too long; "
            f"end that program (`fuser -v {self.path}` names it)"
        )

    def is_transient(self, error: BaseException) -> bool:
        """Return whether waiting may resolve `error`."""
        return is_transient(error)

    def explain(self, error: Exception) -> Exception:
        """Return an error with the fix for a damaged file, and any other error unchanged."""
        if isinstance(error, sqlite3.DatabaseError) and any(sign in str(error) for sign in _BROKEN):
            return StateError(broken(self.path, error))
        if isinstance(error, sqlite3.OperationalError) and _READ_ONLY in str(error):
            return StateError(read_only(self.path, error))
        return error

    def busy(self, error: BaseException) -> DatabaseBusy:
        """Return the error for a writer whose time limit has passed."""
        return DatabaseBusy(unwritable(self.path, error))

    @property
    def _log(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")


def _connect(path: Path, cache_kib: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, cached_statements=128)
    try:
        for pragma in (*_PRAGMAS, f"cache_size=-{cache_kib}"):
            connection.execute(f"PRAGMA {pragma}")
    except Exception:  # of any kind: the file stays open otherwise
        connection.close()
        raise
    return connection


def is_transient(error: BaseException) -> bool:
    """Return whether waiting may resolve an error of SQLite."""
    text = str(error).lower()
    return isinstance(error, sqlite3.OperationalError) and any(sign in text for sign in _TRANSIENT)


def explain(database: Path, error: sqlite3.DatabaseError | UnicodeDecodeError) -> StateError:
    """Return the error that asks the operator to wait or to recover."""
    if is_transient(error):
        return DatabaseBusy(unwritable(database, error))
    return StateError((read_only if _READ_ONLY in str(error) else broken)(database, error))


def unwritable(database: Path, error: object) -> str:
    """Return the message for an intact database that cannot be written now."""
    return (
        f"{database} cannot be written now ({error}); nothing is lost. Free disk space or end the program that locks "
        "the file, then run the command again"
    )


def read_only(database: Path, error: object) -> str:
    """Return the message for a database on a read-only file system, or one of another user."""
    return (
        f"{database} cannot be written ({error}); nothing is lost. Mount its file system writable, or run docferry as "
        "the user that owns the file"
    )


def broken(database: Path, error: object) -> str:
    """Return the message for a database that SQLite cannot read."""
    return (
        f"{database} cannot be used ({error}); nothing was sent. Move it away and run `docferry sync --adopt`: "
        "it rebuilds the queue from the folders and from what the remotes have"
    )


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino
