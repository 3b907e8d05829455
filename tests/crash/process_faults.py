"""Kill and stop the sender processes of a running daemon, and kill the daemon, at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence

from app_env import AppEnv, Daemon
from crash.kill_harness import child_pids

#: Pause between two faults of one daemon, seconds.
PAUSE_S = (0.3, 3.0)
#: The length of a stop, seconds. A request that waits for a stopped sender has no time limit of its own.
STOP_S = (0.1, 3.0)
#: The faults, by their share.
KINDS = {"kill sender": 10, "stop sender": 6, "kill daemon": 1, "kill daemon and sender": 1}


class ProcessFaults:
    """Trouble one daemon and its senders."""

    def __init__(self, jitter: random.Random) -> None:
        self.applied = Counter[str]()
        self._random = jitter
        self._stopped: list[int] = []
        self._next = 0.0  # monotonic seconds

    def step(self, daemon: Daemon) -> Daemon:
        """Apply a fault if its time has come, or end a stop; return the running daemon."""
        if time.monotonic() < self._next:
            return daemon
        if self._stopped:
            self.end_stops()
        elif senders := child_pids(daemon.running.pid):
            daemon = self._apply(daemon, senders)
        self._next = time.monotonic() + self._random.uniform(*(STOP_S if self._stopped else PAUSE_S))
        return daemon

    def end_stops(self) -> None:
        """Let stopped senders continue."""
        while self._stopped:
            _signal(self._stopped.pop(), signal.SIGCONT)

    def _apply(self, daemon: Daemon, senders: Sequence[int]) -> Daemon:
        chosen, kind = self._random.choice(senders), self._random.choices(list(KINDS), list(KINDS.values()))[0]
        self.applied[kind] += 1
        if kind == "stop sender":
            _signal(chosen, signal.SIGSTOP)
            self._stopped.append(chosen)
        elif kind != "kill daemon":
            _signal(chosen, signal.SIGKILL)
        if "daemon" in kind:
            daemon.kill()
            return Daemon(daemon.app_env)
        return daemon


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, number)


def sender_counts(app_env: AppEnv) -> tuple[int, int]:
    """Return the number of started senders, and of their requests, except for senders of killed daemons."""
    said = (app_env.root / "daemon.log").read_text(errors="replace")
    ended = re.findall(r"sender_(?:died|stopped).* requests=(\d+)", said)
    return said.count("sender_started"), sum(map(int, ended))
