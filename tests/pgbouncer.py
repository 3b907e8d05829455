"""Run pgbouncer in transaction mode before a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app_env import until
from postgresql_server import USER

#: Server connections that all clients of one database share.
POOL_SIZE = 3


class Pgbouncer:
    """Run pgbouncer with databases at one host, which may change."""

    def __init__(self, folder: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        self.address = address
        self.port = port or _free_port(address)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, host: str) -> None:
        """Lead to the server at `host`, the folder of its socket or an address."""
        self._write(host)
        user = USER if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(self._folder, user)
        with (self._folder / "log").open("ab") as log:
            command = ["pgbouncer", "--quiet", str(self._folder / "pgbouncer.ini")]
            self._process = subprocess.Popen(command, user=user, cwd="/", stdout=log, stderr=log)
        until(self._answers, 20, "pgbouncer listening")

    def lead_to(self, host: str) -> None:
        """Lead to another server; the clients keep their connections."""
        self._write(host)
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def url(self, database: str) -> str:
        return f"postgresql://docferry@{self.address}:{self.port}/{database}"

    def _write(self, host: str) -> None:
        settings = {
            "listen_addr": self.address,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": POOL_SIZE,
            "max_client_conn": 500,
            "server_login_retry": 1,
            "server_connect_timeout": 5,
        }
        lines = ["[databases]", f"* = host={host} user=docferry", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self._folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.address, self.port)) == 0


def is_installed() -> bool:
    """Return whether pgbouncer can be started."""
    return shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin") is not None


@contextmanager
def running_pgbouncer(host: str, address: str = "127.0.0.1") -> Iterator[Pgbouncer]:
    """Start pgbouncer before the server at `host`. Skips the test where it is missing."""
    if not is_installed():
        pytest.skip("pgbouncer is missing; get it with: apt-get install pgbouncer")
    folder = Path(tempfile.mkdtemp(prefix="docferry-pgb-", dir="/tmp"))
    pgbouncer = Pgbouncer(folder, address)
    try:
        pgbouncer.start(host)
        yield pgbouncer
    finally:
        pgbouncer.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
