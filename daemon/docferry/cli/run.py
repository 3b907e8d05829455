"""The command `docferry run`: the daemon, in the foreground."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import anyio

from docferry import logs, settings, systemd
from docferry.app.daemon import run_daemon
from docferry.cli.monitoring import ConfiguredMonitoring
from docferry.clock import SystemClock


def command(asked: Namespace) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP reads the same configuration file again."""
    wanted = settings.load(asked.config)
    logs.configure(wanted.log_level, wanted.log_format)
    reload = partial(settings.load, asked.config)
    monitoring = ConfiguredMonitoring(SystemClock())
    anyio.run(partial(run_daemon, wanted, reload=reload, notify=systemd.notify, monitoring=monitoring))
    return 0
