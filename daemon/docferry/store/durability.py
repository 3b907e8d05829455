"""Read the settings of a PostgreSQL server that decide whether a commit can be lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from docferry.errors import StateError
from docferry.store.opening import open_server

_SETTINGS: Final = (
    "SELECT name, setting FROM pg_settings WHERE name IN "
    "('server_version', 'fsync', 'full_page_writes', 'synchronous_commit', 'synchronous_standby_names')"
)
# Every role may count the rows; their contents need pg_monitor.
_STANDBYS: Final = "SELECT count(*) FROM pg_stat_replication"


class Durability(Struct, frozen=True):
    """Hold the settings of a server, and the number of connected standbys."""

    settings: Mapping[str, str]  # by name, as in pg_settings
    standbys: int


def read_durability(url: str) -> Durability:
    """Return the durability settings of the server at `url`, without changes there.

    Raises StateError if it cannot be used.
    """
    from sqlalchemy.exc import DBAPIError  # imported here: a SQLite queue needs no SQLAlchemy

    server = open_server(url)
    try:
        with server.engine.connect() as connection:
            settings = {row[0]: row[1] for row in connection.exec_driver_sql(_SETTINGS)}
            return Durability(settings, connection.exec_driver_sql(_STANDBYS).scalar_one())
    except DBAPIError as error:
        cause = error.orig if isinstance(error.orig, Exception) else error
        explained = server.explain(cause)
        raise (explained if isinstance(explained, StateError) else server.busy(cause)) from error
