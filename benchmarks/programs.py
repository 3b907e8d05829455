"""Time complete programs from outside: wall time, user and system time, and peak memory."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
#: So often the size of a program and its children is read, seconds: a shorter peak is missed.
_GLANCE = 0.05


class Failed(Exception):
    """Report that a program failed."""


@dataclass(frozen=True, slots=True)
class Run:
    """Hold the cost of one program."""

    wall: float
    cpu: float
    peak: float  # MB
    said: str


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None, may_fail: bool = False) -> Run:
    """Run `command` to its end. Raises Failed with its output."""
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment(env),
        cwd=PROJECT,
    ) as program:
        watch = _Watch(program.pid)
        said: list[bytes] = []
        assert program.stdout is not None
        assert program.stderr is not None
        complaints: list[bytes] = []
        listener = threading.Thread(target=lambda: complaints.append(program.stderr.read() if program.stderr else b""))
        listener.start()
        said.append(program.stdout.read())
        listener.join()
        _, status, usage = os.wait4(program.pid, 0)
        wall = time.perf_counter() - began
        program.returncode = os.waitstatus_to_exitcode(status)
        peak = watch.stop()
    if program.returncode and not may_fail:
        text = b"".join([*said, *complaints]).decode("utf-8", "replace")
        raise Failed(f"{' '.join(command)} ended with {program.returncode}: {text[-2000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak, b"".join(said).decode("utf-8", "replace"))


class _Watch:
    """Reads the PSS of a program and of all its children while it lives; keeps the largest sum."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)  # a stop must not wait for it
        self._thread.start()

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self._peak

    def _look(self) -> None:
        while not self._over.wait(_GLANCE):
            self._peak = max(self._peak, sum(map(proportional_size, _tree(self._pid))))


def proportional_size(pid: int) -> float:
    """Return the PSS of a process, MB: shared pages count in part; 0 when it is gone."""
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
        return int(text.split("\nPss:", 1)[1].split(None, 1)[0]) / 1024
    return 0.0


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and all processes below it."""
    yield pid
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text(encoding="ascii").split():
                if _program(int(child)) != _program(pid):  # between vfork and exec they share one memory
                    yield from _tree(int(child))


def _program(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without proxies, as everything stays on loopback; and programs may keep their bytecode, as installed ones
    have it."""
    apart = ("_proxy", "pythondontwritebytecode")
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith(apart)}
    return kept | dict(more or {})


@dataclass(frozen=True, slots=True)
class Sink:
    """Access a running sink."""

    port: int
    pid: int
    front: str | None = None  # the address of a TLS server before it
    ca_file: Path | None = None  # the certificate of that server

    @property
    def url(self) -> str:
        return self.front or f"http://127.0.0.1:{self.port}"

    def figures(self) -> dict[str, Any]:
        return self._ask("GET")

    def reset(self) -> None:
        self._ask("DELETE")

    def _ask(self, method: str) -> dict[str, Any]:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            line.request(method, "/_sink")
            found: dict[str, Any] = json.loads(line.getresponse().read())
        finally:
            line.close()
        return found


@contextmanager
def sink(*arguments: str) -> Iterator[Sink]:
    """Run a sink during the context."""
    command = [sys.executable, "-m", "benchmarks.sink", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=PROJECT) as program:
        assert program.stdout is not None
        try:
            yield Sink(int(program.stdout.readline()), program.pid)
        finally:
            program.terminate()
