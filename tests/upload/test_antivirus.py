"""Test that nothing is sent before clamd passed it, whatever clamd replies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app_env import AppEnv, digest, until
from clamd_server import SIGNATURE, VIRUS, FakeClamd, clamd
from docferry import settings
from docferry.errors import ConfigError
from docferry.remotes import clamd as client
from upload.conftest import UploadEnv

pytestmark = pytest.mark.anyio


def scan_with(env: UploadEnv, setting: str, **more: str) -> Path:
    """Add a mapping whose documents are scanned, and another; return the folder of the first."""
    env.app_env.upload("other", dedupe='"file"')
    env.app_env.sections.append(f"[antivirus]\n{setting}")
    return env.app_env.upload("bank", antivirus="true", dedupe='"file"', **more)


def names(env: UploadEnv) -> list[str]:
    return sorted(each.name for each in env.simulator.stored)


def held(env: UploadEnv) -> dict[str, tuple[str, str]]:
    rows = env.app_env.rows("--state", "held")
    return {Path(row["path"]).name: (row["reason"], row["detail"]) for row in rows}


# -- Debian's clamd ----------------------------------------------------------------------------------------------------


async def test_an_infected_document_is_held_with_the_signature(env: UploadEnv, tmp_path: Path) -> None:
    with clamd(tmp_path / "clamd") as setting:
        folder = scan_with(env, setting)
        env.write_documents(
            folder, "clean.pdf", "large.pdf", content=lambda name: name.encode() * (60_000 if "l.p" in name else 1)
        )
        env.write_documents(folder, "infected.pdf", content=lambda _: b"x" * 700_000 + VIRUS)
        env.write_documents(folder, "small.pdf", content=lambda _: VIRUS)
        env.write_documents(folder, "huge.pdf", content=lambda _: b"h" * 1_500_000)
        counts = await env.run_daemon()
        assert (counts["sent"], counts["held"]) == (2, 3)
        assert names(env) == ["clean.pdf", "large.pdf"]
        found = held(env)
        assert {name: reason for name, (reason, _) in found.items()} == {
            "infected.pdf": "infected",
            "small.pdf": "infected",
            "huge.pdf": "unscanned",
        }
        assert SIGNATURE in found["infected.pdf"][1]
        assert "size limit exceeded" in found["huge.pdf"][1]
        env.app_env.run("retry", "--all")
        assert (await env.run_daemon())["held"] == 3
        assert names(env) == ["clean.pdf", "large.pdf"]
        done = env.app_env.run("check")
        assert "answers at unix:" in done.stdout


async def test_what_was_queued_before_is_scanned_too(env: UploadEnv, tmp_path: Path) -> None:
    folder = env.app_env.upload("bank")
    env.write_documents(folder, "a.pdf", content=lambda _: VIRUS)
    async with env.app() as app:
        assert await env.states(app) == {"waiting": 1}
    with clamd(tmp_path / "clamd") as setting:
        env.app_env.sections = [section + "\nantivirus = true" for section in env.app_env.sections]
        env.app_env.sections.append(f"[antivirus]\n{setting}")
        assert await env.run_daemon() == {"held": 1}
    assert names(env) == []


# -- a clamd that fails ------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_PING_EVERY_S", 0.2), ("_PING_S", 2.0), ("_SCAN_S", 4.0), ("_CONNECT_S", 4.0)):
        monkeypatch.setattr(client, name, seconds)


@pytest.fixture
def fake() -> Iterator[FakeClamd]:
    made = FakeClamd(reply=b"stream: OK\0")
    yield made
    made.close()


UNAVAILABLE = {
    "hangs": (None, False),
    "garbage": (b"HTTP/1.1 200 OK\r\n\r\nstream: OK\0", True),
    "cut": (b"stream: O", False),
    "closes": (b"", False),
    "two verdicts": (b"stream: OK\0stream: OK\0", True),
    "endless": (b"stream: " + b"O" * 9000, True),
    "empty": (b"\0", True),
}


@pytest.mark.parametrize("how", UNAVAILABLE)
@pytest.mark.usefixtures("quick")
async def test_without_a_verdict_nothing_is_sent_and_a_gate_is_closed(
    env: UploadEnv, fake: FakeClamd, how: str
) -> None:
    fake.reply, fake.pings = UNAVAILABLE[how]
    folder = scan_with(env, fake.setting)
    env.write_documents(folder, "a.pdf", "b.pdf")
    env.write_documents(env.app_env.root / "other", "c.pdf")
    async with env.app() as app:
        await env.run_until(app, lambda: "antivirus/bank" in app.gate_manager.closed and names(env) == ["c.pdf"])
        assert (await app.gates.all())["antivirus/bank"].reason == "antivirus"
    assert {row["state"] for row in env.app_env.rows("--mapping", "bank")} == {"waiting"}
    assert "clamd" in env.app_env.run("status").stdout
    fake.reply, fake.pings = b"stream: OK\0", True
    assert await env.run_daemon() == {"sent": 3}
    assert names(env) == ["a.pdf", "b.pdf", "c.pdf"]
    async with env.app() as app:
        assert await app.gates.all() == {}


@pytest.mark.usefixtures("quick")
async def test_clamd_that_is_away_delays_a_pass_and_nothing_else(env: UploadEnv, fake: FakeClamd) -> None:
    fake.close()
    folder = scan_with(env, fake.setting)
    env.write_documents(folder, "a.pdf")
    report = env.app_env.sync("--timeout", "5s", code=75)
    assert (report["uploaded"], report["held"], report["due"]) == (0, 0, 1)
    assert "clamd" in env.app_env.run("status").stdout
    back = FakeClamd(reply=b"stream: OK\0")
    env.app_env.sections[1] = f"[antivirus]\n{back.setting}"
    assert env.app_env.sync()["uploaded"] == 1, "a pass does not wait until the gate is due"
    back.close()
    env.app_env.sections[1] = f"[antivirus]\n{fake.setting}"
    done = env.app_env.run("check")
    assert (done.returncode, "start clamav-daemon" in " ".join(done.stdout.split())) == (75, True)


@pytest.mark.parametrize("reply", [None, b"stream: Can't allocate memory ERROR\0", b""])
@pytest.mark.usefixtures("quick")
async def test_a_document_that_clamd_fails_on_is_held(env: UploadEnv, fake: FakeClamd, reply: bytes | None) -> None:
    fake.reply = reply
    folder = scan_with(env, fake.setting)
    env.write_documents(folder, "a.pdf")
    assert await env.run_daemon() == {"held": 1}
    assert held(env)["a.pdf"][0] == "unscanned"
    assert names(env) == []


async def test_an_early_ok_is_no_verdict(env: UploadEnv, fake: FakeClamd) -> None:
    fake.takes = 1000
    env.app_env.sections.append(f"[antivirus]\n{fake.setting}")
    folder = env.app_env.upload("scans", to="wootiv", antivirus="true")
    env.write_documents(folder, "a.pdf", content=lambda _: b"a" * 20_000_000)
    async with env.app() as app:
        await env.run_uploads(app, lambda counts: bool(counts.get("held")) or bool(app.gate_manager.closed))
    assert env.app_env.stored() == {}


async def test_the_limits_of_clamd_are_no_virus(env: UploadEnv, fake: FakeClamd) -> None:
    fake.reply = b"stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND\0"
    folder = scan_with(env, fake.setting)
    env.write_documents(folder, "a.pdf")
    await env.run_daemon()
    assert held(env)["a.pdf"][0] == "unscanned"


async def test_a_document_above_max_size_is_not_even_asked_about(env: UploadEnv, fake: FakeClamd) -> None:
    folder = scan_with(env, fake.setting + "\nmax_size = 100")
    env.write_documents(folder, "a.pdf", content=lambda _: b"a" * 101)
    env.write_documents(folder, "b.pdf", content=lambda _: b"b" * 100)
    await env.run_daemon()
    assert held(env)["a.pdf"][0] == "unscanned"
    assert fake.scanned == [b"b" * 100]


async def test_the_bytes_that_are_scanned_are_the_bytes_that_are_sent(env: UploadEnv, fake: FakeClamd) -> None:
    folder = scan_with(env, fake.setting)
    env.write_documents(folder, *[f"{number}.pdf" for number in range(30)], content=lambda name: name.encode() * 40_000)
    env.app_env.codat["batch"] = "10"
    await env.run_daemon()
    stored = {each.sha256 for each in env.simulator.stored}
    assert stored == {digest(content) for content in fake.scanned}
    assert len(stored) == 30


async def test_a_file_that_changes_after_its_scan_is_not_sent(env: UploadEnv, fake: FakeClamd) -> None:
    """The large file is overwritten with equal length at the end of its scan."""
    folder = scan_with(env, fake.setting)
    path = folder / "a.pdf"
    env.write_documents(folder, "a.pdf", content=lambda _: b"a" * 3_000_000)

    class Overwriting(list[bytes]):
        def append(self, content: bytes) -> None:
            super().append(content)
            if len(self) == 1:
                path.write_bytes(b"b" * 3_000_000)

    fake.scanned = Overwriting()
    await env.run_daemon(lambda _: bool(env.simulator.stored))
    assert [each.sha256 for each in env.simulator.stored] == [digest(b"b" * 3_000_000)]
    assert [digest(content) for content in fake.scanned][-1] == digest(b"b" * 3_000_000)


async def test_the_gate_goes_with_the_setting(env: UploadEnv, fake: FakeClamd) -> None:
    fake.close()
    folder = scan_with(env, fake.setting)
    env.write_documents(folder, "a.pdf")
    async with env.app() as app:
        await env.run_until(app, lambda: "antivirus/bank" in app.gate_manager.closed)
    env.app_env.sections = [section.replace("antivirus = true", "") for section in env.app_env.sections]
    async with env.app() as app:
        assert await app.gates.all() == {}
        await env.run_uploads(app)
    assert names(env) == ["a.pdf"]


def test_the_daemon_goes_on_when_clamd_is_back(app_env: AppEnv, fake: FakeClamd) -> None:
    fake.reply, fake.pings = b"garbage\0", False
    app_env.sections.append(f"[antivirus]\n{fake.setting}")
    folder = app_env.upload("bank", antivirus="true")
    (folder / "a.pdf").write_bytes(b"a")
    with app_env.daemon() as daemon:
        until(lambda: "gate_closed" in daemon.text(), what="the gate")
        assert not app_env.simulator.stored
        fake.reply = b"stream: OK\0"
        until(lambda: app_env.simulator.stored, what="a.pdf being sent")


def test_a_mapping_needs_a_scanner(app_env: AppEnv) -> None:
    app_env.upload("bank", antivirus="true")
    with pytest.raises(ConfigError, match="clamd"):
        settings.load(app_env.write_config(), app_env.environment)
    for wrong in ("unix:clamd.ctl", "localhost", "127.0.0.1:0", "a/b:3310", "http://a:3310"):
        app_env.sections[1:] = [f'[antivirus]\nclamd = "{wrong}"']
        with pytest.raises(ConfigError, match=r"antivirus\.clamd"):
            settings.load(app_env.write_config(), app_env.environment)
