"""Run many short processes of the real program: forked from a loaded parent, killed at will or at a transition."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app_env import AppEnv

KILLED = -signal.SIGKILL


@dataclass
class ChildProcess:
    """Access one process."""

    process_pool: ProcessPool
    pid: int
    out: Path
    err: Path
    code: int | None = field(default=None)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: int) -> None:
        if self.code is None:
            os.kill(self.pid, number)  # not reaped before `poll`, so the pid is still valid

    def ended(self) -> bool:
        if self.code is None:
            self.code = self.process_pool.order({"poll": self.pid})
        return self.code is not None

    def wait(self, seconds: float = 100.0) -> int:
        """Return its exit code, negative for a signal. Kill it and fail at the deadline."""
        deadline = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                self.code = self.process_pool.order({"wait": self.pid})
                raise AssertionError(f"it did not end within {seconds} s:\n{self.text()[-3000:]}")
            time.sleep(0.005)  # polling interval
        assert self.code is not None
        return self.code

    def text(self) -> str:
        return self.err.read_text(errors="replace")

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found

    def ready(self, seconds: float = 30.0) -> ChildProcess:
        deadline = time.monotonic() + seconds
        while " ready " not in self.text():
            assert not self.ended(), self.text()[-3000:]
            assert time.monotonic() < deadline, self.text()[-3000:]
            time.sleep(0.005)  # polling interval
        return self


class ProcessPool:
    """Spawn processes; kill the running ones when it closes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started = 0
        self._fork_server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
                ),
            },
        )

    def order(self, wish: dict[str, Any]) -> Any:
        assert self._fork_server.stdin is not None
        assert self._fork_server.stdout is not None
        self._fork_server.stdin.write(json.dumps(wish) + "\n")
        self._fork_server.stdin.flush()
        return json.loads(self._fork_server.stdout.readline())

    def close(self) -> None:
        assert self._fork_server.stdin is not None
        self._fork_server.stdin.close()
        self._fork_server.wait(30)

    def spawn(
        self,
        app_env: AppEnv,
        *words: str,
        kill_at: tuple[str, int] | None = None,
        clock: Path | None = None,
        patience: float | None = None,
        senders: bool | tuple[str, float] = False,
        env: Mapping[str, str] | None = None,
        **extra: str,
    ) -> ChildProcess:
        """Start a docferry command in this environment; with `senders`, its sender processes are ready first.

        Each sender kills itself if `senders` is a point of `crash.killed_sender` and the seconds until another starts.
        """
        self._started += 1
        out, err = self.folder / f"{self._started}.out", self.folder / f"{self._started}.err"
        out.touch()
        err.touch()
        order = {
            "spawn": ["--config", str(app_env.write_config()), *words],
            "env": {**app_env.environment, **(env or {}), **extra},
            "out": str(out),
            "err": str(err),
            "kill_at": kill_at,
            "clock": str(clock) if clock else None,
            "patience": patience,
            "senders": senders,
        }
        return ChildProcess(self, self.order(order), out, err)

    def sync(self, app_env: AppEnv, *words: str, code: int | None = 0, **more: Any) -> dict[str, Any]:
        """Run one pass and return the object of `sync --json`."""
        child = self.spawn(app_env, "sync", "--json", *words, **more)
        ended = child.wait()
        assert code is None or ended == code, (ended, child.out.read_text(), child.text()[-3000:])
        return child.report()

    def drained(self, app_env: AppEnv, passes: int = 10) -> dict[str, Any]:
        """Run passes until nothing is due."""
        for _ in range(passes):
            report = self.sync(app_env, code=None)
            if not report["due"]:
                return report
        raise AssertionError(f"still due after {passes} passes: {report}")

    @contextmanager
    def daemon(self, app_env: AppEnv, **more: Any) -> Iterator[ChildProcess]:
        """Run `run` until the end of the context, then stop it if it still runs."""
        child = self.spawn(app_env, "run", **more)
        try:
            yield child.ready()
        finally:
            if not child.ended():
                child.signal(signal.SIGTERM)
            child.wait(45)
