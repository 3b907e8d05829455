"""Test the schema: created directly, or upgraded by migrations."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from docferry.errors import StateError
from docferry.store import postgresql, schema
from postgresql_server import PostgresqlServer


def revision(path: Path) -> str | None:
    with sqlite3.connect(path) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone() if tables else None
    connection.close()
    return found[0] if found else None


def test_a_fresh_database_gets_the_newest_schema_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "per%cent.db"
    schema.prepare(path)
    before = path.read_bytes()
    schema.prepare(path)
    assert revision(path) == schema.HEAD
    assert path.read_bytes() == before


def test_head_is_the_newest_migration() -> None:
    sources = [file.read_text() for file in (schema.migrations() / "versions").glob("*.py")]
    known = {found for text in sources for found in re.findall(r'^revision = "(.+)"', text, re.M)}
    followed = {found for text in sources for found in re.findall(r'^down_revision = "(.+)"', text, re.M)}
    assert known - followed == {schema.HEAD}
    assert known == schema.KNOWN


def test_a_fresh_database_equals_a_migrated_one(tmp_path: Path) -> None:
    """Tables, columns, defaults, indexes and their conditions are equal word for word."""
    fresh, grown = tmp_path / "fresh.db", tmp_path / "grown.db"
    schema.prepare(fresh)
    schema.migrate(grown)
    assert made(fresh) == made(grown)
    assert {("table", "transfer"), ("index", "transfer_dedupe_key")} <= made(fresh).keys()


def made(path: Path) -> dict[tuple[str, str], object]:
    """Return everything in a database apart from its rows."""
    with closing(sqlite3.connect(path)) as connection:
        found: dict[tuple[str, str], object] = {
            (kind, name): sql and " ".join(sql.replace("(", "( ").replace('"', "").split())
            for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master")
        }
        for kind, name in list(found):
            if kind == "table":
                found["columns", name] = connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
        return found | {("revision", ""): connection.execute("SELECT * FROM alembic_version").fetchall()}


def test_a_fresh_postgresql_database_equals_a_migrated_one(postgresql_server: PostgresqlServer) -> None:
    fresh, grown = postgresql_server.new_database(), postgresql_server.new_database()
    postgresql.prepare(fresh, "h1")
    migrate_server(grown, schema.HEAD)
    assert made_on_server(fresh) == made_on_server(grown)
    assert any("sha256(folder)" in text for _, _, text in made_on_server(fresh)["indexes"])


def test_a_postgresql_database_of_the_first_schema_keeps_its_rows(postgresql_server: PostgresqlServer) -> None:
    url = postgresql_server.new_database()
    migrate_server(url, "0001")
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO transfer (uid, mapping, lane, remote, remote_name, once, size, state, lease, tries,"
            " generation, created, due_since, next_attempt, updated)"
            " VALUES ('a', 'm', 'l', 'codat', 'n', 'o', 1, 'waiting', 0, 0, 0, 1, 1, 1, 1)"
        )
    postgresql.prepare(url, "h1")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT uid, dedupe_key, size FROM transfer").fetchall() == [("a", "o", 1)]
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.HEAD,)]


def migrate_server(url: str, revision: str) -> None:
    with postgresql.engine(url).connect() as connection:
        connection.exec_driver_sql("BEGIN")
        schema.upgrade(connection, revision)
        connection.exec_driver_sql("COMMIT")


def made_on_server(url: str) -> dict[str, list[tuple[str, ...]]]:
    """Return columns, indexes and constraints of a PostgreSQL database."""
    with psycopg.connect(url) as connection:
        return {
            "columns": connection.execute(
                "SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default"
                " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
            ).fetchall(),
            "indexes": connection.execute(
                "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2"
            ).fetchall(),
            "constraints": connection.execute(
                "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE connamespace = 'public'::regnamespace AND contype = 'p' ORDER BY 1, 2"
            ).fetchall(),
        }


def test_a_database_from_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"
    schema.prepare(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StateError, match=r"newer docferry.*9999"):
        schema.prepare(path)


def test_a_damaged_name_in_the_schema_is_reported_as_damage(tmp_path: Path) -> None:
    """SQLite quotes the name in its error, which is no UTF-8 then."""
    path = tmp_path / "docferry.db"
    schema.prepare(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    path.write_bytes(path.read_bytes().replace(b"CREATE INDEX transfer_held", b"CREATE INDEX\xc1transfer_held"))
    with pytest.raises(StateError, match="sync --adopt"):
        schema.check_integrity(path)
    with pytest.raises(StateError, match="sync --adopt"):
        schema.prepare(path)


def test_a_database_of_the_first_schema_keeps_its_rows(tmp_path: Path) -> None:
    """A gone transfer gives up its key, which another transfer may have taken already."""
    path = tmp_path / "docferry.db"
    schema.migrate(path, "0001")
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO transfer (uid, mapping, lane, remote, remote_name, once, size, state, lease, tries,"
            " generation, created, due_since, next_attempt, updated)"
            " VALUES (?, 'm', 'l', 'codat', 'n', 'o', 1, ?, 0, 0, 0, 1, 1, 1, 1)",
            [("a", "gone"), ("b", "gone"), ("c", "waiting")],
        )
    schema.prepare(path)
    assert revision(path) == schema.HEAD
    found = connection.execute("SELECT uid, dedupe_key, fingerprint, md5 FROM transfer").fetchall()
    connection.close()
    assert found == [("a", "gone:1", None, None), ("b", "gone:2", None, None), ("c", "o", None, None)]


def test_transfers_to_wootiv_get_the_key_of_their_object(tmp_path: Path) -> None:
    """Of two versions, the one in the file represents the object. Keys of other versions stay."""
    path = tmp_path / "docferry.db"
    schema.migrate(path, "0008")
    transfers = [
        (1, "wootiv", "A\u0308.pdf", "sha1"),
        (2, "wootiv", "a\u0308.pdf", "sha2"),
        (3, "wootiv", "b.pdf", "name:b.pdf"),
        (4, "wootiv", "b.pdf", "sha4"),
        (5, "wootiv", "c.pdf", "gone:5"),
        (6, "wootiv", "d.pdf", "sha6"),
        (7, "wootiv", "d.pdf", "object:d.pdf"),
        (8, "codat", "e.pdf", "sha8"),
    ]
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            "INSERT INTO transfer (id, uid, mapping, lane, remote, remote_name, dedupe_key, size, state, lease, tries,"
            " key_version, created, due_since, next_attempt, updated)"
            " VALUES (?, 'u', 'm', 'l', ?, ?, ?, 1, 'sent', 0, 0, 0, 1, 1, 1, 1)",
            transfers,
        )
        connection.execute(
            "INSERT INTO document (mapping, folder, name, size, mtime_ns, ctime_ns, transfer_id, present, first_seen,"
            " updated) VALUES ('m', x'', x'61', 1, 1, 1, 1, true, 1, 1)"
        )
        connection.commit()
        schema.prepare(path)
        found = connection.execute("SELECT dedupe_key FROM transfer ORDER BY id").fetchall()
    assert [key for (key,) in found] == [
        "object:\u00e4.pdf",
        "superseded:2",
        "superseded:3",
        "object:b.pdf",
        "gone:5",
        "superseded:6",
        "object:d.pdf",
        "sha8",
    ]


KILLED = """
import os, shutil, signal, sqlite3, sys
from pathlib import Path
from docferry.store import schema, tables
import alembic.command, alembic.config

step = limit = 0
def before(statement):
    global step
    step += 1
    if step == limit:
        os.kill(os.getpid(), signal.SIGKILL)

def connect(*args, **options):
    connection = open_database(*args, **options)
    connection.set_trace_callback(before)
    return connection

open_database = sqlite3.dbapi2.connect
sqlite3.connect = sqlite3.dbapi2.connect = connect

older = Path(sys.argv[1]) / "older.db"
if sys.argv[2]:
    schema.migrate(older, sys.argv[2])
for number in range(1, 100):
    path = Path(sys.argv[1]) / f"{number}.db"
    if sys.argv[2]:
        shutil.copy(older, path)
    limit, step = number, 0
    child = os.fork()
    if not child:
        schema.prepare(path)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(number)
        break
"""


@pytest.mark.parametrize(("before", "most"), [("", 10), ("0001", 5)], ids=["fresh", "first_schema"])
def test_a_killed_upgrade_leaves_the_old_or_the_new_schema(tmp_path: Path, before: str, most: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), before], capture_output=True, text=True, timeout=110, check=True
    )
    steps = int(done.stdout)
    assert steps > most
    new = made(tmp_path / f"{steps}.db")
    for step in range(1, steps):
        path = tmp_path / f"{step}.db"
        assert revision(path) == (before or None)
        schema.prepare(path)
        assert made(path) == new


STARTS = """
import sys, time
from pathlib import Path
from docferry.store import schema, tables
import alembic.command, alembic.config
began = float(sys.stdin.readline())
for number, path in enumerate(sys.argv[1:]):
    while time.monotonic() < began + number * 0.03:
        pass  # a sleep would not let all start at the same moment
    schema.prepare(Path(path))
"""


@pytest.mark.parametrize(("before", "databases"), [("", 50), ("0001", 1)], ids=["fresh", "first_schema"])
def test_programs_that_start_together_make_one_database(tmp_path: Path, before: str, databases: int) -> None:
    paths = [tmp_path / f"{number}.db" for number in range(databases)]
    for path in paths if before else ():
        schema.migrate(path, before)
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", STARTS, *map(str, paths)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    began = time.monotonic() + 1  # time for their imports
    for program in programs:
        assert program.stdin is not None
        program.stdin.write(f"{began}\n")
        program.stdin.flush()
    errors = [program.communicate(timeout=60)[1] for program in programs]
    assert [program.returncode for program in programs] == [0] * 4, errors
    assert {revision(path) for path in paths} == {schema.HEAD}
