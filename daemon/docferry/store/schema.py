"""Brings a database to the schema this program knows, in one transaction, or says why it can't."""

from __future__ import annotations

import platform
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.exc import SQLAlchemyError

from docferry.errors import DatabaseBusy, StateError
from docferry.store.connection import BUSY_TIMEOUT

#: The newest revision in migrations/; a test holds it against the folder.
HEAD: Final = "0004"
KNOWN: Final = frozenset({"0001", "0002", "0003", HEAD})
#: A database up to this size is read through before it is believed, bytes; a larger one would keep a start waiting.
READ_THROUGH: Final = 64 * 1024 * 1024
#: Up to this size its indexes are held against its rows too: a broken one would let a document be queued twice.
COMPARED: Final = 16 * 1024 * 1024
#: Signs that waiting may cure an error: a full disk, a lock that stays, an I/O error of the moment.
_PASSING: Final = ("full", "locked", "busy", "disk i/o", "unable to open")
_IS_MARKED: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"


def prepare(database: Path) -> None:
    """Create or upgrade `database`. StateError: it comes from a newer docferry, or it is broken."""
    found = _revision(database)
    if found == HEAD:
        return
    if found is not None and found not in KNOWN:
        raise StateError(
            f"{database} was written by a newer docferry (schema {found}, this one knows {HEAD}); "
            "install that version again, or restore the copy from before the upgrade"
        )
    if found is None:
        _make(database)
    else:
        migrate(database)


def migrate(database: Path, revision: str = HEAD) -> None:
    """Every step up to `revision`, from nothing too."""
    # Imported here: alembic costs a quarter of a second that only an upgrade has to pay.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    with _transaction(database) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def _make(database: Path) -> None:
    """A fresh one at once as all the steps would make it; a test holds that both ways are one."""
    from docferry.store.tables import metadata  # only the first start needs them

    with _transaction(database) as connection:
        if connection.exec_driver_sql(_IS_MARKED).first() is None:  # else another program was here first
            metadata.create_all(connection, checkfirst=False)
            connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (HEAD,))
            connection.exec_driver_sql("INSERT INTO receipt_log VALUES (?, 0, x'', 0, 0, 0, 0, 0)", (new_origin(),))


def new_origin() -> str:
    """Return the name of a new log of receipts: `docferry/HOST/ID`, without spaces and plus signs (C2SP)."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()) or "localhost"
    return f"docferry/{host}/{secrets.token_hex(8)}"


def read_through(database: Path) -> None:
    """StateError when anything in `database` is not what SQLite wrote: a document's state may be wrong then."""
    size = database.stat().st_size if database.exists() else 0
    if not 0 < size <= READ_THROUGH:
        return
    check = "integrity_check" if size <= COMPARED else "quick_check"
    try:
        connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT)
        try:
            (found,) = connection.execute(f"PRAGMA {check}(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise meant(database, error) from error
    if found != "ok":
        raise StateError(broken(database, found))


def passes(error: object) -> bool:
    """Whether waiting may cure it."""
    text = str(error).lower()
    return any(sign in text for sign in _PASSING)


def meant(database: Path, error: sqlite3.DatabaseError) -> StateError:
    """The error for the person who must act: wait, or recover."""
    if isinstance(error, sqlite3.OperationalError) and passes(error):
        return DatabaseBusy(unwritable(database, error))
    return StateError(broken(database, error))


def unwritable(database: Path, error: object) -> str:
    """The sentence for a database that is sound and can't be written now."""
    return f"{database} cannot be written now ({error}); nothing is lost. Make room or end what locks it; run it again"


def _revision(database: Path) -> str | None:
    try:
        connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT)
        try:
            _keep_a_log(connection)
            row = connection.execute(_IS_MARKED).fetchone()
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if row else None
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise meant(database, error) from error
    return row[0] if row else None


def _keep_a_log(connection: sqlite3.Connection) -> None:
    """Let it write ahead. Of programs that start on a fresh database together SQLite refuses all but one at once,
    without the wait that it grants elsewhere."""
    end = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)  # nothing tells when the other one is done, which takes it milliseconds
        else:
            return


def broken(database: Path, error: object) -> str:
    """The sentence for a database that SQLite cannot read."""
    return (
        f"{database} cannot be used ({error}); nothing was sent. Move it away and run `docferry sync --adopt`: "
        "it rebuilds the queue from the folders and from what the remotes have"
    )


@contextmanager
def _transaction(database: Path) -> Iterator[Connection]:
    """One transaction for all: killed in between, the old schema is still there."""
    engine = create_engine(
        # Put together by hand, a path with a % in it would be another path.
        URL.create("sqlite", database=str(database)),
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT},
    )
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.exec_driver_sql("COMMIT")
    except SQLAlchemyError as error:
        raise StateError(f"{database} could not be made or upgraded: {error}") from error
    finally:
        engine.dispose()


def migrations() -> Path:
    """The folder of migrations: beside the package in a wheel, two floors up in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_migrations", package.parent.parent / "migrations"):
        if folder.is_dir():
            return folder
    raise StateError("this installation of docferry has no migrations; install it again")
