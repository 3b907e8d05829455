"""Run a primary and its standby, which can change roles, and pgbouncer before them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from app_env import until
from pgbouncer import Pgbouncer
from postgresql_server import PostgresqlServer, server_folder

PORT = 5432
DATABASE = "fleet"


class Servers:
    """Two servers, of which one is the primary. With `synchronous` each commit waits for the standby."""

    def __init__(self, servers: dict[str, PostgresqlServer], pgbouncer: Pgbouncer | None, *, synchronous: bool) -> None:
        self._servers = servers
        self._pgbouncer = pgbouncer
        self._synchronous = synchronous
        self.primary, self.standby = servers  # their addresses

    def start(self) -> None:
        first = self._servers[self.primary]
        first.create()
        with (first.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.0.0.0/8 trust\n")
        first.start()
        with psycopg.connect(first.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())
        self._add_standby()
        if self._pgbouncer is not None:
            self._pgbouncer.start(self.primary)

    @property
    def url(self) -> str:
        """Return the URL with both servers."""
        return f"postgresql://docferry@{f':{PORT},'.join(self._servers)}:{PORT}/{DATABASE}"

    @property
    def pooled_url(self) -> str:
        """Return the URL of pgbouncer, or `url` without pgbouncer."""
        return self.url if self._pgbouncer is None else self._pgbouncer.url(DATABASE)

    def fetch(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Return the rows of a query on the primary."""
        with psycopg.connect(self._servers[self.primary].url(DATABASE), autocommit=True) as connection:
            cursor = connection.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def restart(self) -> None:
        """Stop the primary as a crash does, and start it again."""
        self._servers[self.primary].stop()
        self._servers[self.primary].start()
        self._wait_for_standby()

    def fail_over(self) -> None:
        """Lose the primary, promote the standby, and make a new standby in the place of the old primary."""
        self._servers[self.primary].stop()
        self.primary, self.standby = self.standby, self.primary
        self._servers[self.primary].promote()
        self._require_standby("")
        if self._pgbouncer is not None:
            self._pgbouncer.lead_to(self.primary)
        shutil.rmtree(self._servers[self.standby].folder / "data")
        self._add_standby()

    def restart_pgbouncer(self) -> None:
        """Kill pgbouncer and start it again."""
        if self._pgbouncer is not None:
            self._pgbouncer.stop()
            self._pgbouncer.start(self.primary)

    def stop(self) -> None:
        if self._pgbouncer is not None:
            self._pgbouncer.stop()
        for server in self._servers.values():
            if server.is_running:
                server.stop()

    def _add_standby(self) -> None:
        standby = self._servers[self.standby]
        standby.create_standby(self._servers[self.primary])
        standby.start()
        if self._synchronous:
            self._require_standby("*")
        self._wait_for_standby()

    def _require_standby(self, names: str) -> None:
        self.fetch(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.fetch("SELECT pg_reload_conf()")

    def _wait_for_standby(self) -> None:
        states = ("sync",) if self._synchronous else ("async",)
        until(lambda: self.fetch("SELECT sync_state FROM pg_stat_replication") == [states], 60, "the standby")


@contextmanager
def running_servers(addresses: tuple[str, str], pooler: str | None, *, synchronous: bool) -> Iterator[Servers]:
    """Start two servers, and pgbouncer at `pooler`."""
    with ExitStack() as stack:
        servers = {}
        for address in addresses:
            folder, programs = stack.enter_context(server_folder())
            servers[address] = PostgresqlServer(folder, programs)
            servers[address].settings += [f"listen_addresses = '{address}'", f"port = {PORT}"]
        pgbouncer = None
        if pooler is not None:
            folder = Path(tempfile.mkdtemp(prefix="docferry-pgb-", dir="/tmp"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            pgbouncer = Pgbouncer(folder, pooler)
        found = Servers(servers, pgbouncer, synchronous=synchronous)
        try:
            found.start()
            yield found
        finally:
            found.stop()
