"""Run `docferry run`: the daemon in the foreground."""

from __future__ import annotations

from argparse import Namespace

from docferry import event_loop, logs, settings
from docferry.app.daemon import run_daemon
from docferry.cli.monitoring import ConfiguredMonitoring
from docferry.clock import SystemClock

log = logs.get("run")


def command(asked: Namespace) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP reads the same configuration file again."""
    wanted = settings.load(asked.config)
    logs.configure(wanted.log_level, wanted.log_format)
    for sentence in wanted.passed_over:
        log.warning("configuration_passed_over", sentence)
    for mapping, sentence in wanted.unanswered.items():
        log.warning("folder_unanswered", sentence, mapping=mapping)
    event_loop.run(run_daemon, wanted, asked.config, ConfiguredMonitoring(SystemClock()))
    return 0
