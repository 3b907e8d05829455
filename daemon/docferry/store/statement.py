"""Define statements, and translate them for SQLite.

Statements are written once, in PostgreSQL's dialect, with parameters as `:name`. For psycopg SQLAlchemy translates
them, see `pipeline`. With a SQLite queue only an upgrade imports SQLAlchemy, which took a third of the start.
"""

from __future__ import annotations

import re

from msgspec import Struct

_ANY = re.compile(r"= ANY\(:(\w+)\)")
_ALL = re.compile(r"<> ALL\(:(\w+)\)")
_SHA256 = re.compile(r"sha256\(([\w.:]+)\)")
_POSITION = re.compile(r"position\(:(\w+) IN ([\w.]+)\)")


class Sql(str):
    """Hold the text of a statement. Values are parameters, never a part of the text."""

    __slots__ = ()


class ByDialect(Struct, frozen=True, eq=False):
    """Hold the variants of a statement for each database."""

    sqlite: Sql
    postgresql: Sql


Statement = Sql | ByDialect


class Translation(Struct, frozen=True):
    """Hold a statement translated for one database, and the names of its parameters that are JSON arrays."""

    sql: str
    lists: tuple[str, ...] = ()


def for_sqlite(statement: Statement) -> Translation:
    """Return a statement in SQLite's dialect.

    SQLite has no arrays: `= ANY(:ids)` and `<> ALL(:ids)` read a JSON array there. `position(:part IN column)` becomes
    `instr(column, :part)`. Versions before 3.39 write `IS DISTINCT FROM` as `IS NOT`. SQLite indexes paths themselves,
    so `sha256(folder)` becomes `folder`.
    """
    sql = statement.sqlite if isinstance(statement, ByDialect) else statement
    lists = (*_ANY.findall(sql), *_ALL.findall(sql))
    translated = _ANY.sub(r"IN (SELECT value FROM json_each(:\1))", sql)
    translated = _ALL.sub(r"NOT IN (SELECT value FROM json_each(:\1))", translated)
    translated = _SHA256.sub(r"\1", translated)
    translated = _POSITION.sub(r"instr(\2, :\1)", translated)
    return Translation(translated.replace("IS DISTINCT FROM", "IS NOT"), lists)
