"""Test the Python interface and `docferry put`: stored once `put` returns, sent once, even after a kill."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from app_env import AppEnv, digest, files_below, until
from docferry.client import Queue
from docferry.errors import ConfigError
from docferry.files import outbox
from docferry.model import State
from docferry.simulator import Fault
from docferry.upload.after_upload import GATHER_S
from postgresql_server import PostgresqlServer

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@pytest.fixture
def keys(app_env: AppEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in app_env.environment.items():
        if key.endswith("_API_KEY"):
            monkeypatch.setenv(key, value)


@asynccontextmanager
async def running(app_env: AppEnv) -> AsyncIterator[Queue]:
    async with Queue.open(app_env.write_config()) as queue, queue.sending():
        yield queue


def files(app_env: AppEnv) -> list[Path]:
    """Return the documents in all outboxes, but the half stored ones of killed processes, which are swept later."""
    return [path for path in files_below(app_env.state / "outbox") if outbox.STAGING_PREFIX not in str(path)]


async def removed(app_env: AppEnv) -> None:
    """Wait until the outboxes are empty: a document's bytes are removed after its receipt was committed."""
    while files(app_env):  # noqa: ASYNC110 - the files have no event for it
        await anyio.sleep(0.01)  # polling interval


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("remote", ["codat", "wootiv"])
async def test_what_is_put_is_sent_once_and_its_bytes_are_removed(app_env: AppEnv, remote: str) -> None:
    app_env.upload("acme", remote)
    async with running(app_env) as queue:
        with anyio.fail_after(60):
            ids = [await queue.put("acme", f"2026/{number}.pdf", b"%d" % number) for number in range(5)]
            found = [await queue.wait(each) for each in ids]
            assert {each.state for each in found} == {State.SENT}
            await removed(app_env)
    names = {f"{number}.pdf" if remote == "codat" else f"2026/{number}.pdf" for number in range(5)}
    assert {name for name, _ in app_env.stored()} == names
    assert set(app_env.stored().values()) == {1}


@pytest.mark.usefixtures("keys")
async def test_a_file_is_read_to_its_end_and_the_same_bytes_go_once(app_env: AppEnv) -> None:
    app_env.upload("acme")
    content = os.urandom(1_500_000)
    async with running(app_env) as queue:
        with anyio.fail_after(60):
            first = await queue.put("acme", "a.pdf", io.BytesIO(content))
            second = await queue.put("acme", "b.pdf", content)
            assert first != second
            assert {(await queue.wait(each)).state for each in (first, second)} == {State.SENT}
    assert list(app_env.stored().items()) == [(("a.pdf", digest(content)), 1)]


@pytest.mark.usefixtures("keys")
async def test_two_documents_of_one_name_both_go_to_codat(app_env: AppEnv) -> None:
    app_env.upload("acme")
    async with running(app_env) as queue:
        with anyio.fail_after(60):
            for content in (b"one", b"two"):
                assert (await queue.wait(await queue.put("acme", "a.pdf", content))).state is State.SENT
    assert app_env.stored() == {("a.pdf", digest(b"one")): 1, ("a.pdf", digest(b"two")): 1}


@pytest.mark.usefixtures("keys")
async def test_an_object_has_the_bytes_that_were_put_last(app_env: AppEnv) -> None:
    app_env.upload("scans", "wootiv")
    app_env.simulator.set_faults([Fault("slow_answer", "s3.put", params={"rate": 200})])
    async with running(app_env) as queue:
        with anyio.fail_after(60):
            ids = [await queue.put("scans", "a.pdf", b"version %d" % number) for number in range(4)]
            found = [await queue.wait(each) for each in ids]
            await removed(app_env)
    assert found[-1].state is State.SENT
    assert {each.state for each in found} <= {State.SENT, State.GONE}
    assert app_env.stored() == {("a.pdf", digest(b"version 3")): 1}


@pytest.mark.usefixtures("keys")
async def test_rules_of_the_mapping_hold(app_env: AppEnv) -> None:
    app_env.upload("acme", include='["*.pdf"]', max_size="10")
    async with running(app_env) as queue:
        with anyio.fail_after(60):
            held = await queue.wait(await queue.put("acme", "a.pdf", b"more than ten bytes"))
            assert (held.state, held.reason) == (State.HELD, "too_large")
            for name, said in [("a.csv", "leave it out"), ("../a.pdf", "not the name"), (".a.pdf", "leave it out")]:
                with pytest.raises(ConfigError, match=said):
                    await queue.put("acme", name, b"x")
            with pytest.raises(ConfigError, match="no upload mapping"):
                await queue.put("other", "a.pdf", b"x")
    assert len(files(app_env)) == 1
    assert not app_env.stored()


@pytest.mark.usefixtures("keys")
async def test_a_path_names_the_company_where_the_folder_has_placeholders(app_env: AppEnv) -> None:
    company, connection = "8a210b68-6988-11ed-a1eb-0242ac120002", "2e9d2c44-f675-40ba-8049-353bfcb5e171"
    app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    async with running(app_env) as queue:
        with anyio.fail_after(60):
            document = await queue.put("customers", f"{company}/{connection}/a.pdf", b"x")
            assert (await queue.wait(document)).state is State.SENT
            with pytest.raises(ConfigError, match="lies above the folder"):
                await queue.put("customers", "a.pdf", b"x")
    assert [(each.company, each.name) for each in app_env.simulator.stored] == [(company, "a.pdf")]


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("remote", ["codat", "wootiv"])
async def test_a_queue_in_postgresql_takes_documents(
    app_env: AppEnv, remote: str, postgresql_server: PostgresqlServer
) -> None:
    """One application puts a document and ends; another one sends it, with a later document of the same name."""
    app_env.settings["database_url"] = f'"{postgresql_server.new_database()}"'
    app_env.upload("acme", remote)
    with anyio.fail_after(40):
        async with Queue.open(app_env.write_config()) as queue:
            await queue.put("acme", "a.pdf", b"one")
        async with running(app_env) as queue:
            later = await queue.put("acme", "a.pdf", b"two")
            assert (await queue.wait(later)).state is State.SENT
            await anyio.to_thread.run_sync(lambda: until(lambda: not files(app_env), what="the bytes being removed"))
    expected = {("a.pdf", digest(content)): 1 for content in (b"one", b"two")}
    if remote == "wootiv":
        del expected["a.pdf", digest(b"one")]
    assert app_env.stored() == expected


@pytest.mark.usefixtures("keys")
async def test_a_later_version_is_not_held_while_the_earlier_is_removed(app_env: AppEnv) -> None:
    """Later versions come at many moments of the removal, which begins 0.2 s after the receipt."""
    app_env.upload("acme", "wootiv")
    found: list[State] = []

    async def both(queue: Queue, number: int) -> None:
        await queue.wait(await queue.put("acme", f"{number}.pdf", b"one"))
        await anyio.sleep(GATHER_S - 0.1 + number * 0.005)  # the moment is what the test varies
        found.append((await queue.wait(await queue.put("acme", f"{number}.pdf", b"two"))).state)

    with anyio.fail_after(60):
        async with running(app_env) as queue, anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(both, queue, number)
    assert found == [State.SENT] * 60
    assert app_env.stored() == {(f"{number}.pdf", digest(b"two")): 1 for number in range(60)}


@pytest.mark.usefixtures("keys")
async def test_a_stop_lets_the_request_in_flight_finish(app_env: AppEnv) -> None:
    app_env.upload("acme")
    app_env.settings["workers"] = "1"
    app_env.simulator.options.latency = 0.5
    with anyio.fail_after(20):
        async with running(app_env) as queue:
            first = await queue.put("acme", "a.pdf", b"a")
            await anyio.to_thread.run_sync(
                lambda: until(lambda: app_env.simulator.requests["codat.upload"], what="the request")
            )
            second = await queue.put("acme", "b.pdf", b"b")
        async with Queue.open(app_env.write_config()) as queue:
            found = [await queue.get(each) for each in (first, second)]
    assert [each.state for each in found if each] == [State.SENT, State.WAITING]
    assert [path.name for path in files(app_env)] == ["b.pdf"]


@pytest.mark.usefixtures("keys")
async def test_a_cancelled_run_leaves_a_doubt_that_the_next_one_resolves(app_env: AppEnv) -> None:
    app_env.upload("acme")
    app_env.simulator.set_faults([Fault("stall", "codat.upload", params={"stored": True, "seconds": 60})])
    with anyio.fail_after(30):
        with anyio.CancelScope() as scope:
            async with running(app_env) as queue:
                document = await queue.put("acme", "a.pdf", b"a")
                await anyio.to_thread.run_sync(lambda: until(lambda: app_env.simulator.stored, what="the upload"))
                scope.cancel()
                await anyio.sleep_forever()
        async with Queue.open(app_env.write_config()) as queue:
            cut = await queue.get(document)
            assert cut is not None
            assert cut.state is State.DOUBTFUL
        app_env.simulator.set_faults([])
        async with running(app_env) as queue:
            assert (await queue.wait(document)).state is State.SENT
    assert app_env.stored() == {("a.pdf", digest(b"a")): 1}


@pytest.mark.usefixtures("keys")
async def test_an_error_of_the_application_is_raised_as_it_is(app_env: AppEnv) -> None:
    app_env.upload("acme")

    async def application() -> None:
        async with running(app_env) as queue:
            await queue.wait(await queue.put("acme", "a.pdf", b"a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await application()
    assert app_env.stored() == {("a.pdf", digest(b"a")): 1}


@pytest.mark.usefixtures("keys")
async def test_a_missing_key_is_told_and_a_queue_runs_once(app_env: AppEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    app_env.upload("acme")
    async with running(app_env) as queue:
        queue.stop()
        with pytest.raises(RuntimeError, match="open it again"):
            await queue.run()
    monkeypatch.delenv("CODAT_API_KEY")
    with pytest.raises(ConfigError, match="api_key"):
        async with running(app_env):
            await anyio.sleep_forever()


@pytest.mark.usefixtures("keys")
async def test_a_daemon_sends_what_others_put(app_env: AppEnv) -> None:
    app_env.upload("acme")
    with app_env.daemon():
        async with Queue.open(app_env.write_config()) as queue:
            with anyio.fail_after(60):
                assert (await queue.wait(await queue.put("acme", "a.pdf", b"x"))).state is State.SENT
        until(lambda: not files(app_env), what="the bytes being removed")


#: The command, with the peak of its memory in kB as the last line.
_MEASURED = """
import re, sys
from docferry.cli.main import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def test_standard_input_of_any_size_is_streamed(app_env: AppEnv) -> None:
    app_env.upload("scans", "wootiv")
    app_env.write_config()
    block, blocks = os.urandom(1_000_000), 192
    words = app_env.command("put", "scans", "-", "--name", "large.bin")[3:]
    with subprocess.Popen(
        [sys.executable, "-c", _MEASURED, *words],
        env=app_env.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as put:
        assert put.stdin is not None
        assert put.stdout is not None
        for _ in range(blocks):
            put.stdin.write(block)
        put.stdin.close()
        said = put.stdout.read().split()
    assert put.returncode == 0
    assert [path.stat().st_size for path in files(app_env)] == [len(block) * blocks]
    assert int(said[-1]) * 1024 < len(block) * blocks * 3 // 4


def test_the_command_puts_files_and_standard_input(app_env: AppEnv) -> None:
    app_env.upload("acme")
    (app_env.root / "a.pdf").write_bytes(b"a")
    config = app_env.write_config()
    done = app_env.run("put", "acme", str(app_env.root / "a.pdf"), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["name"] == "a.pdf"
    piped = subprocess.run(
        app_env.command("put", "acme", "-", "--name", "b.pdf"), input=b"b", env=app_env.environment, check=True
    )
    assert piped.returncode == 0
    (row,) = [row for row in app_env.rows() if row["path"].endswith(said["id"])]
    assert (row["mapping"], row["state"]) == ("acme (put)", "waiting")
    assert app_env.run("show", row["path"]).returncode == 0
    assert app_env.sync()["uploaded"] == 2
    assert {name for name, _ in app_env.stored()} == {"a.pdf", "b.pdf"}
    assert not files(app_env)
    assert config.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("other", "/dev/null"), "no upload mapping"),
        (("acme", "-"), "--name"),
        (("acme", "a.pdf", "b.pdf", "--name", "c.pdf"), "one file"),
        (("acme", "/nowhere/a.pdf"), "cannot be read"),
    ],
)
def test_wrong_words_are_told(app_env: AppEnv, words: tuple[str, ...], said: str) -> None:
    app_env.upload("acme")
    done = app_env.run("put", *words)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_check_names_documents_of_a_mapping_that_was_removed(app_env: AppEnv) -> None:
    app_env.upload("acme")
    (app_env.root / "a.pdf").write_bytes(b"a")
    assert app_env.run("put", "acme", str(app_env.root / "a.pdf")).returncode == 0
    assert "not configured" not in app_env.run("check", "--offline").stdout
    app_env.sections.clear()
    app_env.upload("other")
    assert "1 document in" in app_env.run("check", "--offline").stdout


def test_the_example_of_the_documentation_runs(app_env: AppEnv) -> None:
    app_env.upload("acme")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    script = app_env.root / "example.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, script, app_env.write_config(), "acme"],
        env=app_env.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.count("sent")) == (0, 3), done.stderr
    assert len(app_env.stored()) == 3


# -- kills -----------------------------------------------------------------------------------------------------------
