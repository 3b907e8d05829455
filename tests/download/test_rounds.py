"""Test downloads with the real program: each listed document arrives, or is retried and reported."""

from __future__ import annotations

import hashlib
import io
import string
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import IO

import pytest

import zip_corpus
import zips
from app_env import COMPANY, AppEnv, files_below
from docferry.simulator import Fault, company_files
from postgresql_server import PostgresqlServer

DAY = "2026-03-04T10:00:00Z"
OTHER = "11111111-6988-11ed-a1eb-0242ac120002"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Let Codat serve these archives instead of its own, by the first file name of their day."""
    replaced: dict[str, bytes] = {}
    real = company_files.build_zip

    async def build_zip(files: Sequence[company_files.CompanyFile]) -> tuple[IO[bytes], int]:
        names = [filed.stored.name for filed in files]
        for name, raw in replaced.items():
            if name in names or (not names and name == ""):
                return io.BytesIO(raw), len(raw)
        return await real(files)

    monkeypatch.setattr("docferry.simulator.codat.build_zip", build_zip)
    return replaced


def listed(app_env: AppEnv, name: str, content: bytes = b"x", uploaded: str = DAY) -> None:
    app_env.simulator.put_company_file(COMPANY, name, content, "Banking", uploaded, "Bank")


def inbox(app_env: AppEnv, **extra: str) -> Path:
    return app_env.download("inbox", company_id=f'"{COMPANY}"', **{"every": '"50ms"', **extra})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def problem(app_env: AppEnv) -> str:
    done = app_env.run("sync", "--json")
    assert done.returncode == 75, done.stderr
    return done.stderr


def test_a_listed_file_that_the_archive_lacks_is_asked_for_again(app_env: AppEnv, served: dict[str, bytes]) -> None:
    """However old its day is: one archive without it does not end the matter."""
    listed(app_env, "a.pdf", b"a")
    listed(app_env, "late.pdf", b"late")
    served["late.pdf"] = zips.plain({"Bank/a.pdf": b"a"})
    folder = inbox(app_env)
    assert "late.pdf is listed and is not in the archive" in problem(app_env)
    assert names(folder) == ["a.pdf"]
    served.clear()
    assert app_env.sync()["downloaded"] == 1
    assert names(folder) == ["a.pdf", "late.pdf"]
    assert app_env.sync()["downloaded"] == 0


def test_pauses_grow_and_the_problem_stays(app_env: AppEnv, served: dict[str, bytes]) -> None:
    listed(app_env, "late.pdf")
    served["late.pdf"] = b""
    inbox(app_env, every='"1h"')
    assert "2026-03-04" in problem(app_env)
    asked = app_env.simulator.requests["codat.download"]
    assert "2026-03-04" in problem(app_env)
    assert app_env.simulator.requests["codat.download"] == asked
    listed(app_env, "more.pdf")  # another list: it is asked for at once
    problem(app_env)
    assert app_env.simulator.requests["codat.download"] > asked


def test_an_archive_cut_by_another_time_zone_is_found_on_the_neighbouring_day(
    app_env: AppEnv, served: dict[str, bytes]
) -> None:
    listed(app_env, "evening.pdf", b"evening", "2026-03-04T23:30:00Z")
    listed(app_env, "next.pdf", b"next", "2026-03-05T12:00:00Z")
    served["evening.pdf"] = zips.plain({})
    served["next.pdf"] = zips.plain({"Bank/evening.pdf": b"evening", "Bank/next.pdf": b"next"})
    folder = inbox(app_env)
    assert app_env.sync()["downloaded"] == 2
    assert names(folder) == ["evening.pdf", "next.pdf"]
    assert app_env.sync()["downloaded"] == 0


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (zip_corpus.Row(b"../x.pdf"), "leads out of the archive"),
        (zip_corpus.Row(b"/x.pdf"), "leads out of the archive"),
        (zip_corpus.Row(b"Bank/x.pdf", flags=0x801), "is encrypted"),
        (zip_corpus.Row(b"Bank/x.pdf", method=9), "deflate64"),
        (zip_corpus.Row(b"Bank/x.pdf", crc=1), "is damaged"),
        (zip_corpus.Row(b""), "has no name"),
    ],
)
def test_a_member_stands_for_itself(
    app_env: AppEnv, served: dict[str, bytes], member: zip_corpus.Row, said: str
) -> None:
    listed(app_env, "a.pdf", b"a")
    listed(app_env, "x.pdf")
    served["a.pdf"] = zip_corpus.build(zip_corpus.Row(b"Bank/a.pdf", b"a"), member)
    folder = inbox(app_env)
    assert said in problem(app_env)
    assert names(folder) == ["a.pdf"]
    assert not list(app_env.root.rglob("x.pdf"))


def test_one_company_that_is_refused_ends_no_other_round(app_env: AppEnv) -> None:
    app_env.simulator.options.companies = {COMPANY: set()}
    listed(app_env, "a.pdf", b"a")
    folder = app_env.root / "in"
    app_env.sections.append(
        f'[[download]]\nname = "inbox"\nfrom = "codat"\nevery = "1h"\ncompany_id = ["{OTHER}", "{COMPANY}"]\n'
        f'folder = "{folder}/{{company_id}}"'
    )
    assert OTHER in problem(app_env)
    assert names(folder) == ["a.pdf"]


@pytest.mark.parametrize(
    "uploaded", ["20261121T100000Z", "2026-11-21T23:59:59.999999Z", "2026-11-21T00:30:00+14:00", "2026-11-21"]
)
def test_dates_in_every_form_of_iso_8601_are_read(app_env: AppEnv, uploaded: str) -> None:
    listed(app_env, "a.pdf", b"a", uploaded)
    folder = inbox(app_env)
    assert app_env.sync()["downloaded"] == 1
    assert names(folder) == ["a.pdf"]


def test_a_date_that_cannot_be_read_is_a_problem_and_the_others_come(app_env: AppEnv) -> None:
    listed(app_env, "odd.pdf", uploaded="yesterday")
    listed(app_env, "a.pdf")
    folder = inbox(app_env)
    assert "a date that cannot be read" in problem(app_env)
    assert names(folder) == ["a.pdf"]


def test_a_list_of_120000_rows_is_read(app_env: AppEnv) -> None:
    """More than 16 MB."""
    for number in range(120_000):
        listed(app_env, f"{'n' * 60}-{number}.pdf", b"", "2020-01-01T00:00:00Z")
    listed(app_env, "a.pdf", b"a")
    folder = inbox(app_env, since='"2026-01-01"')
    assert app_env.sync()["downloaded"] == 1
    assert names(folder) == ["a.pdf"]


def test_downloads_leave_room_for_the_queue(app_env: AppEnv) -> None:
    """A document that exceeds spool_max is not downloaded, and is reported."""
    listed(app_env, "large.pdf", bytes(3_000_000))
    app_env.settings["spool_max"] = '"1MB"'
    folder = inbox(app_env)
    done = app_env.run("sync", "--json")
    assert done.returncode == 75, done.stderr
    assert names(folder) == []
    assert not list((app_env.state / "spool").iterdir())
    app_env.settings["spool_max"] = '"100MB"'
    assert app_env.sync()["downloaded"] == 1


def test_max_size_refuses_one_member(app_env: AppEnv) -> None:
    listed(app_env, "large.pdf", bytes(300_000))
    listed(app_env, "small.pdf", b"s")
    folder = inbox(app_env, max_size='"100kB"')
    assert "large.pdf" in problem(app_env)
    assert names(folder) == ["small.pdf"]


def test_an_object_whose_etag_only_looks_like_an_md5_comes_down_once(
    app_env: AppEnv,
) -> None:
    found = app_env.simulator.put_object("reports/latest.pdf", b"report")
    object.__setattr__(found, "etag", '"' + hashlib.md5(b"something else", usedforsecurity=False).hexdigest() + '"')
    folder = app_env.download("statements", "wootiv", objects='["reports/latest.pdf"]', every='"1h"')
    for _ in range(3):
        app_env.sync(code=None)
    assert names(folder) == ["latest.pdf"]
    asked = app_env.simulator.requests["s3.get"]
    report = app_env.sync()
    assert report["downloaded"] == 0
    assert app_env.simulator.requests["s3.get"] <= asked + 1


def test_an_own_upload_that_is_doubtful_is_no_missing_document(app_env: AppEnv) -> None:
    """The list shows the upload before the queue knows it; a customer's file with that name is still downloaded."""
    app_env.codat["list_lag"] = '"1h"'
    bank, folder = app_env.upload("bank"), inbox(app_env)
    (bank / "a.pdf").write_bytes(b"ours")
    app_env.simulator.set_faults([Fault("lost_answer", "codat.upload")])
    app_env.sync("--timeout", "1s", code=75)
    assert [each["state"] for each in app_env.rows()] == ["doubtful"]
    app_env.simulator.put_company_file(COMPANY, "a.pdf", b"theirs")
    done = app_env.run("sync", "--json", "--no-upload")
    assert "archive" not in done.stderr
    assert [path.read_bytes() for path in folder.rglob("*.pdf")] == [b"theirs"]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_name_longer_than_a_row_of_an_index_comes_down_once(
    app_env: AppEnv, request: pytest.FixtureRequest, database: str
) -> None:
    """A row of an index of PostgreSQL has at most 2,704 bytes, and a ZIP allows names of 65,535."""
    if database == "postgresql":
        server: PostgresqlServer = request.getfixturevalue("postgresql_server")
        app_env.settings["database_url"] = f'"{server.new_database()}"'
    letters = Random(5)  # noqa: S311 - incompressible, and the same each time
    long = ["".join(letters.choices(string.ascii_letters, k=4000)) + end for end in ("a.pdf", "b.pdf")]
    for name in long:
        listed(app_env, name, name[-5:].encode())
    folder = inbox(app_env)
    assert app_env.sync()["downloaded"] == 2
    assert sorted(path.read_bytes() for path in files_below(folder)) == [b"a.pdf", b"b.pdf"]
    assert app_env.sync()["downloaded"] == 0
