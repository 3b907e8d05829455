"""Run `docferry sync`: one pass, with a progress bar on a terminal and a final summary."""

from __future__ import annotations

import json
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct

from docferry import event_loop, logs
from docferry.app import last_sync
from docferry.app.one_pass import PassOptions, sync
from docferry.cli.args import load, mappings, roots
from docferry.cli.output import BAD, GOOD, WARN, Cell, Screen, Table, complain, count, line, size, span
from docferry.errors import DatabaseBusy, DocferryError
from docferry.model import escaped
from docferry.settings import Settings
from docferry.store.second_queue import second_queues

EX_CONFIG, EX_SOFTWARE, EX_TEMPFAIL = 2, 70, 75

if TYPE_CHECKING:
    from docferry.app.dry_run import DryRunRow
    from docferry.app.one_pass import ProgressView, SyncReport


def command(asked: Namespace) -> int:
    """Run one pass, or list its actions with --dry-run. Return the exit code."""
    settings = load(asked.config)
    chosen = mappings(settings, asked.mapping)
    screen = Screen()
    logs.configure(_level(settings, screen, quiet=asked.json), settings.log_format)
    if settings.log_level in ("debug", "info") and not (sys.stderr and sys.stderr.isatty()):
        logging.getLogger("receipts").setLevel(logging.INFO)  # the head of the receipts, for the journal
    if asked.dry_run:
        from docferry.app.dry_run import dry_run

        rows = anyio.run(partial(dry_run, settings, mappings=chosen))
        return _dry_run(rows, roots(settings), screen, as_json=asked.json)
    complain(*(f"warning: {sentence}" for sentence in second_queues(settings)))
    with _recorded(settings) as ended:
        report = event_loop.run(_one_pass, settings, asked, chosen, screen)
        ended.code = report.exit_code
    complain(*report.problems)
    _show(report, screen, as_json=asked.json)
    return report.exit_code


class _End(Struct):
    code: int = EX_SOFTWARE


@contextmanager
def _recorded(settings: Settings) -> Iterator[_End]:
    """Record the exit code for the metrics, and write the textfile unless a running daemon does."""
    ended = _End()
    try:
        yield ended
    except DocferryError as error:
        ended.code = EX_TEMPFAIL if isinstance(error, DatabaseBusy) else EX_CONFIG
        raise
    finally:
        last_sync.write(settings.state_dir, ended.code, time.time())
        if settings.metrics.textfile is not None:
            from docferry.cli.metrics import write_textfile

            write_textfile(settings, settings.metrics.textfile)


async def _one_pass(settings: Settings, asked: Namespace, chosen: list[str], screen: Screen) -> SyncReport:
    with _bar(screen, quiet=asked.json) as view:
        options = PassOptions(
            chosen, not asked.no_upload, not asked.no_download, adopt=asked.adopt, timeout=asked.timeout
        )
        return await sync(settings, options, view)


def _bar(screen: Screen, *, quiet: bool) -> AbstractContextManager[ProgressView | None]:
    if quiet or not screen.tty:
        return nullcontext()
    from docferry.cli.progress import Bar

    return Bar(screen.console())


def _level(settings: Settings, screen: Screen, *, quiet: bool) -> str:
    """Return the log level: with a progress bar, only errors are logged."""
    if settings.log_level != "info":
        return settings.log_level
    return "error" if screen.tty and not quiet else "warning"


def _dry_run(rows: list[DryRunRow], below: Mapping[str, bytes], screen: Screen, *, as_json: bool) -> int:
    if as_json:
        for row in rows:
            told = {
                "path": escaped(below[row.mapping].rstrip(b"/") + b"/" + row.path),
                "mapping": row.mapping,
                "size": row.size,
                "would": row.would,
                "to": row.to,
                "remote_name": escaped(row.remote_name),
                "reason": None if row.reason is None else escaped(row.reason),
            }
            screen.write(json.dumps(told, ensure_ascii=False) + "\n")
        return 0
    table = Table(("would", "size", "mapping", "path", "to", "why"), right=frozenset({1}), folds=frozenset({3, 5}))
    styles = {"upload": GOOD, "held": BAD}
    for row in rows:
        if row.would != "unchanged":
            would = Cell(row.would, styles.get(row.would, WARN))
            table.rows.append(
                (would, size(row.size), row.mapping, row.path, row.to.partition("/")[0], row.reason or "")
            )
    if table.rows:
        screen.show(table)
    due = [row for row in rows if row.would == "upload"]
    screen.show(
        line(
            f"{count(len(due), 'document')} ({size(sum(row.size for row in due))}) would be uploaded,",
            f"{len(rows) - len(table.rows):,} unchanged; nothing was done",
        )
    )
    return 0


def _show(report: SyncReport, screen: Screen, *, as_json: bool) -> None:
    names = ("uploaded", "downloaded", "unchanged", "held", "due", "bytes_up", "bytes_down", "requests", "seconds")
    figures = {name: getattr(report, name) for name in names} | {"seconds": round(report.seconds, 3)}
    if as_json:
        screen.write(json.dumps(figures) + "\n")
        return
    table = Table(("", "", ""), right=frozenset({1}))
    table.rows.append(
        ("uploaded", Cell(f"{report.uploaded:,}", GOOD if report.uploaded else ""), size(report.bytes_up))
    )
    if report.downloaded or report.bytes_down:
        table.rows.append(("downloaded", Cell(f"{report.downloaded:,}", GOOD), size(report.bytes_down)))
    table.rows.append(("unchanged", f"{report.unchanged:,}", ""))
    if report.held:
        table.rows.append(("held", Cell(f"{report.held:,}", BAD), "see why: docferry list --state held"))
    if report.due:
        table.rows.append(("still due", Cell(f"{report.due:,}", WARN), "nothing is lost: run it again"))
    screen.show(table, line(f"in {span(report.seconds)}, {count(report.requests, 'request')}"))
