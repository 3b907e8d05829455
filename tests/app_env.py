"""Provide an environment for tests of the whole program: folders, a configuration, a simulator, the real command."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docferry.simulator import Simulator, SimulatorThread

COMPANY = "8a210b68-6988-11ed-a1eb-0242ac120002"
CONNECTION = "2e9d2c44-f675-40ba-8049-353bfcb5e171"


def until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "it") -> Any:
    """Poll a condition until it is true and return its value. Raises AssertionError at the deadline."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        time.sleep(0.01)  # polling interval
    return found


def files_below(folder: Path) -> list[Path]:
    """Return the files below a folder. Unlike `rglob`, skips folders that another process removes meanwhile."""
    return [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]


@dataclass
class AppEnv:
    """Provide the files and programs of one test."""

    root: Path
    simulator_thread: SimulatorThread
    settings: dict[str, str] = field(default_factory=dict)  # top-level lines of the configuration
    sections: list[str] = field(default_factory=list)
    codat: dict[str, str] = field(default_factory=dict)
    wootiv: dict[str, str] = field(default_factory=dict)
    config_name: str = "docferry.toml"

    @property
    def simulator(self) -> Simulator:
        return self.simulator_thread.simulator

    @property
    def state(self) -> Path:
        return self.root / "state"

    def upload(self, name: str, to: str = "codat", *, folder: str | None = None, **extra: str) -> Path:
        """Add a mapping and return its folder. Extra values are TOML as written."""
        path = self.root / (folder or name)
        if "{" not in str(path):
            path.mkdir(parents=True, exist_ok=True)
        lines = [f'name = "{name}"', f'folder = "{path}"', f'to = "{to}"']
        if to == "codat" and "{" not in str(path):
            lines += [f'company_id = "{COMPANY}"', f'connection_id = "{CONNECTION}"']
        lines += [f"{key} = {value}" for key, value in extra.items()]
        self.sections.append("[[upload]]\n" + "\n".join(lines))
        return path

    def download(self, name: str, source: str = "codat", **extra: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        lines = [f'name = "{name}"', f'folder = "{path}"', f'from = "{source}"']
        lines += [f"{key} = {value}" for key, value in extra.items()]
        self.sections.append("[[download]]\n" + "\n".join(lines))
        return path

    def write_config(self) -> Path:
        settings = {
            "state_dir": f'"{self.state}"',
            "settle": '"200ms"',
            "rescan": '"2s"',
            "log_level": '"debug"',
            "log_format": '"text"',
            **self.settings,
        }
        codat = {"list_lag": '"300ms"', "requests_per_minute": "100000", "timeout": '"5s"', **self.codat}
        text = "\n".join(f"{key} = {value}" for key, value in settings.items())
        text += '\n[retry]\ninitial = "50ms"\nmax = "500ms"\n'
        text += f'[codat]\nbase_url = "{self.simulator_thread.url}"\n' + "\n".join(
            f"{k} = {v}" for k, v in codat.items()
        )
        wootiv = {"base_url": f'"{self.simulator_thread.url}"', "timeout": '"5s"', **self.wootiv}
        text += "\n[wootiv]\n" + "\n".join(f"{k} = {v}" for k, v in wootiv.items())
        text += "\n\n" + "\n\n".join(self.sections) + "\n"
        path = self.root / self.config_name
        if not path.exists() or path.read_text() != text:  # a command that is starting may be reading it
            path.write_text(text)
        return path

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("DOCFERRY_")}
        options = self.simulator.options
        return {**kept, "CODAT_API_KEY": options.codat_key, "WOOTIV_API_KEY": options.wootiv_key}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "docferry", "--config", str(self.root / self.config_name), *words]

    def run(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a docferry command to its end."""
        self.write_config()
        return subprocess.run(
            self.command(*words),
            env={**self.environment, **extra},
            capture_output=True,
            text=True,
            timeout=100.0,
            check=False,
        )

    def sync(self, *words: str, code: int | None = 0, **extra: str) -> dict[str, Any]:
        """Run `sync --json` and return its object."""
        done = self.run("sync", "--json", *words, **extra)
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr[-3000:])
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """Return the rows of `list --json`."""
        done = self.run("list", "--json", *words)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    @contextmanager
    def daemon(self, *, wait: bool = True) -> Iterator[Daemon]:
        """Run `docferry run`; stop it with SIGTERM at the end."""
        daemon = Daemon(self)
        try:
            if wait:
                daemon.wait_ready()
            yield daemon
        finally:
            daemon.end()

    # -- the remotes -----------------------------------------------------------------------------------------------

    def stored(self) -> Counter[tuple[str, str]]:
        """Return name and digest of everything that the remotes have, with counts."""
        held = Counter((each.name, each.sha256) for each in self.simulator.stored if each.remote == "codat")
        held.update((key, found.sha256) for (_, key), found in list(self.simulator.objects.items()))
        return held


class Daemon:
    """Access a running `docferry run`."""

    def __init__(self, app_env: AppEnv) -> None:
        app_env.write_config()
        self.app_env = app_env
        self.log = app_env.root / "daemon.log"
        with self.log.open("ab") as sink:
            self.started = sink.tell()
            self.running = subprocess.Popen(
                app_env.command("run"), env=app_env.environment, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL
            )

    def text(self) -> str:
        """Return its log so far."""
        with self.log.open("rb") as source:
            source.seek(self.started)
            return source.read().decode("utf-8", "replace")

    def wait_ready(self, seconds: float = 60.0) -> None:
        def ready() -> bool:
            assert self.running.poll() is None, self.text()[-3000:]
            return " ready " in self.text()

        until(ready, seconds, "the daemon being ready")

    def kill(self) -> None:
        self.running.kill()
        self.running.wait()

    def end(self, seconds: float = 60.0) -> int:
        """Stop it with SIGTERM and return its exit code. Kill it at the deadline, and raise TimeoutExpired."""
        if self.running.poll() is None:
            self.running.send_signal(signal.SIGTERM)
        try:
            return self.running.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port of loopback that a server may listen on; the kernel gives it to nobody else."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
