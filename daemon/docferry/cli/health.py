"""Run `docferry health`: whether the daemon is alive, or ready, for health checks of containers."""

from __future__ import annotations

from argparse import Namespace

from docferry.app import status_file
from docferry.app.running import LATE_S
from docferry.cli import args
from docferry.cli.output import Screen, complain, line
from docferry.settings import Settings

_UNHEALTHY = 1


def command(asked: Namespace) -> int:
    """Print the state of the daemon in one line; return 0 if healthy, otherwise 1."""
    problem = trouble(args.load(asked.config), ready=asked.ready)
    if problem is not None:
        complain(problem)
        return _UNHEALTHY
    Screen().show(line("ready" if asked.ready else "alive"))
    return 0


def trouble(settings: Settings, *, ready: bool) -> str | None:
    """Return the problem of the daemon with these settings, None if there is none."""
    status = status_file.read_status(settings.state_dir)
    if status is None:
        return "no daemon runs on this state folder; `docferry run` starts it"
    age = status_file.age(settings.state_dir)
    if age is None or "alive" not in status:
        return "the daemon is starting"
    if age > LATE_S or not status["alive"]:
        return "the daemon has not moved for a minute; see its log, or restart it"
    if ready and not status["ready"]:
        return status.get("trouble") or "the daemon has not planned its first scan yet"
    return None
