"""Test objects at Wootiv: each has the bytes of its current file, and versions arrive in order."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import anyio
import pytest

from app_env import digest
from docferry.model import State
from docferry.simulator import Fault
from postgresql_server import PostgresqlServer
from upload.conftest import UploadEnv, names_of

pytestmark = pytest.mark.anyio


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def objects(env: UploadEnv) -> dict[str, str]:
    """Return the digests by object name."""
    return {key: found.sha256 for (_, key), found in env.simulator.objects.items()}


def files(folder: Path) -> dict[str, str]:
    """Return the digests of the files in a folder, by path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in found}


async def carry(env: UploadEnv) -> dict[str, int]:
    return {state: count for state, count in (await env.run_daemon()).items() if count}


async def test_the_same_bytes_under_another_name_are_another_object(env: UploadEnv) -> None:
    """The mapping sends one form to two customers: no document without an object counts as sent."""
    folder = env.app_env.upload("scans", "wootiv")
    for name in ("acme/form.pdf", "globex/form.pdf", "copy.pdf"):
        write(folder / name, b"the form")
    assert await carry(env) == {State.SENT: 3}
    assert objects(env) == files(folder)


async def test_a_version_that_comes_back_is_sent_again(env: UploadEnv) -> None:
    folder = env.app_env.upload("scans", "wootiv")
    for content in (b"v1", b"v2 longer", b"v1"):
        write(folder / "a.pdf", content)
        await carry(env)
        assert objects(env) == files(folder)
    assert env.requests("s3.put") == 3


async def test_a_pass_without_a_change_sends_nothing(env: UploadEnv) -> None:
    folder = env.app_env.upload("scans", "wootiv")
    env.write_documents(folder, *names_of(3))
    await carry(env)
    os.utime(folder / "d1.pdf")
    await carry(env)
    assert env.requests("s3.put") == 3


@pytest.mark.parametrize("template", ["{date}/{name}", "{stem}~{token}{suffix}", "{mapping}/{sha256}/{name}"])
async def test_nor_does_a_touched_file_whose_object_name_changes(env: UploadEnv, template: str) -> None:
    folder = env.app_env.upload("scans", "wootiv", object_name=f'"{template}"')
    env.write_documents(folder, *names_of(3))
    await carry(env)
    os.utime(folder / "d1.pdf")
    assert await carry(env) == {State.SENT: 3}
    assert env.requests("s3.put") == 3


async def test_rotated_names_follow_their_bytes(env: UploadEnv) -> None:
    """report.1 becomes report.2, and a new report.1 is written."""
    folder = env.app_env.upload("scans", "wootiv")
    write(folder / "report.1", b"monday")
    await carry(env)
    for content in (b"tuesday", b"wednesday"):
        for number in (2, 1):
            if (folder / f"report.{number}").exists():
                (folder / f"report.{number}").rename(folder / f"report.{number + 1}")
        write(folder / "report.1", content)
        await carry(env)
        assert objects(env) == files(folder)


async def test_swapped_names_are_swapped_there_too(env: UploadEnv) -> None:
    folder = env.app_env.upload("scans", "wootiv")
    write(folder / "a.pdf", b"alpha")
    write(folder / "b.pdf", b"beta")
    for _ in range(2):
        await carry(env)
        (folder / "a.pdf").rename(folder / "c")
        (folder / "b.pdf").rename(folder / "a.pdf")
        (folder / "c").rename(folder / "b.pdf")
        await carry(env)
        assert objects(env) == files(folder)


async def test_a_renamed_folder_has_its_objects_under_its_new_name(env: UploadEnv) -> None:
    folder = env.app_env.upload("scans", "wootiv")
    env.write_documents(folder, "2025/a.pdf", "2025/b.pdf")
    await carry(env)
    (folder / "2025").rename(folder / "2026")
    await carry(env)
    found = objects(env)
    assert {name: found[name] for name in files(folder)} == files(folder)


# -- names that collide --


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"M\xfcller.pdf", b"M\xf6ller.pdf"),
        (b"a\tb.pdf", b"a_b.pdf"),
        (b"Scan.pdf", b"scan.PDF"),
        (b"x/a.pdf", b"y/a.pdf"),
    ],
)
async def test_the_second_file_of_one_object_is_held(env: UploadEnv, first: bytes, second: bytes) -> None:
    template = "{name}" if b"/" in first else "{path}"
    folder = env.app_env.upload("scans", "wootiv", object_name=f'"{template}"')
    for number, name in enumerate((first, second)):
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))  # noqa: PTH118 - names of bytes
        write(path, b"one" if number == 0 else b"another")
        await carry(env)
    async with env.app() as app:
        counts = await env.states(app)
        assert (counts[State.SENT], counts[State.HELD]) == (1, 1)
        (row,) = await app.reports.by_path("scans", second)
        assert row.reason == "name_taken"
    assert list(objects(env).values()) == [digest(b"one")]


async def test_two_mappings_with_one_name_do_not_overwrite_each_other(env: UploadEnv) -> None:
    for name in ("east", "west"):
        write(env.app_env.upload(name, "wootiv") / "a.pdf", name.encode())
    counts = await carry(env)
    assert counts == {State.SENT: 1, State.HELD: 1}
    assert len(objects(env)) == 1
    before = objects(env)
    assert await carry(env) == counts
    assert objects(env) == before


async def test_a_held_name_goes_when_it_is_free(env: UploadEnv) -> None:
    first, second = env.app_env.upload("east", "wootiv"), env.app_env.upload("west", "wootiv")
    write(first / "a.pdf", b"east")
    write(first / "other.pdf", b"other")
    await carry(env)
    write(second / "a.pdf", b"west")
    assert (await carry(env))[State.HELD] == 1
    (first / "a.pdf").unlink()
    async with env.app() as app:
        await app.scan_scheduler.round()  # the one that finds it free
        await env.run_uploads(app)
    assert objects(env)["a.pdf"] == digest(b"west")


# -- in order --


async def test_a_slow_version_never_arrives_after_a_newer_one(env: UploadEnv) -> None:
    folder = env.app_env.upload("scans", "wootiv")
    write(folder / "a.pdf", b"1" * 100_000)
    env.inject(Fault("slow_read", "s3.put", first=1, params={"rate": 100_000}))
    async with env.app() as app, anyio.create_task_group() as group:
        await group.start(app.scheduler.run)
        with anyio.fail_after(60):
            while env.requests("s3.put") == 0:
                await app.scan_scheduler.serve_hints()
                await anyio.sleep(0.01)  # between two looks
        write(folder / "a.pdf", b"2" * 1000)
        await app.scan_scheduler.round()
        with anyio.fail_after(60):
            while objects(env) != files(folder) or app.scheduler.is_busy:
                await app.scan_scheduler.serve_hints()
                await anyio.sleep(0.02)  # between two looks
        app.scheduler.stop()
    assert objects(env) == files(folder)


@pytest.mark.parametrize("late", [0.0, 0.8])
async def test_a_doubtful_version_never_arrives_after_a_newer_one(env: UploadEnv, late: float) -> None:
    """The response for v1 is lost and v1 is stored late; v2 is written meanwhile."""
    folder = env.app_env.upload("scans", "wootiv")
    write(folder / "a.pdf", b"version 1")
    env.inject(Fault("lost_answer", "s3.put", first=1, params={"late": late}))
    async with env.app() as app:
        await env.run_until(app, lambda: env.requests("s3.put") >= 1 and not app.scheduler.is_busy)
    write(folder / "a.pdf", b"version 2")
    await carry(env)
    await anyio.sleep(late)
    assert objects(env) == files(folder)


# -- Codat --


async def test_a_name_that_goes_once_holds_another_version(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank", dedupe='"name"')
    write(folder / "a.pdf", b"one")
    assert await carry(env) == {State.SENT: 1}
    write(folder / "a.pdf", b"two, another version")
    assert await carry(env) == {State.HELD: 1}
    async with env.app() as app:
        row = next(row for row in await app.reports.by_path("bank", b"a.pdf") if row.state == "held")
        assert row.reason == "name_taken"
    assert [stored.content for stored in env.simulator.stored] == [b"one"]


async def test_the_same_bytes_go_once_under_each_name(env: UploadEnv) -> None:
    folder = env.app_env.upload("bank", dedupe='"file"')
    for name in ("x/a.pdf", "y/a.pdf", "b.pdf"):
        write(folder / name, b"the form")
    assert await carry(env) == {State.SENT: 3}
    assert sorted(stored.name for stored in env.simulator.stored) == ["a.pdf", "b.pdf"]


# -- the configuration of the last moment --


@pytest.mark.parametrize("rule", ['exclude = ["a*"]', 'include = ["b*"]', 'max_size = "3"'])
@pytest.mark.parametrize("to", ["codat", "wootiv"])
async def test_a_queued_document_that_the_configuration_leaves_out_is_gone(env: UploadEnv, to: str, rule: str) -> None:
    """The remote is down; then a rule excludes the document; the remote returns."""
    folder = env.app_env.upload("bank", to)
    write(folder / "a.pdf", b"alpha")
    write(folder / "b.pdf", b"b")
    env.inject(Fault("status", "*", params={"status": 503}))
    await env.run_daemon(lambda _: sum(env.simulator.requests.values()) >= 3)
    env.inject()
    env.app_env.sections[0] += f"\n{rule}"
    await env.run_daemon()
    names = [stored.name for stored in env.simulator.stored if stored.remote == "codat"] + list(objects(env))
    assert names == ["b.pdf"]


@pytest.mark.parametrize("batch", [1, 5])
async def test_documents_go_through_wootiv_itself(env: UploadEnv, batch: int) -> None:
    folder = env.app_env.upload("scans", "wootiv", via='"direct"')
    env.app_env.wootiv["batch"] = str(batch)
    for number in range(10):
        write(folder / f"{number % 2}/{number}.pdf", b"%d" % number)
    assert await carry(env) == {State.SENT: 10}
    assert objects(env) == files(folder)
    assert env.requests("s3.put") == 0
    assert (env.requests("wootiv.bulk") >= 2) == (batch > 1)


@pytest.mark.parametrize("route", ["wootiv.bulk", "s3.get"])
@pytest.mark.parametrize("kind", ["reset_after", "lost_answer", "status"])
async def test_a_direct_upload_survives_every_answer(env: UploadEnv, kind: str, route: str) -> None:
    """Lost answers and errors, of the upload and of its proof: at the end each object has its bytes."""
    folder = env.app_env.upload("scans", "wootiv", via='"direct"')
    env.app_env.wootiv["batch"] = "5"
    env.inject(Fault(kind, route, first=3, params={"status": 500} if kind == "status" else {}))
    env.write_documents(folder, *names_of(12))
    assert await carry(env) == {State.SENT: 12}
    assert objects(env) == files(folder)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_name_too_long_for_an_index_is_planned_like_any_other(
    env: UploadEnv, request: pytest.FixtureRequest, database: str
) -> None:
    """The remote decides on it, and no customer raises an alarm of the database."""
    if database == "postgresql":
        server: PostgresqlServer = request.getfixturevalue("postgresql_server")
        env.app_env.settings["database_url"] = f'"{server.new_database()}"'
    folder = env.app_env.upload("scans", "wootiv", object_name='"{path}"')
    long = "/".join(secrets.token_urlsafe(180) for _ in range(14))
    env.write_documents(folder, "a.pdf", f"{long}/b.pdf", f"{long}/c.pdf")
    async with env.app() as app:
        assert await env.run_uploads(app) == {State.SENT: 3}
        assert app.database.alarm is None
    assert objects(env) == files(folder)
