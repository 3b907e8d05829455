"""The real program in many short lives: born from a warm parent, killed at will or at an arrow of its own."""

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
class Life:
    """One process."""

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
            os.kill(self.pid, number)  # it is not reaped before we ask, so the number is still its own

    def ended(self) -> bool:
        if self.code is None:
            self.code = self.process_pool.order({"dead": self.pid})
        return self.code is not None

    def wait(self, seconds: float = 100.0) -> int:
        """Its exit code, negative for a signal; killed when it does not come."""
        deadline = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                self.code = self.process_pool.order({"death": self.pid})
                raise AssertionError(f"it did not end within {seconds} s:\n{self.text()[-3000:]}")
            time.sleep(0.005)  # between two looks at a process
        assert self.code is not None
        return self.code

    def text(self) -> str:
        return self.err.read_text(errors="replace")

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found

    def ready(self, seconds: float = 30.0) -> Life:
        deadline = time.monotonic() + seconds
        while " ready " not in self.text():
            assert not self.ended(), self.text()[-3000:]
            assert time.monotonic() < deadline, self.text()[-3000:]
            time.sleep(0.005)  # between two looks at a log
        return self


class ProcessPool:
    """Bears processes; whatever still lives when it closes is killed with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._born = 0
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

    def bear(
        self,
        app_env: AppEnv,
        *words: str,
        fate: tuple[str, int] | None = None,
        clock: Path | None = None,
        patience: float | None = None,
        env: Mapping[str, str] | None = None,
        **extra: str,
    ) -> Life:
        """A docferry command on this ground."""
        self._born += 1
        out, err = self.folder / f"{self._born}.out", self.folder / f"{self._born}.err"
        out.touch()
        err.touch()
        order = {
            "birth": ["--config", str(app_env.write_config()), *words],
            "env": {**app_env.environment, **(env or {}), **extra},
            "out": str(out),
            "err": str(err),
            "fate": fate,
            "clock": str(clock) if clock else None,
            "patience": patience,
        }
        return Life(self, self.order(order), out, err)

    def sync(self, app_env: AppEnv, *words: str, code: int | None = 0, **more: Any) -> dict[str, Any]:
        """A whole pass: what `sync --json` prints."""
        life = self.bear(app_env, "sync", "--json", *words, **more)
        ended = life.wait()
        assert code is None or ended == code, (ended, life.out.read_text(), life.text()[-3000:])
        return life.report()

    def drained(self, app_env: AppEnv, passes: int = 10) -> dict[str, Any]:
        """Passes until nothing is due."""
        for _ in range(passes):
            report = self.sync(app_env, code=None)
            if not report["due"]:
                return report
        raise AssertionError(f"still due after {passes} passes: {report}")

    @contextmanager
    def daemon(self, app_env: AppEnv, **more: Any) -> Iterator[Life]:
        """`run`, ready; asked to end afterwards, if it still lives."""
        life = self.bear(app_env, "run", **more)
        try:
            yield life.ready()
        finally:
            if not life.ended():
                life.signal(signal.SIGTERM)
            life.wait(45)
