"""Test that the queue of an older docferry is sent once by the new one."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

import older_queue
from app_env import COMPANY, CONNECTION, AppEnv, digest
from docferry.model import Stamp
from docferry.store import schema

_TRANSFER = """
INSERT INTO transfer (uid, mapping, lane, remote, company_id, connection_id, remote_name, sha256, once, size, state,
  lease, tries, generation, created, due_since, next_attempt, first_sent, last_sent, updated)
VALUES (:uid, :mapping, :lane, :remote, :company, :connection, :name, :sha256, :sha256, :size, :state,
  0, 0, 0, :then, :then, :then, :sent, :sent, :then) RETURNING id
"""
_DOCUMENT = """
INSERT INTO document (mapping, folder, name, size, mtime_ns, ctime_ns, sha256, transfer_id, present,
  first_seen, updated)
VALUES (:mapping, x'', CAST(:name AS BLOB), :size, :mtime_ns, :ctime_ns, :sha256, :transfer, 1, :then, :then)
"""


def queue(database: Path, mapping: str, file: Path, state: str, *, remote: str) -> None:
    """Insert a row as the first schema had it."""
    stamp, then = Stamp.of(file.stat()), time.time() - 60
    ids = (COMPANY, CONNECTION) if remote == "codat" else (None, None)
    row = {
        "uid": os.urandom(16).hex(),
        "mapping": mapping,
        "lane": "/".join(filter(None, (remote, *ids))),
        "remote": remote,
        "company": ids[0],
        "connection": ids[1],
        "name": file.name,
        "sha256": digest(file.read_bytes()),
        "size": stamp.size,
        "mtime_ns": stamp.mtime_ns,
        "ctime_ns": stamp.ctime_ns,
        "state": state,
        "then": then,
        "sent": None if state == "waiting" else then,
    }
    with sqlite3.connect(database) as connection:
        (transfer,) = connection.execute(_TRANSFER, row).fetchone()
        connection.execute(_DOCUMENT, row | {"transfer": transfer})
    connection.close()


def test_a_queue_of_the_first_schema_arrives_once(app_env: AppEnv) -> None:
    """Its transfers have no fingerprint and no MD5, so their SHA-256 proves the bytes."""
    bank, scans = app_env.upload("bank"), app_env.upload("scans", "wootiv")
    app_env.state.mkdir(mode=0o700)
    database = app_env.state / "docferry.db"
    schema.migrate(database, "0001")
    contents: Counter[tuple[str, str]] = Counter()
    for folder, state, size in product((bank, scans), ("waiting", "doubtful"), (1_000, 2_000_000)):
        content = os.urandom(size)
        file = folder / f"{folder.name}-{state}-{size}.pdf"
        file.write_bytes(content)
        queue(database, folder.name, file, state, remote="codat" if folder is bank else "wootiv")
        contents[file.name, digest(content)] += 1
    report = app_env.sync()
    assert (report["uploaded"], report["held"], report["due"]) == (8, 0, 0)
    assert app_env.stored() == contents
    again = app_env.sync()
    assert (again["uploaded"], again["unchanged"], again["requests"]) == (0, 8, 0)


@pytest.mark.parametrize("dump", sorted((Path(__file__).parent / "data").glob("*.sql")), ids=lambda path: path.stem)
def test_a_queue_that_an_older_version_left_is_finished_once(app_env: AppEnv, dump: Path) -> None:
    """Documents of every state; one was being sent when the older version was killed. Nothing is downloaded again."""
    older_queue.restore(dump, app_env)
    expected = app_env.stored() + Counter(
        (f"{name}.pdf", digest(older_queue.content(folder, name)))
        for folder, names in older_queue.MISSING.items()
        for name in names
    )
    report = app_env.sync(code=1)
    assert (report["uploaded"], report["held"], report["due"], report["downloaded"]) == (6, 2, 0, 0)
    assert app_env.stored() == expected
    assert app_env.simulator.requests["s3.put"] == 1
    held = {(Path(row["path"]).stem, row["reason"]) for row in app_env.rows("--state", "held")}
    assert held == {("empty", "empty"), ("refused", "refused")}
    assert "replaced" in {Path(row["path"]).stem for row in app_env.rows("--state", "gone")}
    again = app_env.sync(code=1)
    assert (again["uploaded"], again["downloaded"]) == (0, 0)
    assert app_env.stored() == expected
    assert app_env.run("retry", "--reason", "refused").returncode == 0
    assert app_env.sync(code=1)["uploaded"] == 1
