"""Test `docferry remote`: the files at the remote, single files from it, and its health."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app_env import COMPANY, CONNECTION, AppEnv
from docferry.simulator import Fault
from system.conftest import Say


def rows(app_env: AppEnv, mapping: str, code: int = 0) -> dict[str, str]:
    """Return the owner of each file, by name."""
    done = app_env.run("remote", "ls", mapping, "--json")
    assert done.returncode == code, done.stderr
    found = [json.loads(each) for each in done.stdout.splitlines()]
    assert {tuple(each) for each in found} == {("name", "whose", "uploaded", "source", "size", "company_id")}
    return {each["name"]: each["whose"] for each in found}


@pytest.fixture
def sent(app_env: AppEnv) -> AppEnv:
    """Two documents at Codat that docferry sent, and one that a customer uploaded."""
    app_env.codat["list_lag"] = '"100ms"'
    folder = app_env.upload("acme")
    for name in ("a.pdf", "na\u0308ive.pdf"):
        (folder / name).write_bytes(name.encode())
    app_env.sync()
    app_env.simulator.put_company_file(COMPANY, "theirs.pdf", b"theirs")
    return app_env


def test_each_file_at_codat_is_ours_theirs_or_missing(sent: AppEnv) -> None:
    assert rows(sent, "acme") == {"a.pdf": "ours", "na\u0308ive.pdf": "ours", "theirs.pdf": "other"}
    sent.simulator.remove_company_file(COMPANY, "a.pdf")
    assert rows(sent, "acme", code=1) == {"a.pdf": "missing", "na\u0308ive.pdf": "ours", "theirs.pdf": "other"}
    done = sent.run("remote", "ls", "acme")
    assert "1 ours, 1 missing, 1 other" in done.stdout
    assert "docferry retry --missing" in done.stdout


def test_the_company_of_a_folder_with_placeholders(app_env: AppEnv) -> None:
    app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    assert "--company" in app_env.run("remote", "ls", "customers").stderr
    folder = app_env.root / "customers" / COMPANY / CONNECTION
    folder.mkdir(parents=True)
    (folder / "a.pdf").write_bytes(b"a")
    app_env.sync()
    assert rows(app_env, "customers") == {"a.pdf": "ours"}


@pytest.mark.parametrize("words", [(), ("theirs.pdf",), ("--date", "TODAY"), ("--date", "TODAY", "theirs.pdf")])
def test_files_come_from_codat(sent: AppEnv, tmp_path: Path, words: tuple[str, ...]) -> None:
    day = datetime.now(UTC).date().isoformat()
    into = tmp_path / "out"
    done = sent.run("remote", "get", "acme", "--to", str(into), *(day if word == "TODAY" else word for word in words))
    assert done.returncode == 0, done.stderr
    assert (into / "theirs.pdf").read_bytes() == b"theirs"
    assert len(list(into.iterdir())) == (1 if "theirs.pdf" in words else 3)
    assert done.stdout.splitlines().count(str(into / "theirs.pdf")) == 1


@pytest.mark.parametrize("uploaded", ["2026-03-04T23:30:00-05:00", "20260305T043000Z"])
def test_a_named_file_is_found_in_the_archive_of_its_day_in_utc(app_env: AppEnv, say: Say, uploaded: str) -> None:
    app_env.upload("acme")
    app_env.simulator.put_company_file(COMPANY, "theirs.pdf", b"theirs", uploaded=uploaded)
    into = app_env.root / "out"
    code, out, said = say("remote", "get", "acme", "theirs.pdf", "--to", str(into))
    assert (code, out) == (0, f"{into}/theirs.pdf\n"), said


def test_an_unknown_file_is_told(sent: AppEnv, tmp_path: Path) -> None:
    done = sent.run("remote", "get", "acme", "nothing.pdf", "--to", str(tmp_path / "out"))
    assert (done.returncode, "lists no file" in done.stderr) == (2, True)


def test_objects_at_wootiv(app_env: AppEnv, tmp_path: Path) -> None:
    folder = app_env.upload("scans", "wootiv", object_name='"scans/{path}"')
    (folder / "a.pdf").write_bytes(b"a")
    app_env.sync()
    assert rows(app_env, "scans") == {"scans/a.pdf": "ours"}
    assert "buckets: wootiv-documents" in app_env.run("remote", "ls", "scans").stdout
    into = tmp_path / "out"
    assert app_env.run("remote", "get", "scans", "scans/a.pdf", "--to", str(into)).returncode == 0
    assert (into / "scans" / "a.pdf").read_bytes() == b"a"
    assert app_env.run("remote", "get", "scans").returncode == 2
    app_env.simulator.remove_object("scans/a.pdf")
    assert rows(app_env, "scans", code=1) == {"scans/a.pdf": "missing"}


def test_health_names_connections_and_buckets(app_env: AppEnv) -> None:
    app_env.upload("acme")
    app_env.upload("scans", "wootiv")
    done = app_env.run("remote", "health")
    assert done.returncode == 0, done.stdout
    assert "Linked" in done.stdout
    assert "wootiv buckets" in done.stdout
    app_env.simulator.options.connection_status[CONNECTION] = "Deauthorized"
    broken = app_env.run("remote", "health", "acme")
    assert (broken.returncode, "Deauthorized" in broken.stdout, "wootiv" in broken.stdout) == (2, True, False)
    app_env.simulator.set_faults([Fault("status", "wootiv.health", params={"status": 503})])
    assert app_env.run("remote", "health", "scans").returncode == 75


def test_a_remote_that_is_away_passes(app_env: AppEnv) -> None:
    app_env.upload("acme")
    app_env.simulator.set_faults([Fault("status", "codat.list", params={"status": 503})])
    done = app_env.run("remote", "ls", "acme")
    assert (done.returncode, "correlation id" in done.stderr) == (75, True)


#: The error statuses that Codat documents: exit code, and words of the advice.
CODAT_ERRORS = {
    400: (2, "refused the request"),
    401: (2, "set a valid one"),
    402: (2, "settle it with Codat"),
    403: (2, "has no access to company"),
    404: (2, "does not know company"),
    405: (2, "refused the request"),
    409: (75, "refused the request"),
    429: (75, "requests a pause"),
    500: (75, "an internal error"),
    503: (75, "an internal error"),
}
#: Those of Wootiv: exit code.
WOOTIV_ERRORS = {400: 2, 401: 2, 403: 2, 404: 2, 409: 75, 422: 2, 429: 75, 500: 75, 503: 75}


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ("codat.list", ("ls", "acme")),
        ("codat.list", ("ls", "acme", "--json")),
        ("codat.list", ("get", "acme", "a.pdf")),
        ("codat.download", ("get", "acme", "--date", "2026-03-04")),
    ],
)
def test_each_documented_error_of_codat_is_told(app_env: AppEnv, say: Say, route: str, words: tuple[str, ...]) -> None:
    app_env.upload("acme")
    for status, (expected, advice) in CODAT_ERRORS.items():
        app_env.simulator.set_faults([Fault("status", route, params={"status": status})])
        code, out, said = say("remote", *words)
        assert (code, out) == (expected, ""), status
        assert all(part in said for part in (f"({status})", "[correlation id ", advice)), said


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ("wootiv.objects", ("ls", "scans", "--json")),
        ("wootiv.buckets", ("ls", "scans")),
        ("wootiv.fetch", ("get", "scans", "a.pdf")),
    ],
)
def test_each_documented_error_of_wootiv_is_told(app_env: AppEnv, say: Say, route: str, words: tuple[str, ...]) -> None:
    app_env.upload("scans", "wootiv")
    for status, expected in WOOTIV_ERRORS.items():
        app_env.simulator.set_faults([Fault("status", route, params={"status": status})])
        code, out, said = say("remote", *words)
        assert (code, out, f"({status})" in said) == (expected, "", True), said
