"""Test `docferry receipts` with the real program, and the verification of its export."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import zipfile
from base64 import b64decode
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app_env import COMPANY, CONNECTION, AppEnv, digest
from docferry.receipts.heads import parse_note
from docferry.receipts.merkle import leaf_hash, verify_inclusion
from docferry.store import schema


@pytest.fixture
def sent(app_env: AppEnv) -> AppEnv:
    """Three documents at Codat, signed heads."""
    folder = app_env.upload("bank")
    for name in ("a.pdf", "b.pdf", "=c.pdf"):
        (folder / name).write_bytes(name.encode())
    key = app_env.root / "receipts.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    key.chmod(0o600)
    app_env.sections.append(f'[receipts]\nkey_file = "{key}"')
    app_env.sync()
    return app_env


def told(app_env: AppEnv, *words: str, code: int = 0) -> list[dict[str, Any]]:
    done = app_env.run("receipts", *words)
    assert done.returncode == code, (done.stdout, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def tamper(app_env: AppEnv, statement: str) -> None:
    with closing(sqlite3.connect(app_env.state / "docferry.db")) as connection:
        connection.execute(statement)
        connection.commit()


def test_each_sent_document_has_a_receipt(sent: AppEnv) -> None:
    (row,) = [row for row in sent.rows() if row["path"].endswith("b.pdf")]
    (receipt,) = told(sent, "show", str(row["id"]), "--json")
    assert receipt["sha256"] == digest(b"b.pdf")
    assert (receipt["kind"], receipt["path"], receipt["status"]) == ("sent", "b.pdf", 200)
    assert (receipt["company_id"], receipt["connection_id"]) == (COMPANY, CONNECTION)
    assert told(sent, "find", digest(b"b.pdf"), "--json") == [receipt]
    assert told(sent, "find", str(sent.root / "bank" / "b.pdf"), "--json") == [receipt]
    assert told(sent, "show", f"r{receipt['index']}", "--json") == [receipt]
    assert "sha256" in sent.run("receipts", "show", str(row["id"])).stdout


def test_a_proof_holds_without_docferry(sent: AppEnv) -> None:
    (proof,) = told(sent, "prove", "1")
    leaf = leaf_hash(proof["receipt"].encode())
    path = [b64decode(each) for each in proof["proof"]]
    head = parse_note(proof["head"]).head
    assert (head.size, leaf) == (3, b64decode(proof["leaf_hash"]))
    assert verify_inclusion(leaf, proof["index"], head.size, path, head.root)


def test_verify_tells_right_from_wrong(sent: AppEnv) -> None:
    done = sent.run("receipts", "verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 receipts of docferry/" in done.stdout
    assert "all is right" in done.stdout
    (report,) = told(sent, "verify", "--json")
    assert (report["receipts"], report["problems"], report["other_keys"]) == (3, [], 0)
    tamper(sent, "DELETE FROM receipt WHERE idx = 1")
    done = sent.run("receipts", "verify")
    assert done.returncode == 1
    assert "receipt 1 is missing: removed from the database" in done.stdout
    (report,) = told(sent, "verify", "--json", code=1)
    assert report["problem_count"] == len(report["problems"]) == 2


def test_an_export_is_verified_by_its_own_script(sent: AppEnv, tmp_path: Path) -> None:
    export, folder = tmp_path / "x.zip", tmp_path / "x"
    assert sent.run("receipts", "export", "--company", COMPANY, "--since", "2026-01-01", "-o", str(export)).stdout
    with zipfile.ZipFile(export) as archive:
        archive.extractall(folder)
    script = [sys.executable, "-I", "-S", str(folder / "verify.py")]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("3 receipts are in the log docferry/")
    assert "signed by" in done.stdout
    assert "'=c.pdf" in (folder / "receipts.csv").read_text()
    text = (folder / "receipts.jsonl").read_text()
    (folder / "receipts.jsonl").write_text(text.replace("b.pdf", "z.pdf"))
    assert subprocess.run(script, capture_output=True).returncode == 1


@pytest.mark.parametrize(
    "filters", [["--company", CONNECTION], ["--since", "2126-01-01"], ["--until", "2025-12-31"]], ids=str
)
def test_an_export_holds_only_what_was_asked_for(sent: AppEnv, tmp_path: Path, filters: list[str]) -> None:
    (report,) = told(sent, "export", *filters, "--json", "-o", str(tmp_path / "x.zip"))
    assert (report["receipts"], report["size"]) == (0, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "99"], "there is no receipt for 99"),
        (["show", "x"], "is no number of a document"),
        (["find", "/nonexistent"], "neither a SHA-256 nor a file"),
        (["verify", "--anchor", "/nonexistent"], "cannot be read: No such file"),
        (["export", "--since", "soon", "-o", "x.zip"], '"soon" is no time'),
        (["export", "-o", "/nonexistent/x.zip"], "cannot be written: No such file"),
        (["export"], "required: -o/--output"),
        (["vrify"], "did you mean verify?"),
        ([], "required: WHAT"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(sent: AppEnv, words: list[str], said: str) -> None:
    done = sent.run("receipts", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_is_none_is_named_before_anything_is_sent(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    (app_env.root / "receipts.key").touch(mode=0o600)
    app_env.sections.append(f'[receipts]\nkey_file = "{app_env.root}/receipts.key"')
    done = app_env.run("sync")
    assert done.returncode == 2
    assert "openssl genpkey -algorithm ed25519" in done.stderr
    assert not app_env.stored()


def test_old_databases_get_receipts_that_say_so(app_env: AppEnv) -> None:
    """For a queue from before the log, both `receipts` and `sync` complete the log first."""
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"a")
    app_env.sync()
    database = app_env.state / "docferry.db"
    old = app_env.root / "old.db"
    schema.migrate(old, "0002")
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("ATTACH ? AS new", (str(database),))
        for table in ("document", "transfer", "attempt"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")  # noqa: S608 - our own names
        connection.commit()
    for each in app_env.state.glob("docferry.db*"):
        each.unlink()
    database.write_bytes(old.read_bytes())
    app_env.sync()
    (receipt,) = told(app_env, "find", digest(b"a"), "--json")
    assert (receipt["reconstructed"], receipt["status"], receipt["proof"]) == (True, 200, "answer")
    assert told(app_env, "verify", "--json")[0]["problems"] == []


def test_nothing_was_seen_yet(app_env: AppEnv) -> None:
    app_env.upload("bank")
    done = app_env.run("receipts", "verify")
    assert done.returncode == 2
    assert "has not seen any document yet" in done.stderr
