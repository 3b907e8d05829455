"""Start sender processes under load, pass requests to them, and stop them when idle."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Literal

import anyio
from anyio.abc import TaskGroup

from docferry import logs
from docferry.clock import Clock
from docferry.remotes.http import HttpClient, HttpOptions
from docferry.senders.handle import SenderHandle
from docferry.senders.transport import SenderTransport

log = logs.get("senders")

#: The requests, or the bytes of requests, that start the senders if they are claimed within `WINDOW_S` seconds.
START_REQUESTS: Final = 500
START_BYTES: Final = 64 * 1024 * 1024
WINDOW_S: Final = 5.0
#: Idle time after which senders stop, seconds.
IDLE_S: Final = 60.0
#: The interval between two checks of the senders, seconds, and the checks without progress before a kill.
CHECK_S: Final = 1.0
STALLED_CHECKS: Final = 30
#: The delay before a dead sender is replaced, seconds: doubled after each death, up to the second value.
PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
#: The most senders of "auto": beyond it, the daemon's own work is the limit.
MOST_AUTO: Final = 4


def sender_count(wanted: Literal["auto"] | int) -> int:
    """Return the number of senders for a setting. "auto" leaves two cores to the daemon, for its loop and threads.

    On two cores a sender gained 3 to 5 % and took 27 MB (docs/performance.md).
    """
    if wanted != "auto":
        return wanted
    try:
        cores = len(os.sched_getaffinity(0))
    except OSError:  # a service may not be allowed to ask
        cores = os.cpu_count() or 1
    return max(0, min(MOST_AUTO, cores - 2))


class SenderPool:
    """Manage the sender processes of one daemon. Without a usable sender, the daemon sends requests itself."""

    def __init__(self, count: int = 0) -> None:
        self._count = count
        self._clients: list[HttpOptions] = []
        self._senders: list[SenderHandle] = []
        self._group: TaskGroup | None = None
        self._changed = anyio.Event()
        self._is_wanted = False
        self._window = 0.0  # steady seconds of its start
        self._requests = self._bytes = 0  # claimed since
        self._pause = PAUSE_S
        self._not_before = 0.0  # steady seconds

    def http_client(self, name: str, clock: Clock, options: HttpOptions) -> HttpClient:
        """Return a client that passes requests with documents to senders. Running senders know only earlier clients."""
        self._clients.append(options)
        return HttpClient(name, clock, options, partial(SenderTransport, self))

    def claimed(self, requests: Iterable[int]) -> None:
        """Record that requests of these bytes are about to be sent; start senders if the total is large."""
        if self._group is None or self._is_wanted:
            return
        now = time.monotonic()
        if now - self._window > WINDOW_S:
            self._window, self._requests, self._bytes = now, 0, 0
        for size in requests:
            self._requests += 1
            self._bytes += size
        if self._requests >= START_REQUESTS or self._bytes >= START_BYTES:
            self._is_wanted = True
            self._changed.set()

    @property
    def is_running(self) -> bool:
        """Return whether a sender accepts requests."""
        return any(sender.can_take for sender in self._senders)

    @property
    def in_flight(self) -> int:
        """Return the number of requests in the senders."""
        return sum(sender.in_flight for sender in self._senders)

    def choose(self, options: HttpOptions) -> tuple[SenderHandle, int] | None:
        """Return the sender with the fewest requests, and the number of a client; None if no sender is available."""
        free = [sender for sender in self._senders if sender.can_take]
        if not free or options not in self._clients:
            return None
        sender, client = min(free, key=lambda each: each.in_flight), self._clients.index(options)
        return (sender, client) if client < sender.clients else None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run the senders during the context."""
        if not self._count:
            yield
            return
        failure: Exception | None = None
        async with anyio.create_task_group() as self._group:
            self._group.start_soon(self._manage, name="senders")
            try:
                yield
            except Exception as error:  # noqa: BLE001 - raised below, outside the group, which would wrap it
                failure = error
            self._group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _manage(self) -> None:
        while True:
            has_work = self._senders or self._is_wanted
            with anyio.move_on_after(CHECK_S if has_work else None):
                await self._changed.wait()
            self._changed = anyio.Event()
            self._stop_idle()
            for sender in self._senders:
                if sender.checks_without_beat() > STALLED_CHECKS:
                    sender.kill()
            if self._is_wanted and time.monotonic() >= self._not_before:
                self._start()

    def _stop_idle(self) -> None:
        if self._senders and all(sender.idle_s > IDLE_S for sender in self._senders):
            self._is_wanted = False
            for sender in self._senders:
                sender.close()

    def _start(self) -> None:
        while self._group is not None and len(self._senders) < self._count:
            try:
                sender = SenderHandle(self._clients)
            except OSError as error:
                log.error("sender_failed", f"no sender process can be started ({error}); this process sends instead")
                self._postpone()
                return
            self._senders.append(sender)
            self._group.start_soon(self._serve, sender, name="sender")

    async def _serve(self, sender: SenderHandle) -> None:
        """Supervise one sender from its start to its end."""
        trouble: str | None = None
        try:
            trouble = await sender.serve()
        except anyio.get_cancelled_exc_class():
            sender.close()
            raise
        except Exception as error:  # noqa: BLE001 - every error of a sender leaves the daemon running
            trouble = f"{type(error).__name__}: {error}"
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(sender, trouble)

    async def _end(self, sender: SenderHandle, trouble: str | None) -> None:
        was_wanted = not sender.is_closing
        code = await sender.reap()
        self._senders.remove(sender)
        if not was_wanted:
            log.info("sender_stopped", pid=sender.pid, requests=sender.requests)
            return
        if time.monotonic() - sender.started > LONGEST_PAUSE_S:
            self._pause = PAUSE_S
        why = f"{trouble or 'it ended'} (exit code {code})"
        what = f"{why}; its requests are doubtful, others are sent without it"
        log.error("sender_died", what, pid=sender.pid, requests=sender.requests)
        self._postpone()

    def _postpone(self) -> None:
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
