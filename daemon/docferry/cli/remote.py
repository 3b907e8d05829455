"""Run `docferry remote`: list the files at a remote, fetch some, and show its health."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from docferry import logs
from docferry.app import remote_files
from docferry.app.remote_files import RemoteFile, Whose
from docferry.app.remotes import open_remotes
from docferry.cli import args, local_checks
from docferry.cli.output import BAD, FAINT, GOOD, Cell, Screen, Table, complain, line, size
from docferry.cli.queue import open_queue
from docferry.clock import SystemClock
from docferry.errors import ConfigError, RemoteError
from docferry.model import RemoteName, escaped
from docferry.remotes.codat.client import Codat
from docferry.remotes.protocol import Remote, failed
from docferry.remotes.wootiv.client import Wootiv
from docferry.settings import Download, Settings, Upload, missing_keys
from docferry.settings.outbox import outboxes

WRONG, AWAY = 2, 75
_STYLES = {Whose.OURS: GOOD, Whose.MISSING: BAD, Whose.OTHER: FAINT}


def command(asked: Namespace) -> int:
    """Run `docferry remote ls`, `get` or `health`."""
    settings = args.load(asked.config)
    logs.configure("error", settings.log_format)
    if problems := missing_keys(settings, settings.secrets()):
        raise ConfigError(problems)
    work = {"ls": _ls, "get": _get, "health": _health}[asked.what]
    try:
        return anyio.run(work, settings, asked)
    except RemoteError as error:
        complain(str(error))
        return AWAY if failed("", error, "").passes else WRONG


# -- ls ----------------------------------------------------------------------------------------------------------------


async def _ls(settings: Settings, asked: Namespace) -> int:
    mapping = _mapping(settings, asked.mapping)
    buckets: list[str] = []
    async with _remotes(settings) as remotes, open_queue(settings) as database:
        remote = remotes[_name_of(mapping)]
        files: list[tuple[str | None, RemoteFile]] = []
        if isinstance(remote, Codat):
            for company in _companies(settings, mapping, asked.company):
                found = await remote_files.of_company(remote, company, database, SystemClock())
                files += [(company, each) for each in found]
        elif isinstance(remote, Wootiv):
            names = [mapping.name]
            if isinstance(mapping, Upload):
                names += outboxes([mapping], settings.state_dir, settings.host_name)
            files = [(None, each) for each in await remote_files.of_wootiv(remote, names, database)]
            buckets = await remote.buckets()
    if asked.json:
        rows = [_row(company, each) for company, each in files]
        Screen().write("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    else:
        _show_files(files, buckets)
    return 1 if any(each.whose is Whose.MISSING for _, each in files) else 0


def _row(company: str | None, each: RemoteFile) -> dict[str, object]:
    return {
        "name": escaped(each.name),
        "whose": each.whose,
        "uploaded": each.uploaded,
        "source": each.source,
        "size": each.size,
        "company_id": company,
    }


def _show_files(files: list[tuple[str | None, RemoteFile]], buckets: list[str]) -> None:
    screen = Screen()
    table = Table(("", "name", "uploaded", "source", "size"), right=frozenset({4}), folds=frozenset({1}))
    for _, each in files:
        whose = Cell(each.whose, _STYLES[each.whose])
        octets = "" if each.size is None else size(each.size)
        table.rows.append((whose, escaped(each.name), escaped(each.uploaded or ""), escaped(each.source or ""), octets))
    if table.rows:
        screen.show(table)
    counts = Counter(each.whose for _, each in files)
    screen.show(line(", ".join(f"{counts[whose]:,} {whose}" for whose in Whose)))
    if buckets:
        screen.show(line(f"buckets: {', '.join(map(escaped, buckets))}"))
    if counts[Whose.MISSING]:
        screen.show(line("`docferry verify` proves what is missing, and `docferry retry --missing` sends it again"))


# -- get ---------------------------------------------------------------------------------------------------------------


async def _get(settings: Settings, asked: Namespace) -> int:
    mapping = _mapping(settings, asked.mapping)
    into: Path = asked.to
    async with _remotes(settings) as remotes:
        remote = remotes[_name_of(mapping)]
        if isinstance(remote, Codat):
            company, *others = _companies(settings, mapping, asked.company)
            if others:
                raise ConfigError([f"{mapping.name} has several companies; choose one with --company"])
            placed = await remote_files.get_from_codat(remote, company, asked.date, asked.name, into)
        elif isinstance(remote, Wootiv):
            if asked.name is None or asked.date is not None:
                raise ConfigError(["an object at Wootiv is fetched by its name alone; see `docferry remote ls`"])
            placed = await remote_files.get_from_wootiv(remote, asked.name, into)
    Screen().write("".join(f"{escaped(str(path))}\n" for path in placed))
    return 0


# -- health ------------------------------------------------------------------------------------------------------------


async def _health(settings: Settings, asked: Namespace) -> int:
    targets, _ = local_checks.targets(settings if asked.mapping is None else _only(settings, asked.mapping))
    wanted = None if asked.mapping is None else _name_of(_mapping(settings, asked.mapping))
    table, failures = Table(("", "", "", ""), folds=frozenset({2, 3})), []
    async with _remotes(settings) as remotes:
        for name, remote in remotes.items():
            if wanted not in (None, name):
                continue
            for each in await remote.check([target for target in targets if target.remote == name]):
                state = Cell("ok" if each.ok else "FAIL", GOOD if each.ok else BAD)
                table.rows.append((state, each.subject, each.detail, "" if each.ok else f"→ {each.cure}"))
                failures += [] if each.ok else [each]
            if (left := remote.health.remaining) is not None:
                table.rows.append((Cell("ok", GOOD), name, f"{left:,} requests left today", ""))
    Screen().show(table)
    if not failures:
        return 0
    return AWAY if all(each.passes for each in failures) else WRONG


# -- all ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _remotes(settings: Settings) -> AsyncIterator[dict[str, Remote]]:
    remotes = open_remotes(settings, SystemClock())
    try:
        yield remotes
    finally:
        for remote in remotes.values():
            await remote.aclose()


def _mapping(settings: Settings, name: str) -> Upload | Download:
    mappings: list[Upload | Download] = [*settings.uploads, *settings.downloads]
    for each in mappings:
        if name in (each.configured_name, each.name):
            return each
    args.mappings(settings, [name])  # the error names the nearest mapping
    raise AssertionError("unreachable: an unknown mapping is an error")


def _name_of(mapping: Upload | Download) -> RemoteName:
    return mapping.to if isinstance(mapping, Upload) else mapping.source


def _only(settings: Settings, name: str) -> Settings:
    """Return the settings with one mapping."""
    mapping = _mapping(settings, name)
    uploads = (mapping,) if isinstance(mapping, Upload) else ()
    downloads = (mapping,) if isinstance(mapping, Download) else ()
    return settings.model_copy(update={"uploads": uploads, "downloads": downloads})


def _companies(settings: Settings, mapping: Upload | Download, chosen: str | None) -> list[str]:
    """Return the chosen company of a mapping, else all of them; for placeholders, those with a folder."""
    if chosen is not None:
        return [chosen]
    targets, left_out = local_checks.targets(_only(settings, mapping.name))
    found = list(dict.fromkeys(target.company_id for target in targets if target.company_id))
    if left_out:
        complain(f"{left_out:,} more connections have a folder; choose a company with --company")
    if not found:
        raise ConfigError([f"{mapping.name} has no company yet; choose one with --company"])
    return found
