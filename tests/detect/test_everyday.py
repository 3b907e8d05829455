"""Test everyday trouble with files, caused by people and by other programs."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from app_env import COMPANY, CONNECTION, AppEnv, digest
from docferry.model import State
from docferry.upload import after_upload
from upload.conftest import UploadEnv, once

pytestmark = pytest.mark.anyio


@pytest.fixture
def env(app_env: AppEnv) -> UploadEnv:
    app_env.settings |= {"settle": '"10ms"', "log_level": '"info"'}
    app_env.codat |= {"list_lag": '"150ms"'}
    return UploadEnv(app_env)


# -- dates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [1601, 1901, 2400, 9999])
async def test_a_document_of_another_age_is_sent_with_the_others(env: UploadEnv, year: int) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "usual.pdf", "odd.pdf")
    seconds = int((year - 1970) * 365.2425 * 86_400)
    os.utime(folder / "odd.pdf", (seconds, seconds))
    await env.run_daemon()
    assert env.at_codat() == once("usual.pdf", "odd.pdf")
    requests = env.requests("codat.upload")
    await env.run_daemon()
    assert env.requests("codat.upload") == requests, "it was planned again"


@pytest.mark.parametrize("year", [1601, 9999])
async def test_a_document_of_another_age_is_archived(env: UploadEnv, year: int) -> None:
    archive = env.app_env.root / "archive"
    folder = env.app_env.upload("bank", after_upload='"archive"', archive_folder=f'"{archive}"')
    env.write_documents(folder, "odd.pdf")
    seconds = int((year - 1970) * 365.2425 * 86_400)
    os.utime(folder / "odd.pdf", (seconds, seconds))
    await env.run_daemon(lambda _: not (folder / "odd.pdf").exists())
    assert (archive / "odd.pdf").read_bytes() == b"odd.pdf"


# -- files of other programs -------------------------------------------------------------------------------------------

LITTER = (
    "@eaDir/a.pdf",
    "#recycle/a.pdf",
    "@Recycle/a.pdf",
    "$RECYCLE.BIN/S-1-5/a.pdf",
    "System Volume Information/a.pdf",
    ".Trash-1000/files/a.pdf",
    "#snapshot/daily/a.pdf",
    "lost+found/a.pdf",
    "a.sync-conflict-20261130-120000-ABCDEFG.pdf",
    "desktop.ini",
    "~WRL0001.tmp",
    "a.pdf.aria2",
    "a.temp",
    "a.uploading",
    "a.pdf.download/a.pdf",
    "deep/@eaDir/a.pdf",
    "~$a.docx",
    "Thumbs.db",
)


async def test_litter_is_no_document(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "deep/a.pdf", *LITTER)
    async with env.app() as app:
        await env.run_uploads(app)
        upload = app.uploads["bank"]
        await app.reconciler.check_paths(upload, [name.encode() for name in LITTER])
        await env.run_uploads(app)
    assert env.at_codat() == once() | {("a.pdf", digest(b"deep/a.pdf")): 1}


async def test_without_the_list_litter_is_a_document(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank", builtin_excludes="false", exclude='["*.ini"]')
    env.write_documents(folder, "@eaDir/a.pdf", ".hidden.pdf", "#recycle/c.pdf", "desktop.ini")
    (folder / ".docferry-aside-0").mkdir()
    (folder / ".docferry-aside-0" / "d.pdf").write_bytes(b"d")
    await env.run_daemon()
    assert {name for name, _ in env.at_codat()} == {"a.pdf", ".hidden.pdf", "c.pdf"}


# -- patterns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "said"),
    [
        ('["*.pdf, *.csv"]', 'write one pattern in each string: include = ["*.pdf", "*.csv"]'),
        ("[]", "include is empty"),
        ('["./*.pdf"]', 'write "/*.pdf" for its top, or "*.pdf"'),
        ('["*.docx"]', '"*.docx"'),
    ],
)
async def test_patterns_that_match_nothing_are_told_with_the_fix(env: UploadEnv, include: str, said: str) -> None:
    folder = env.app_env.upload("bank", include=include)
    env.write_documents(folder, "a.pdf", "x/b.pdf")
    async with env.app() as app:
        [sentence] = app.reconciler.state("bank").left_out
        assert sentence.startswith("2 files match no pattern")
        assert said in sentence
    checked = env.app_env.run("check", "--offline")
    assert said in " ".join(checked.stdout.split()), checked.stdout


async def test_other_letter_case_links_and_long_paths_are_told(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank", include='["*.pdf"]')
    env.write_documents(folder, "a.pdf", "b.PDF", "c.PDF")
    (folder / "links").mkdir()
    for number in range(3):
        (folder / "links" / f"{number}.pdf").symlink_to(folder / "a.pdf")
    here = os.open(folder, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 120, dir_fd=here)
        below = os.open("d" * 120, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    async with env.app() as app:
        await env.run_uploads(app)
        told = app.reconciler.state("bank").left_out
    assert any(line.startswith("2 files") and 'add "*.PDF"' in line for line in told)
    assert any(line.startswith("3 links") and "links" in line for line in told)
    assert any(line.startswith("1 paths exceed 4,095 bytes") for line in told)
    assert env.at_codat() == once("a.pdf")


async def test_what_is_held_and_then_excluded_is_gone(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "a.pdf", "b.xyz", "sub/c.xyz")
    await env.run_daemon(lambda counts: (counts.get(State.SENT), counts.get(State.HELD)) == (1, 2))
    env.app_env.sections[0] += '\nexclude = ["*.xyz"]'
    report = env.app_env.sync()
    assert (report["held"], report["due"]) == (0, 0)
    assert {row["state"] for row in env.app_env.rows()} == {"sent", "gone"}


async def test_what_is_held_and_then_allowed_is_sent(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank", max_size="3")
    env.write_documents(folder, "a.pdf", "b.pdf")
    assert env.app_env.sync(code=1)["held"] == 2
    env.app_env.sections[0] = env.app_env.sections[0].replace("max_size = 3", "max_size = 100")
    assert env.app_env.sync()["uploaded"] == 2


def test_dry_run_tells_what_is_left_out(app_env: AppEnv) -> None:
    folder = app_env.upload("bank", include='["./*.pdf"]')
    (folder / "a.pdf").write_bytes(b"a")
    said = " ".join(app_env.run("sync", "--dry-run").stdout.split())
    assert "1 files match no pattern" in said
    assert 'write "/*.pdf" for its top' in said


# -- emptied on purpose ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("may_be_empty", [True, False])
async def test_a_folder_that_was_emptied(env: UploadEnv, may_be_empty: bool) -> None:
    folder = env.app_env.upload("bank", **({"may_be_empty": "true"} if may_be_empty else {}))
    env.write_documents(folder, "a.pdf")
    await env.run_daemon()
    (folder / "a.pdf").unlink()
    async with env.app() as app:
        problem = app.reconciler.state("bank").problem
    assert (problem is None) is may_be_empty
    assert may_be_empty or "may_be_empty = true" in (problem or "")


# -- downloads are not uploaded again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["moved", "copied", "through a link"])
async def test_what_was_downloaded_does_not_go_up_again(env: UploadEnv, how: str) -> None:
    app_env = env.app_env
    app_env.simulator.put_company_file(COMPANY, "theirs.pdf", b"theirs", "Banking", "2026-03-04T10:00:00Z")
    real = app_env.root / "company"
    inbox = app_env.download("company/inbox", company_id=f'"{COMPANY}"')
    spelled = real
    if how == "through a link":
        spelled = app_env.root / "alias"
        spelled.symlink_to(real)
    app_env.sections.append(
        f'[[upload]]\nname = "up"\nfolder = "{spelled}"\nto = "codat"\n'
        f'company_id = "{COMPANY}"\nconnection_id = "{CONNECTION}"'
    )
    app_env.sync("--no-upload")
    [published] = [path for path in inbox.rglob("*") if path.is_file()]
    (real / "sorted").mkdir()
    if how == "moved":
        published.rename(real / "sorted" / "renamed.pdf")
    elif how == "copied":
        shutil.copy(published, real / "sorted" / "copy.pdf")
    app_env.sync()
    assert env.requests("codat.upload") == 0
    (real / "ours.pdf").write_bytes(b"ours")
    app_env.sync()
    assert env.requests("codat.upload") == 1


# -- after the upload --------------------------------------------------------------------------------------------------


async def test_files_that_cannot_be_removed_are_logged_once_and_counted(
    env: UploadEnv, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More files than one batch; other files are removed all the same."""
    caplog.set_level("WARNING")  # an earlier test of this process may have configured less
    monkeypatch.setattr(after_upload, "FILES_AT_ONCE", 10)
    blocked, archive = env.app_env.root / "blocked", env.app_env.root / "archive"
    stuck = env.app_env.upload("stuck", after_upload='"archive"', archive_folder=f'"{archive}"')
    well = env.app_env.upload("well", after_upload='"delete"')
    env.write_documents(stuck, *(f"x/{number}.pdf" for number in range(25)), "free/z.pdf")
    env.write_documents(well, "a.pdf")
    archive.mkdir()
    (archive / "x").write_bytes(b"a file where a folder is needed")
    async with env.app() as app:
        removed = [well / "a.pdf", stuck / "free" / "z.pdf"]
        await env.run_uploads(
            app, lambda _: len(env.simulator.stored) == 27 and not any(each.exists() for each in removed)
        )
        for _ in range(3):
            await app.reconciler.scan(app.uploads["stuck"])
            await app.after_upload.serve()
        assert "25 sent files cannot be archived" in (app.after_upload.problem("stuck") or "")
        logged = [record for record in caplog.records if getattr(record, "action", "") == "not_removed"]
        assert len(logged) == 1
        (archive / "x").unlink()
        await app.reconciler.scan(app.uploads["stuck"])
        await app.after_upload.serve()
        assert app.after_upload.problem("stuck") is None
    assert not blocked.exists()
    assert len(list((archive / "x").iterdir())) == 25


async def test_what_was_kept_before_and_what_comes_again_is_archived_by_the_next_scan(env: UploadEnv) -> None:
    folder, archive = env.app_env.upload("bank"), env.app_env.root / "archive"
    env.write_documents(folder, "a.pdf")
    await env.run_daemon()
    env.app_env.sections[0] += f'\nafter_upload = "archive"\narchive_folder = "{archive}"'
    assert env.app_env.sync()["uploaded"] == 0
    assert (archive / "a.pdf").exists()
    env.write_documents(folder, "a.pdf")
    os.link(folder / "a.pdf", env.app_env.root / "link.pdf")
    assert env.app_env.sync()["uploaded"] == 0
    assert not (folder / "a.pdf").exists()


async def test_held_documents_of_one_reason_are_logged_with_their_number(
    env: UploadEnv, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # an earlier test of this process may have configured less
    folder = env.app_env.upload("bank")
    env.write_documents(folder, *(f"{number}.xyz" for number in range(300)))
    async with env.app() as app:
        assert (await env.states(app))[State.HELD] == 300
    logged = [record for record in caplog.records if getattr(record, "action", "") == "held"]
    assert len(logged) < 10
    assert "295 more documents are held" in logged[-1].getMessage()


# -- locales -----------------------------------------------------------------------------------------------------------


def _locales() -> list[dict[str, str]]:
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    known = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout.split()
    latin = [name for name in known if "8859" in name]
    return [{"LC_ALL": "C", **plain}, *({"LC_ALL": name, **plain} for name in latin[:1])]


@pytest.mark.parametrize("locale", _locales(), ids=lambda locale: locale["LC_ALL"])
def test_a_folder_with_an_umlaut_in_any_locale(app_env: AppEnv, locale: dict[str, str]) -> None:
    folder = app_env.upload("bank", folder="f\u00fcr uns")
    (folder / "M\u00fcller.pdf").write_bytes(b"m")
    with open(os.fsencode(folder) + b"/M\xf6ller.pdf", "wb") as file:  # noqa: PTH123 - pathlib takes no bytes
        file.write(b"l")
    for words in (["check", "--offline"], ["sync", "--dry-run"], ["sync"], ["list"], ["status"]):
        done = app_env.run(*words, **locale)
        assert done.returncode == 0, (words, done.stdout, done.stderr[-2000:])
        assert "does not exist" not in done.stdout + done.stderr
    assert len(app_env.stored()) == 2


def test_a_held_file_that_is_touched_again_and_again_adds_no_rows(app_env: AppEnv) -> None:
    """Otherwise a customer could fill the queue's disk by touching one empty file."""
    folder = app_env.upload("bank", max_size='"10B"')
    app_env.settings |= {"settle": '"10ms"'}
    names = ("empty.pdf", "large.pdf", "wrong.xyz", "sent.pdf")
    for number in range(4):
        for name in names:
            (folder / name).write_bytes({"empty.pdf": b"", "large.pdf": b"x" * (20 + number)}.get(name, b"x"))
        app_env.sync(code=1)
    with sqlite3.connect(app_env.state / "docferry.db") as database:
        assert database.execute("SELECT count(*) FROM transfer").fetchone() == (len(names),)
        assert database.execute("SELECT count(*) FROM document").fetchone() == (len(names),)
    held = {Path(row["path"]).name: (row["reason"], row["size"]) for row in app_env.rows("--state", "held")}
    assert held == {"empty.pdf": ("empty", 0), "large.pdf": ("too_large", 23), "wrong.xyz": ("extension", 1)}
