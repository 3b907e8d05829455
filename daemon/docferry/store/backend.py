"""Define what differs between the two databases."""

from __future__ import annotations

from typing import Protocol

from docferry.errors import DatabaseBusy
from docferry.store.connection import ThreadConnection


class Backend(Protocol):
    """Define the differences between the databases: `sqlite.SqliteFile` and `postgresql.PostgresServer`."""

    #: The number of times that another server replaced this one.
    replacements: int
    #: A lost queue may have sent files older than this, wall seconds; 0.0: there is none.
    adopt_before: float

    def connection(self, *, writer: bool) -> ThreadConnection:
        """Return an unopened connection."""

    def assert_unchanged(self) -> None:
        """Raise DatabaseLost if the database is no longer the one that was opened."""

    def stamp(self) -> tuple[int, int] | None:
        """Return a value that changes with every commit of another process, or None if there is no such value."""

    def alarm(self) -> str | None:
        """Return a message about a condition that an operator must know, or None."""

    def is_transient(self, error: BaseException) -> bool:
        """Return whether waiting may resolve an error of the driver."""

    def explain(self, error: Exception) -> Exception:
        """Return an error with a fix, or the same error."""

    def busy(self, error: BaseException) -> DatabaseBusy:
        """Return the error for a caller whose time limit has passed."""
