"""Run `docferry list` and `docferry show`: documents and their attempts."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import anyio

from docferry.cli import args
from docferry.cli.output import BAD, FAINT, GOOD, STRONG, WARN, Cell, Screen, Table, line, size
from docferry.cli.queue import open_queue
from docferry.clock import iso
from docferry.errors import ConfigError
from docferry.model import escaped
from docferry.settings import Settings
from docferry.settings.real_paths import RealPaths
from docferry.store.reports import AttemptRow, Reports, Row

#: The largest number of rows of one query.
CHUNK: Final = 1000
STYLES: Final = {"sent": GOOD, "held": BAD, "doubtful": WARN, "asking": WARN, "gone": FAINT}
_HEADINGS: Final = ("id", "state", "size", "mapping", "path", "reason")


def list_command(asked: Namespace) -> int:
    """Print the documents that match, and return the exit code."""
    anyio.run(_list, args.load(asked.config), asked)
    return 0


def show_command(asked: Namespace) -> int:
    """Print one document with every attempt, and return the exit code."""
    # As typed, and with links resolved.
    given = os.fsencode(Path(asked.document).absolute())
    path = Path(os.fsdecode(given))
    real = os.fsencode(RealPaths([path])[path].path)
    anyio.run(_show, args.load(asked.config), asked, [os.path.normpath(given), real])
    return 0


def as_json(row: Row, roots: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a row as the object of `list --json`."""
    return {
        "id": row.id,
        "mapping": row.mapping,
        "path": full_path(row.mapping, row.path, roots),
        "size": row.size,
        "sha256": row.sha256,
        "state": row.state,
        "reason": row.reason,
        "detail": _safe(row.detail),
        "attempts": row.attempts,
        "remote_name": escaped(row.remote_name),
        "company_id": row.company_id,
        "connection_id": row.connection_id,
        "next_attempt": iso(row.next_attempt),
        "first_seen": iso(row.first_seen),
        "updated": iso(row.updated),
    }


def full_path(mapping: str, path: bytes, roots: Mapping[str, bytes]) -> str:
    """Return the absolute path, escaped; the relative path if the mapping is no longer configured."""
    root = roots.get(mapping)
    return escaped(path if root is None else root.rstrip(b"/") + b"/" + path)


def _safe(text: str | None) -> str | None:
    return None if text is None else escaped(text)


# -- list --------------------------------------------------------------------------------------------------------------


async def _list(settings: Settings, asked: Namespace) -> None:
    args.reason(asked.reason)
    screen, roots = Screen(), args.roots(settings)
    widths: list[int] = []
    async with open_queue(settings) as database:
        reports = None if database is None else Reports(database)
        if asked.mapping is not None:
            # The queue may contain documents of a mapping that is no longer configured.
            left = [] if reports is None or asked.mapping in roots else list(await reports.counts())
            args.mappings(settings, [asked.mapping], also=left)
        if reports is None:
            return
        async for rows in _chunks(reports, asked):
            if asked.json:
                lines = (json.dumps(as_json(row, roots), ensure_ascii=False) for row in rows)
                screen.write("".join(f"{each}\n" for each in lines))
            else:
                table = Table(_HEADINGS, [_cells(row, roots) for row in rows], frozenset({0, 2}), frozenset({4, 5}))
                screen.append(table, widths)


async def _chunks(reports: Reports, asked: Namespace) -> AsyncIterator[list[Row]]:
    left, after = asked.limit, 0
    while left is None or left > 0:
        most = CHUNK if left is None else min(CHUNK, left)
        rows = await reports.rows(
            mapping=asked.mapping, states=asked.state, reason=asked.reason, limit=most, after=after
        )
        if rows:
            yield rows
        if len(rows) < most:
            return
        after, left = rows[-1].id, None if left is None else left - most


def _cells(row: Row, roots: Mapping[str, bytes]) -> tuple[Cell | str | int, ...]:
    state = Cell(row.state, STYLES.get(row.state, ""))
    why = "" if row.state in {"sent", "gone"} else ": ".join(part for part in (row.reason, row.detail) if part)
    return (row.id, state, size(row.size), row.mapping, full_path(row.mapping, row.path, roots), why)


# -- show --------------------------------------------------------------------------------------------------------------


async def _show(settings: Settings, asked: Namespace, paths: list[bytes]) -> None:
    screen, roots = Screen(), args.roots(settings)
    async with open_queue(settings) as database:
        if database is None:
            raise ConfigError(["docferry has not seen any document yet; run `docferry sync` or `docferry run`"])
        reports = Reports(database)
        versions = await _found(reports, asked.document, paths, roots)
        for at, row in enumerate(versions):
            history = await reports.attempts(row.id)
            if asked.json:
                told = as_json(row, roots) | {"history": [_attempt(each) for each in history]}
                screen.write(json.dumps(told, ensure_ascii=False) + "\n")
            else:
                if at:
                    screen.show(line(), line(Cell("an earlier version of this file", FAINT)))
                _tell(screen, row, history, roots)


async def _found(reports: Reports, document: str, paths: list[bytes], roots: Mapping[str, bytes]) -> list[Row]:
    """Return the document with that id, or all versions of the file at that path, the newest first."""
    if document.isascii() and document.isdecimal():
        row = await reports.by_id(int(document)) if int(document) < 2**63 else None
        if row is not None:
            return [row]
        raise ConfigError([f"there is no document {document}; `docferry list` shows the ids"])
    for path in paths:
        rows = [row for name, inner in _inside(path, roots) for row in await reports.by_path(name, inner)]
        if rows:
            return rows
    shown = escaped(document)
    if not any(_inside(path, roots) for path in paths):
        raise ConfigError([f"{shown} is in no mapping's folder; `docferry list` shows the known documents"])
    raise ConfigError([f"docferry has not seen {shown} yet, or it is excluded; see `docferry sync --dry-run`"])


def _inside(path: bytes, roots: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    found = []
    for name, root in roots.items():
        start = root.rstrip(b"/") + b"/"
        if path.startswith(start):
            found.append((name, path[len(start) :]))
    return found


def _attempt(row: AttemptRow) -> dict[str, Any]:
    return {
        "lease": row.lease,
        "began": iso(row.began),
        "ended": iso(row.ended),
        "state": row.state,
        "detail": _safe(row.detail),
        "status": row.status,
        "correlation_id": _safe(row.correlation_id),
        "etag": _safe(row.etag),
        "proof": row.proof,
    }


def _tell(screen: Screen, row: Row, history: list[AttemptRow], roots: Mapping[str, bytes]) -> None:
    facts = Table(("", ""), folds=frozenset({1}))
    for name, value in _facts(row, roots):
        if value is not None:
            facts.rows.append((Cell(name, FAINT), value))
    screen.show(facts)
    if not history:
        screen.show(line(), line(Cell("no attempt was made yet", FAINT)))
        return
    table = Table(("began", "took", "became", "status", "proof", "correlation id", "detail"), folds=frozenset({6}))
    for each in history:
        took = "" if each.ended is None else f"{each.ended - each.began:.2f} s"
        became = Cell(each.state, STYLES.get(each.state, ""))
        status = "" if each.status is None else str(each.status)
        began = iso(each.began) or ""
        table.rows.append((began, took, became, status, each.proof or "", each.correlation_id or "", each.detail or ""))
    screen.show(line(), table)


def _facts(row: Row, roots: Mapping[str, bytes]) -> list[tuple[str, Cell | str | None]]:
    where = "/".join(part for part in (row.company_id, row.connection_id) if part)
    return [
        ("document", Cell(row.id, STRONG)),
        ("path", full_path(row.mapping, row.path, roots)),
        ("mapping", row.mapping),
        ("state", Cell(row.state, STYLES.get(row.state, ""))),
        ("reason", ": ".join(part for part in (row.reason, row.detail) if part) or None),
        ("next attempt", iso(row.next_attempt)),
        ("size", f"{row.size:,} bytes"),
        ("sha256", row.sha256),
        ("sent as", row.remote_name),
        ("company/connection", where or None),
        ("first seen", iso(row.first_seen)),
        ("updated", iso(row.updated)),
    ]
