"""Run `docferry alerts`: lasting conditions and their receivers, test messages, silences."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

import anyio

from docferry import logs
from docferry.cli import args
from docferry.cli.output import BAD, FAINT, GOOD, WARN, Cell, Screen, Table, complain, line, span
from docferry.cli.queue import open_queue
from docferry.clock import SystemClock, iso
from docferry.errors import ConfigError
from docferry.settings import Settings
from docferry.settings.alerts import EVENTS, ReceiverSettings
from docferry.store import alerts as store
from docferry.store.alerts import Alert, Observed

#: Exit code if a receiver did not accept the test message: run the command again.
AWAY = 75
TEST_TEXT = "This is a test message of docferry. Nothing needs attention."


def command(asked: Namespace) -> int:
    """Run the subcommand; return the exit code."""
    settings = args.load(asked.config)
    for secret in settings.secrets().known():
        logs.hide(secret)
    match asked.what:
        case "list":
            return anyio.run(_list, settings, asked.json)
        case "test":
            return anyio.run(_test, settings, asked.name)
        case _:
            return anyio.run(_silence, settings, asked.key, asked.until)


async def _list(settings: Settings, as_json: bool) -> int:
    now = time.time()
    alerts: list[Alert] = []
    silences: Mapping[str, float] = {}
    async with open_queue(settings) as database:
        if database is not None:
            rows = store.Alerts(database, settings.queue_host)
            alerts, silences = await rows.all(), await rows.silences(now)
    alerts = [alert for alert in alerts if alert.observed is not Observed.NOTE]
    screen = Screen()
    if as_json:
        for alert in alerts:
            screen.write(json.dumps(_row(alert, silences), ensure_ascii=False) + "\n")
        return 0
    _show(screen, alerts, silences, now)
    return 0


def _show(screen: Screen, alerts: list[Alert], silences: Mapping[str, float], now: float) -> None:
    table = Table(("key", "state", "for", "told", "what"), folds=frozenset({0, 4}))
    colours = {Observed.FIRING: BAD, Observed.PENDING: WARN, Observed.RESOLVED: GOOD}
    for alert in alerts:
        told = ", ".join(
            name if each.delivered is alert.observed else f"{name} (failed {each.tries}×)"
            for name, each in alert.deliveries.items()
            if each.delivered is alert.observed or each.tries
        )
        lasted = span((alert.ended if alert.observed is Observed.RESOLVED and alert.ended else now) - alert.since)
        state = Cell(alert.observed.value, colours[alert.observed])
        table.rows.append((alert.key, state, lasted, told or "nobody", alert.summary))
    screen.show(table if alerts else line("no condition needs attention"))
    for pattern, until in sorted(silences.items()):
        screen.show(line("silenced:", pattern, Cell(f"until {iso(until)}", FAINT)))


def _row(alert: Alert, silences: Mapping[str, float]) -> dict[str, object]:
    return {
        "key": alert.key,
        "event": alert.event,
        "labels": dict(alert.labels),
        "state": alert.observed.value,
        "summary": alert.summary,
        "since": iso(alert.since),
        "last_seen": iso(alert.last_seen),
        "ended": iso(alert.ended),
        "silenced_until": iso(max((u for key, u in silences.items() if fnmatchcase(alert.key, key)), default=None)),
        "receivers": {
            name: {
                "told": each.delivered.value if each.delivered else None,
                "at": iso(each.at) if each.delivered else None,
                "failed_attempts": each.tries,
            }
            for name, each in alert.deliveries.items()
        },
    }


async def _test(settings: Settings, name: str | None) -> int:
    """Send one message to each receiver; store nothing."""
    chosen = _chosen(settings, name)
    if not chosen:
        complain("no receiver is configured; add one with [[alerts.to]], see `docferry config init`")
        return 2
    code, screen = 0, Screen()
    results: dict[str, str | None] = {}
    async with anyio.create_task_group() as group:
        for receiver in chosen:
            group.start_soon(_try, receiver, results)
    table = Table(("receiver", "kind", "result"), folds=frozenset({2}))
    for receiver in chosen:
        problem = results[receiver.name]
        result = Cell("delivered", GOOD) if problem is None else Cell(logs.redacted(problem), BAD)
        table.rows.append((receiver.name, receiver.kind, result))
        code = code if problem is None else AWAY
    screen.show(table)
    return code


async def _try(receiver: ReceiverSettings, results: dict[str, str | None]) -> None:
    from docferry.alerts.messages import note
    from docferry.alerts.receivers import DeliveryError, open_receiver

    clock = SystemClock()
    try:
        await open_receiver(receiver, clock).send(note("test", TEST_TEXT, receiver.name, clock.now()))
        results[receiver.name] = None
    except DeliveryError as error:
        results[receiver.name] = str(error)


def _chosen(settings: Settings, name: str | None) -> list[ReceiverSettings]:
    known = [receiver.name for receiver in settings.alerts.to]
    if name is None or name in known:
        return [receiver for receiver in settings.alerts.to if name in (None, receiver.name)]
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    cure = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known) or 'none'}"
    raise ConfigError([f'there is no receiver "{name}"; {cure}'])


async def _silence(settings: Settings, key: str, until: float) -> int:
    event = key.partition("/")[0]
    if not any(fnmatchcase(each, event) for each in EVENTS):
        raise ConfigError([f'no condition has a key like "{key}"; a key begins with one of {", ".join(EVENTS)}'])
    now = time.time()
    async with open_queue(settings) as database:
        if database is None:
            complain("docferry has not run here yet: there is nothing to silence")
            return 2
        rows = store.Alerts(database, settings.queue_host)
        await rows.silence(key, until, now)
        fits = [alert for alert in await rows.all() if fnmatchcase(alert.key, key)]
    if until <= now:
        Screen().show(line(key, "is no longer silenced"))
    else:
        note = "" if fits else "(no condition has such a key now)"
        Screen().show(line(key, f"is silenced until {iso(until)}", note))
    return 0
