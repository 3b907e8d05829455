"""Check whether the PostgreSQL server can be used, and whether it can lose a commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from docferry.cli.local_checks import Check
from docferry.cli.output import count
from docferry.errors import DatabaseBusy, StateError
from docferry.settings import Settings
from docferry.store.durability import Durability, read_durability

SUBJECT: Final = "database"
_FIX_COMMIT: Final = "ALTER ROLE … SET synchronous_commit = on, for docferry's role"


def server(settings: Settings) -> list[Check]:
    """Return the findings about the server of a shared queue; none for SQLite."""
    if settings.database_url is None:
        return []
    try:
        return list(findings(read_durability(settings.database_url.get_secret_value())))
    except StateError as error:
        problem, _, cure = str(error).partition("; ")
        return [Check("fail", SUBJECT, problem, cure, away=isinstance(error, DatabaseBusy))]


def findings(durability: Durability) -> Iterator[Check]:
    """Yield a finding with a fix for each way to lose a commit, or one success if there is none."""
    losses = [*_crash(durability.settings), *_failover(durability)]
    version = f"PostgreSQL {durability.settings['server_version'].partition(' ')[0]}"
    if any(loss.level in ("warn", "fail") for loss in losses):
        yield Check("ok", SUBJECT, f"{version} can be used")
    else:
        yield Check("ok", SUBJECT, f"{version}; a crash loses no commit")
    yield from losses


def _crash(settings: Mapping[str, str]) -> Iterator[Check]:
    """Yield findings about commits that a crash of the server or a power cut can lose."""
    if settings["fsync"] == "off":
        detail = "fsync is off: a power cut can lose commits and damage the whole database"
        yield Check("fail", SUBJECT, detail, "set fsync = on in postgresql.conf and reload the server")
    if settings["full_page_writes"] == "off":
        detail = "full_page_writes is off: a power cut can leave half-written pages, which damages the queue"
        cure = "set full_page_writes = on in postgresql.conf, unless the file system never tears a page (ZFS)"
        yield Check("warn", SUBJECT, detail, cure)
    if settings["synchronous_commit"] == "off":
        detail = "synchronous_commit is off: a crash loses the newest commits; docferry turns it on for its own"
        yield Check("warn", SUBJECT, detail, _FIX_COMMIT)


def _failover(durability: Durability) -> Iterator[Check]:
    """Yield findings about commits that a failover to a standby can lose."""
    names, level = durability.settings["synchronous_standby_names"], durability.settings["synchronous_commit"]
    connected = f"{count(durability.standbys, 'standby')} connected"
    if names and level == "local":
        detail = f"synchronous_commit is local: commits do not wait for {names}, so that a failover can lose them"
        yield Check("warn", SUBJECT, detail, _FIX_COMMIT)
    elif names:
        received = ", and only in its memory" if level == "remote_write" else ""
        yield Check("ok", SUBJECT, f"each commit is on a standby too{received} ({names}; {connected})")
        if not durability.standbys:
            detail = "no standby is connected: commits wait until one is"
            yield Check("warn", SUBJECT, detail, "start the standby, or take it out of synchronous_standby_names")
    elif durability.standbys:
        detail = f"{connected}, none of them synchronous: a failover can lose the newest commits"
        cure = "set synchronous_standby_names; otherwise everything due is looked up after a failover"
        yield Check("warn", SUBJECT, detail, cure)
    else:
        detail = "no standby is connected: a lost disk is a lost queue, which `docferry sync --adopt` rebuilds"
        yield Check("note", SUBJECT, detail)
