"""Run a command on a pseudo terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess

from app_env import AppEnv


def on_a_terminal(app_env: AppEnv, *words: str, **environment: str) -> tuple[int, str]:
    """Run a command with a terminal of 120 columns; return exit code and output."""
    app_env.write_config()
    near, far = pty.openpty()
    with subprocess.Popen(
        app_env.command(*words),
        env={**app_env.environment, "TERM": "xterm-256color", "COLUMNS": "120", **environment},
        stdin=subprocess.DEVNULL,
        stdout=far,
        stderr=subprocess.DEVNULL,
    ) as running:
        os.close(far)
        shown = b""
        while select.select([near], [], [], 60)[0]:
            try:
                block = os.read(near, 65536)
            except OSError:  # the other end was closed
                break
            if not block:
                break
            shown += block
        os.close(near)
        code = running.wait(10)
    return code, shown.decode()
