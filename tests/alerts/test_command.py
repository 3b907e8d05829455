"""Test alerts by a program: it gets JSON on stdin, sees no secret, and is killed at its deadline."""

from __future__ import annotations

import json
import os
import shlex
import time
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from alerts.test_messages import item, message
from app_env import until
from docferry.alerts.receivers import DeliveryError, command, open_receiver
from docferry.clock import TurnableClock
from docferry.settings.alerts import ReceiverSettings

pytestmark = pytest.mark.anyio


async def run(*argv: str) -> None:
    settings = ReceiverSettings.model_validate({"name": "pager", "kind": "command", "command": list(argv)})
    await open_receiver(settings, TurnableClock()).send(message(item(summary="; touch /tmp/x `id` $(id)")))


async def shell(script: str) -> None:
    await run("/bin/sh", "-c", script)


async def test_a_program_gets_the_message_on_its_standard_input(tmp_path: Path) -> None:
    into = tmp_path / "message.json"
    await shell(f"cat > {shlex.quote(str(into))}")
    said = json.loads(into.read_text())
    assert said["alerts"][0]["labels"]["alertname"] == "held"
    assert said["alerts"][0]["annotations"]["summary"] == "; touch /tmp/x `id` $(id)"
    assert said["subject"].startswith("docferry on sftp-1")
    assert "Needs attention" in said["text"]


async def test_its_arguments_are_those_of_the_configuration(tmp_path: Path) -> None:
    into = tmp_path / "argv"
    await run("/bin/sh", "-c", 'printf "%s|" "$0" "$@" > ' + shlex.quote(str(into)), "a b", "c")
    assert into.read_text() == "a b|c|"


async def test_it_sees_no_secret_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CODAT_API_KEY", "DOCFERRY_ALERTS__OPS__PASSWORD", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"):
        monkeypatch.setenv(name, "canary")
    into = tmp_path / "environment"
    await shell(f"env > {shlex.quote(str(into))}")
    assert "canary" not in into.read_text()
    assert "PATH=" in into.read_text()


async def test_one_that_reads_nothing_is_no_trouble() -> None:
    await run("/bin/true")


async def test_one_that_fails_says_why() -> None:
    with pytest.raises(DeliveryError, match=r"/bin/sh ended with 3: no modem"):
        await shell("echo no modem >&2; head -c 1000000 /dev/zero >&2; exit 3")
    with pytest.raises(DeliveryError, match="cannot be started: No such file"):
        await run("/nowhere/pager")


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_one_that_does_not_end_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PROGRAM_TIMEOUT_S", 2.0)
    into = tmp_path / "pids"
    began = time.monotonic()
    with pytest.raises(DeliveryError, match="did not end within"):
        await shell(f"trap '' TERM; sleep 60 & echo $$ $! > {shlex.quote(str(into))}; wait; sleep 60")
    assert time.monotonic() - began < 40  # its children would last for 60 s
    for pid in map(int, into.read_text().split()):
        until(partial(ended, pid), what=f"the end of {pid}")


async def test_a_child_that_stays_holds_nothing_up(tmp_path: Path) -> None:
    into = tmp_path / "pid"
    with anyio.fail_after(40):
        await shell(f"sleep 60 & echo $! > {shlex.quote(str(into))}")
    os.kill(int(into.read_text()), 9)


async def test_a_stop_kills_it(tmp_path: Path) -> None:
    into = tmp_path / "pid"
    with anyio.move_on_after(40) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(shell, f"echo $$ > {shlex.quote(str(into))}; sleep 60")
            await anyio.to_thread.run_sync(until, lambda: into.exists() and into.read_text().strip())
            group.cancel_scope.cancel()
    assert not scope.cancelled_caught
    until(partial(ended, int(into.read_text())), what="its end")
