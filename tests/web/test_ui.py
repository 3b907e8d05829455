"""Test `docferry ui` and `docferry demo --page`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from app_env import AppEnv
from web.conftest import ask


def test_ui_says_what_is_missing(app_env: AppEnv) -> None:
    app_env.upload("bank")
    done = app_env.run("ui")
    assert done.returncode == 2
    assert "[web]" in done.stderr
    app_env.sections.append('[web]\nlisten = "127.0.0.1:0"')
    done = app_env.run("ui")
    assert done.returncode == 75
    assert "no daemon runs" in done.stderr


def test_a_listener_beyond_this_machine_is_refused(app_env: AppEnv) -> None:
    app_env.upload("bank")
    for listen in ("0.0.0.0:8025", "192.0.2.1:8025", "[::]:8025", ":8025", "8025", "unix:web.sock", "localhost:99999"):
        app_env.sections[1:] = [f'[web]\nlisten = "{listen}"']
        done = app_env.run("status")
        assert done.returncode == 2, listen
        assert "web.listen" in done.stderr
    app_env.sections[1:] = ['[web]\nlisten = "127.0.0.1:8025"\nlogin = false']
    assert "unknown key" in app_env.run("status").stderr


def lines(stream: IO[str]) -> Iterator[str]:
    while line := stream.readline():
        yield line


def test_the_demo_keeps_its_page_open_until_ctrl_c(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DOCFERRY_")}
    with subprocess.Popen(
        [sys.executable, "-m", "docferry", "demo", "--page"],
        env=environment | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    ) as demo:
        assert demo.stdout is not None
        link = next(found for line in lines(demo.stdout) if (found := re.search(r"http://([0-9.:]+)(/login\S+)", line)))
        assert ask(link[1], link[2]).status == 200
        link = next(found for line in lines(demo.stdout) if (found := re.search(r"http://([0-9.:]+)(/login\S+)", line)))
        reply = ask(link[1], link[2])
        cookie = reply.headers["set-cookie"].partition(";")[0]
        page = ask(link[1], "/", cookie=cookie).text
        assert "2 things need you" in page
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
    assert not list(tmp_path.glob("docferry-demo-*"))
