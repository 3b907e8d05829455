"""Run the commands of a person with a queue on PostgreSQL: approvals, receipts and verification."""

from __future__ import annotations

import json
import string
from random import Random

from app_env import AppEnv, digest
from postgresql_server import PostgresqlServer


def test_documents_are_approved_sent_verified_and_have_receipts(
    app_env: AppEnv, postgresql_server: PostgresqlServer
) -> None:
    """One document has a path of 3,900 bytes, longer than a row of a PostgreSQL index."""
    app_env.settings["database_url"] = f'"{postgresql_server.new_database()}"'
    folder = app_env.upload("bank", hold_for_approval="true")
    deep, letters = folder, Random(17)  # noqa: S311 - incompressible, and the same each time
    while len(str(deep)) < 3700:
        deep /= "".join(letters.choices(string.ascii_letters, k=200))
    deep.mkdir(parents=True)
    contents = {folder / "a.pdf": b"a", folder / "b.pdf": b"b", deep / "c.pdf": b"c"}
    for path, content in contents.items():
        path.write_bytes(content)

    assert app_env.run("sync").returncode == 1
    assert {(row["state"], row["reason"]) for row in app_env.rows()} == {("held", "approval")}
    assert app_env.run("retry", "--reason", "approval").returncode == 0
    assert app_env.run("sync").returncode == 0
    assert {(row["state"], row["sha256"]) for row in app_env.rows()} == {("sent", digest(b)) for b in contents.values()}
    assert app_env.run("verify").returncode == 0
    assert app_env.run("receipts", "verify").returncode == 0
    found = json.loads(app_env.run("receipts", "find", digest(b"c"), "--json").stdout.splitlines()[-1])
    assert found["path"] == str((deep / "c.pdf").relative_to(folder))
