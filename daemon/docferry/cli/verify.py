"""Run `docferry verify`: check that all sent documents are at the remotes; print a table or a JSON object."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from datetime import datetime

import anyio

from docferry import logs
from docferry.app.verify import open_verifier
from docferry.cli import args, streams
from docferry.cli.documents import full_path
from docferry.cli.output import BAD, GOOD, WARN, Cell, Screen, Table, complain, count, line
from docferry.cli.queue import open_queue
from docferry.clock import SystemClock
from docferry.errors import ConfigError
from docferry.model import escaped
from docferry.settings import Settings, missing_keys
from docferry.store.verification import Discrepancy, Verdict, Verifications
from docferry.upload.verifier import RoundReport

_STYLES = {Verdict.MISSING: BAD, Verdict.CHANGED: BAD, Verdict.UNKNOWN: WARN}


def command(asked: Namespace) -> int:
    """Run `docferry verify`."""
    settings = args.load(asked.config)
    logs.configure("warning", settings.log_format)
    return anyio.run(_verify, settings, asked)


async def _verify(settings: Settings, asked: Namespace) -> int:
    if asked.mapping is not None:
        args.mappings(settings, [asked.mapping])
    problems = missing_keys(settings, settings.secrets())
    if problems:
        raise ConfigError(problems)
    since = None if asked.since is None else datetime.fromisoformat(asked.since).timestamp()
    async with open_queue(settings) as database:
        if database is None:
            Screen().show(line("nothing was sent yet"))
            return 0
        async with open_verifier(settings, database) as verifier:
            tell = _Progress()
            report = await verifier.run(asked.mapping, since, with_bytes=asked.bytes, view=tell)
            tell.end()
        found = await Verifications(database, SystemClock()).found()
    _tell(settings, report, found, as_json=asked.json)
    return _exit_code(report, found)


def _exit_code(report: RoundReport, found: list[Discrepancy]) -> int:
    """Return 1 if a document is missing or changed, 75 if some are unknown."""
    if any(each.verdict in (Verdict.MISSING, Verdict.CHANGED) for each in found):
        return 1
    return 75 if report.stopped is not None or found else 0


class _Progress:
    """Show the number of verified documents on a terminal."""

    def __init__(self) -> None:
        self._done = 0
        self._shows = sys.stderr is not None and sys.stderr.isatty()

    def add(self, documents: int) -> None:
        self._done += documents
        if self._shows:
            streams.write(sys.stderr, f"\r{self._done:,} documents verified")

    def end(self) -> None:
        if self._shows and self._done:
            streams.write(sys.stderr, "\r\x1b[K")


def _tell(settings: Settings, report: RoundReport, found: list[Discrepancy], *, as_json: bool) -> None:
    screen, roots = Screen(), args.roots(settings)
    counts = Counter(each.verdict for each in found) + Counter({Verdict.PRESENT.value: report.progress.present})
    figures = {verdict.value: counts[verdict] for verdict in Verdict}
    documents = [_described(each, roots) for each in found]
    if as_json:
        told = {**figures, "complete": report.stopped is None, "stopped": report.stopped, "documents": documents}
        screen.write(json.dumps(told, ensure_ascii=False) + "\n")
        return
    table = Table(("", "id", "mapping", "path", "why"), right=frozenset({1}), folds=frozenset({3, 4}))
    for each, row in zip(found, documents, strict=True):
        cell = Cell(each.verdict, _STYLES.get(Verdict(each.verdict), ""))
        table.rows.append((cell, row["id"] or "", each.mapping, row["path"] or row["remote_name"] or "", each.detail))
    if table.rows:
        screen.show(table)
    summary = ", ".join(f"{number:,} {verdict}" for verdict, number in figures.items())
    verdict = Cell("all is there", GOOD) if not found and report.stopped is None else Cell("see above", WARN)
    screen.show(line(f"{summary}:", verdict) if report.stopped is None else line(summary))
    if figures["missing"]:
        screen.show(line("send missing documents again: docferry retry --missing"))
    if report.stopped is not None:
        complain(
            f"stopped: {report.stopped}; run it again, and it continues ({count(figures['present'], 'document')} done)"
        )


def _described(each: Discrepancy, roots: dict[str, bytes]) -> dict[str, str | int | None]:
    return {
        "id": each.document_id,
        "mapping": each.mapping,
        "path": None if each.path is None else full_path(each.mapping, each.path, roots),
        "remote_name": escaped(each.remote_name),
        "verdict": each.verdict,
        "detail": escaped(each.detail),
    }
