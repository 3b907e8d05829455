"""Run `docferry check`: check configuration, keys, folders and limits, and print the fix of each problem."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Final

import anyio
import anyio.to_thread

from docferry import logs
from docferry.app.antivirus import open_clamd
from docferry.app.remotes import http_options, open_remotes
from docferry.cli import local_checks, server_checks, shared_checks
from docferry.cli.local_checks import Check, Level
from docferry.cli.output import BAD, FAINT, GOOD, WARN, Cell, Screen, Table, count, line, span
from docferry.clock import SystemClock
from docferry.remotes.http import diagnose
from docferry.remotes.protocol import Checked, Remote
from docferry.settings import Settings, load

#: Clock offsets of a remote that cause a warning, and at which signatures fail, seconds.
CLOCK_WARN, CLOCK_FAIL = 60.0, 300.0
WRONG, AWAY = 2, 75
_MARKS: Final[dict[Level, tuple[str, str, str]]] = {
    "ok": ("✓", "ok", GOOD),
    "note": ("·", "note", FAINT),
    "warn": ("!", "warn", WARN),
    "fail": ("✗", "FAIL", BAD),
}


def command(asked: Namespace) -> int:
    """Check everything, print the findings and return the exit code."""
    settings = load(asked.config)  # the findings name the configuration files that were ignored
    logs.configure("error", settings.log_format)  # the findings repeat the log messages
    findings = anyio.run(_gathered, settings, asked.offline)
    if asked.json:
        _as_json(findings)
    else:
        _tell(findings)
    return _code(findings)


async def _gathered(settings: Settings, offline: bool) -> list[Check]:
    findings = await anyio.to_thread.run_sync(lambda: list(local_checks.local(settings)))
    if offline:
        return [*findings, Check("note", "remotes", "not asked (--offline)")]
    findings += await anyio.to_thread.run_sync(server_checks.server, settings)
    findings += await shared_checks.shared(settings)
    targets, more = await anyio.to_thread.run_sync(local_checks.targets, settings)
    remotes = open_remotes(settings, SystemClock())
    secrets = settings.secrets()
    for name, remote in remotes.items():
        way = await _way(name, settings)
        findings += way
        try:
            if any(finding.level == "fail" for finding in way):
                continue  # every further request would fail at the same step
            if getattr(secrets, name):  # a missing key has its own finding
                checked = [target for target in targets if target.remote == name]
                findings += _findings_of(remote, await remote.check(checked))
        finally:
            await remote.aclose()
    if any(upload.antivirus for upload in settings.uploads):
        findings.append(await _clamd(settings))
    if more:
        findings.append(Check("note", "codat", f"{more:,} more connections have a folder; they were not asked for"))
    return findings


async def _clamd(settings: Settings) -> Check:
    clamd, where = open_clamd(settings), settings.antivirus.clamd
    if clamd is not None and await clamd.ping():
        return Check("ok", "clamd", f"answers at {where}")
    cure = "start clamav-daemon, and let docferry's user use its socket; no document of its mappings is sent until then"
    return Check("fail", "clamd", f"does not answer at {where}", cure, away=True)


async def _way(name: str, settings: Settings) -> list[Check]:
    """Return the steps of a connection to a remote: name, addresses, TLS or proxy, and the response."""
    section = settings.codat if name == "codat" else settings.wootiv
    steps = await diagnose(name.capitalize(), section.base_url or "", http_options(section))
    return [
        Check("ok" if step.ok else "fail", f"{name} {step.name}", step.detail, step.fix, away=step.transient)
        for step in steps
    ]


def _findings_of(remote: Remote, checked: Sequence[Checked]) -> list[Check]:
    """Return the findings of a remote, with those about its clock and quota."""
    findings = [
        Check("ok" if each.ok else "fail", each.subject, each.detail, each.cure, away=each.passes) for each in checked
    ]
    offset = remote.health.clock_offset
    if offset is not None:
        level: Level = "fail" if abs(offset) > CLOCK_FAIL else "warn" if abs(offset) > CLOCK_WARN else "ok"
        said = "agrees with this machine's" if level == "ok" else f"is {span(abs(offset))} off this machine's"
        cure = "" if level == "ok" else "set this machine's clock: timedatectl set-ntp true"
        findings.append(Check(level, remote.name, f"its clock {said}", cure))
    if remote.health.remaining is not None:
        findings.append(_quota(remote.name, remote.health.remaining, remote.health.limit))
    return findings


def _quota(name: str, remaining: int, limit: int | None) -> Check:
    of = f" of {limit:,}" if limit else ""
    level: Level = "warn" if remaining == 0 else "ok"
    return Check(level, name, f"{remaining:,}{of} requests left today", "" if remaining else "wait until 00:00 UTC")


def _code(findings: Sequence[Check]) -> int:
    failed = [finding for finding in findings if finding.level == "fail"]
    if not failed:
        return 0
    return AWAY if all(finding.away for finding in failed) else WRONG


def _as_json(findings: Sequence[Check]) -> None:
    rows = [
        {"level": each.level, "subject": each.subject, "detail": each.detail, "cure": each.cure or None}
        for each in findings
    ]
    told = {"ok": not any(each.level == "fail" for each in findings), "findings": rows}
    Screen().write(json.dumps(told, ensure_ascii=False) + "\n")


def _tell(findings: Sequence[Check]) -> None:
    screen = Screen()
    table = Table(("", "", "", ""), folds=frozenset({2, 3}))
    for each in findings:
        mark, word, style = _MARKS[each.level]
        shown = Cell(mark if screen.tty else word, style)
        table.rows.append((shown, each.subject, each.detail, Cell(each.cure and f"→ {each.cure}", style)))
    failed = sum(each.level == "fail" for each in findings)
    warned = sum(each.level == "warn" for each in findings)
    warnings = f"({count(warned, 'warning')})" if warned else ""
    verdict = Cell(f"{count(failed, 'problem')} to fix" if failed else "all is right", BAD if failed else GOOD)
    screen.show(table, line(), line(verdict, Cell(warnings, WARN)))
