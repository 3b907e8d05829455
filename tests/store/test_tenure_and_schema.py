"""Who lives, who runs alone, whose state folder it is; and how a database comes to its schema."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from docferry.errors import AlreadyRunning, StateError
from docferry.store import schema, tenure

HOLDS = """
import sys
from pathlib import Path
from docferry.store import tenure
folder = Path(sys.argv[1])
with tenure.owner(folder) as name, tenure.sole(folder):
    print(name, flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> tuple[subprocess.Popen[str], str]:
    program = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    return program, program.stdout.readline().strip()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    tenure.prepare_state_dir(folder)
    return folder


def test_a_second_run_is_refused_with_the_pid_until_the_first_is_dead(state: Path) -> None:
    program, name = holder(state)
    try:
        with pytest.raises(AlreadyRunning, match=f"pid {program.pid}"), tenure.sole(state):
            pass
        assert tenure.running(state) == program.pid
        assert tenure.dead(state, {name}, "me") == set()
    finally:
        program.kill()
        program.communicate()
    assert tenure.running(state) is None
    assert tenure.dead(state, {name, "me"}, "me") == {name}
    with tenure.sole(state):
        assert tenure.running(state) == os.getpid()
    tenure.forget(state, {name})
    assert list((state / "owners").iterdir()) == []


def test_who_ends_in_order_is_dead_at_once(state: Path) -> None:
    program, name = holder(state)
    program.communicate()
    assert tenure.dead(state, {name}, "me") == {name}


def test_looking_whether_one_runs_does_not_refuse_it(state: Path) -> None:
    (state / "run.lock").touch()
    ended = threading.Event()

    def looks() -> None:
        while not ended.is_set():
            tenure.running(state)

    watcher = threading.Thread(target=looks)
    watcher.start()
    try:
        for _ in range(300):
            with tenure.sole(state):
                pass
    finally:
        ended.set()
        watcher.join()


def test_a_state_folder_that_others_can_read_is_refused_with_the_cure(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(StateError, match=f"chmod 700 {re.escape(str(folder))}"):
        tenure.prepare_state_dir(folder)
    folder.chmod(0o700)
    tenure.prepare_state_dir(folder)


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="set state_dir"):
        tenure.prepare_state_dir(tmp_path / "file" / "state")


# -- the schema --


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


def test_the_tables_are_those_that_the_program_believes_in(tmp_path: Path) -> None:
    from docferry.store.tables import metadata

    path = tmp_path / "docferry.db"
    schema.prepare(path)
    connection = sqlite3.connect(path)
    for table in metadata.sorted_tables:
        columns = [row[1] for row in connection.execute("SELECT * FROM pragma_table_info(?)", (table.name,))]
        made = [row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")]
        assert made == [column.name for column in table.columns], (table.name, columns)
    connection.close()


def test_a_database_from_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"
    schema.prepare(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StateError, match=r"newer docferry.*9999"):
        schema.prepare(path)


def test_a_database_of_the_first_schema_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"
    schema.migrate(path, "0001")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO transfer (uid, mapping, lane, remote, remote_name, once, size, state, lease, tries, generation,"
            " created, due_since, next_attempt, updated)"
            " VALUES ('u', 'm', 'l', 'codat', 'n', 'o', 1, 'waiting', 0, 0, 0, 1, 1, 1, 1)"
        )
    schema.prepare(path)
    assert revision(path) == schema.HEAD
    found = connection.execute("SELECT uid, fingerprint, md5 FROM transfer").fetchall()
    connection.close()
    assert found == [("u", None, None)]


KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from docferry.store import schema
import alembic.command, alembic.config

step = 0
@event.listens_for(Engine, "before_cursor_execute")
def before(*_):
    global step
    step += 1
    if step == limit:
        os.kill(os.getpid(), signal.SIGKILL)

for limit in range(1, 100):
    path, step = Path(sys.argv[1]) / f"{limit}.db", 0
    child = os.fork()
    if not child:
        schema.prepare(path)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(limit)
        break
"""


def test_killed_at_every_step_of_a_migration_the_schema_is_old_or_new(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    steps = int(done.stdout)
    assert steps > 10
    for step in range(1, steps):
        path = tmp_path / f"{step}.db"
        assert revision(path) is None
        schema.prepare(path)
        assert revision(path) == schema.HEAD


STARTS = """
import sys
from pathlib import Path
from docferry.store import schema
import alembic.command
sys.stdin.readline()
schema.prepare(Path(sys.argv[1]))
"""


def test_programs_that_start_together_make_one_database(tmp_path: Path) -> None:
    path = tmp_path / "docferry.db"
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", STARTS, str(path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    errors = [program.communicate(timeout=60)[1] for program in programs]
    assert [program.returncode for program in programs] == [0] * 4, errors
    assert revision(path) == schema.HEAD
