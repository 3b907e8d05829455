"""`docferry run`: the daemon, in the foreground."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import anyio

from docferry import logs, settings, systemd
from docferry.app.daemon import ferry


def command(asked: Namespace) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP reads the same configuration file again."""
    wanted = settings.load(asked.config)
    logs.configure(wanted.log_level, wanted.log_format)
    reload = partial(settings.load, asked.config)
    anyio.run(partial(ferry, wanted, reload=reload, notify=systemd.notify))
    return 0
