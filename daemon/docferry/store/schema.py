"""Create and upgrade a SQLite database in one transaction, or explain why this is impossible."""

from __future__ import annotations

import platform
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from docferry.errors import StateError
from docferry.store.sqlite import BUSY_TIMEOUT_S, broken, explain
from docferry.store.state_dir import create_file, usable

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: The newest revision in migrations/, and all that this program can upgrade. A test compares both with the folder.
HEAD: Final = "0010"
KNOWN: Final = frozenset({"0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", HEAD})
#: Record the revision of a new database.
SET_REVISION: Final = f"INSERT INTO alembic_version VALUES ('{HEAD}')"  # noqa: S608 - a constant
#: The largest database that is read completely at a start, bytes.
MAX_CHECKED_BYTES: Final = 64 * 1024 * 1024
#: The largest database whose indexes are compared with its rows, bytes.
MAX_COMPARED_BYTES: Final = 16 * 1024 * 1024
_HAS_REVISION: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
#: Add a log of receipts: `new_origin`, the right edge of an empty tree, and its host or None.
ADD_LOG: Final = """
INSERT INTO receipt_log (origin, size, frontier, transfers_done, transfers_old, downloads_done, downloads_old, erased,
  number, host)
SELECT :origin, 0, :frontier, 0, 0, 0, 0, 0, coalesce(max(number), -1) + 1, :host FROM receipt_log
"""


def prepare(database: Path) -> None:
    """Create or upgrade `database`. Raises StateError if the file is damaged or comes from a newer docferry."""
    with usable(database.parent):
        if not database.exists():
            assert_not_moved(database)
        create_file(database)
    found = _revision(database)
    if found == HEAD:
        return
    assert_known(found, str(database))
    if found is None:
        _create(database)
    else:
        migrate(database)


def moving(database: Path) -> Path:
    """Return the name of a database during its move to PostgreSQL."""
    return database.with_name(f"{database.name}.moving")


def moved(database: Path) -> Path:
    """Return the name of a database after its move to PostgreSQL."""
    return database.with_name(f"{database.name}.moved")


def assert_not_moved(database: Path) -> None:
    """Raise StateError if the queue was moved to PostgreSQL: an empty one would send everything again."""
    if moving(database).exists():
        raise StateError(
            f"the move of {database} to PostgreSQL was interrupted; run `docferry queue move` with the same URL again"
        )
    if moved(database).exists():
        raise StateError(
            f"the queue was moved to PostgreSQL; set database_url, or remove {moved(database)} to begin with an empty "
            "queue, which sends all documents again"
        )


def assert_known(revision: str | None, name: str) -> None:
    """Raise StateError if the database `name` has a schema of a newer docferry."""
    if revision is not None and revision not in KNOWN:
        raise StateError(
            f"{name} was written by a newer docferry (schema {revision}, this one knows {HEAD}); "
            "install that version again, or restore the copy from before the upgrade"
        )


def migrate(database: Path, revision: str = HEAD) -> None:
    """Apply all migrations up to `revision`, also to an empty database."""
    with _transaction(database) as connection:
        upgrade(connection, revision)


def upgrade(connection: Connection, revision: str = HEAD) -> None:
    """Apply all migrations up to `revision` in the transaction of `connection`."""
    # Imported here: Alembic takes a quarter of a second to import, and only an upgrade needs it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _create(database: Path) -> None:
    """Create the newest schema directly; a test compares the result with that of all migrations."""
    from docferry.store.tables import create_sqlite  # only the first start needs the tables

    try:
        with closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute(_HAS_REVISION).fetchone() is None:  # otherwise another program did it first
                for statement in create_sqlite():
                    connection.execute(statement)
                connection.execute(SET_REVISION)
                connection.execute(ADD_LOG, {"origin": new_origin(), "host": None, "frontier": b""})
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StateError(f"{database} could not be created: {error}") from error


def new_origin(host: str = "") -> str:
    """Return the name of a new log of receipts: `docferry/HOST/ID`, without spaces and plus signs (C2SP)."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", host or platform.node()) or "localhost"
    return f"docferry/{host}/{secrets.token_hex(8)}"


def check_integrity(database: Path) -> None:
    """Raise StateError if `database` is damaged, because a document's state may then be wrong."""
    with usable(database.parent):
        size = database.stat().st_size if database.exists() else 0
    if not 0 < size <= MAX_CHECKED_BYTES:
        return
    check = "integrity_check" if size <= MAX_COMPARED_BYTES else "quick_check"
    try:
        connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)
        try:
            (found,) = connection.execute(f"PRAGMA {check}(1)").fetchone()
        finally:
            connection.close()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the text of an error quotes a damaged name
        raise explain(database, error) from error
    if found != "ok":
        raise StateError(broken(database, found))


def _revision(database: Path) -> str | None:
    try:
        connection = sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)
        try:
            _enable_write_ahead_log(connection)
            row = connection.execute(_HAS_REVISION).fetchone()
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if row else None
        finally:
            connection.close()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the text of an error quotes a damaged name
        raise explain(database, error) from error
    return row[0] if row else None


def _enable_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log.

    SQLite applies no busy timeout here: if several programs open a new database, all except one fail at once.
    """
    end = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)  # SQLite reports no event for the other program's switch, which takes milliseconds
        else:
            return


@contextmanager
def _transaction(database: Path) -> Iterator[Connection]:
    """Yield a connection in one transaction, so that a killed upgrade leaves the old schema."""
    # Imported here, because only an upgrade needs it.
    from sqlalchemy import URL, create_engine
    from sqlalchemy.exc import SQLAlchemyError

    engine = create_engine(
        # A hand-made URL would misread a path with a percent sign.
        URL.create("sqlite", database=str(database)),
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_S},
    )
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.exec_driver_sql("COMMIT")
    except SQLAlchemyError as error:
        raise StateError(f"{database} could not be upgraded: {error}") from error
    finally:
        engine.dispose()


def migrations() -> Path:
    """Return the folder of the migrations: inside the package in a wheel, beside `daemon` in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_migrations", package.parent.parent / "migrations"):
        if folder.is_dir():
            return folder
    raise StateError("this installation of docferry has no migrations; install it again")
