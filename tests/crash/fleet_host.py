"""One host of the fleet: its daemon, which runs in a namespace and is killed, stopped and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from app_env import AppEnv

#: Part of a daemon's log record that says that it is ready.
READY = " ready "


@dataclass
class Host:
    """One host: its namespace, its folder, and its daemon."""

    name: str
    namespace: str
    app_env: AppEnv
    url: str
    skew: int
    senders: int
    process: subprocess.Popen[bytes] | None = None
    started_at: int = 0  # length of the log

    def start(self) -> None:
        mine = {"DOCFERRY_DATABASE_URL": self.url, "DOCFERRY_HOST": self.name}
        python, _, _, *words = self.app_env.command("run")
        program = str(Path(__file__).with_name("skewed.py"))
        skewed = [python, program, str(self.skew), "senders" if self.senders else "", *words]
        with self.log.open("ab") as log:
            self.started_at = log.tell()
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *skewed],
                env={**self.app_env.environment, **mine},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> Path:
        return self.app_env.root / f"{self.name}.log"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the daemon and to its senders, as if the machine was stopped."""
        if self.process is not None:
            for sender in self.sender_pids():
                _signal(sender, number)
            self.process.send_signal(number)

    def kill_senders(self) -> None:
        """Kill the senders alone; the daemon goes on."""
        for sender in self.sender_pids():
            _signal(sender, signal.SIGKILL)

    def sender_pids(self) -> list[int]:
        if self.process is None:
            return []
        listed = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(child) for children in listed for child in _text(children).split()]

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def mend(self) -> str | None:
        """Start a daemon that has ended, as systemd does. Return what is wrong with its end, or None."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        with self.log.open("rb") as source:
            source.seek(self.started_at)
            said = source.read().decode("utf-8", "replace")
        self.start()
        if code == 75 and READY not in said:
            return None  # the database was away at its start
        return f"{self.name} ended with {code}: {said[-1500:]}"


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(process, number)


def _text(file: Path) -> str:
    """Return a file of /proc; nothing when its thread has ended meanwhile."""
    try:
        return file.read_text()
    except OSError:
        return ""
