"""Control one sender process from the daemon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

import anyio
from msgspec import Struct, field

from docferry import logs
from docferry.remotes.http.options import HttpOptions
from docferry.senders import messages
from docferry.senders.channel import Channel, ChannelError, Frame
from docferry.senders.messages import Reply, SendRequest
from docferry.senders.progress import SLOTS, ProgressPage, Slot

log = logs.get("senders")

#: The module that a sender runs.
PROGRAM: Final = "docferry.senders"
#: The time limits of a sender to end a cancelled request, and to end after its channel is closed, and after it is
#: killed, seconds. A stop waits for all three, and ends within `stop_grace` + 5 s.
CANCEL_S: Final = 2.0
END_S: Final = 1.0
#: The environment of a sender: no key, and no access to systemd.
_ENVIRONMENT: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX", "OPENSSL_CONF", "OPENSSL_MODULES", "LOCALDOMAIN", "RES_OPTIONS", "HOSTALIASES",
)  # fmt: skip


class _Pending(Struct):
    done: anyio.Event = field(default_factory=anyio.Event)
    reply: Reply | None = None


class SenderHandle:
    """Control a sender process: start it, pass requests to it, and end it."""

    def __init__(self, clients: Sequence[HttpOptions]) -> None:
        """Start the process. Raises OSError.

        Must be called in the main thread: the kernel ends a sender together with the thread that started it.
        """
        self.clients = len(clients)
        self._hello = messages.hello(clients)
        self.is_ready = False
        self.requests = 0  # passed to it
        self.is_closing = False
        self.last_used = self.started = time.monotonic()
        self._pending: dict[int, _Pending] = {}
        self._free = list(range(SLOTS))
        self._silent = self._beat = self._slots_in_use = 0
        self._has_ended = False
        page = ProgressPage.create()
        ours, theirs = socket.socketpair()
        try:
            self._process = _spawn(theirs.fileno(), page)
            self.page = ProgressPage(page)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(page)
        self._channel = Channel(ours, takes_descriptors=False)

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    @property
    def in_flight(self) -> int:
        """Return the number of requests without a reply."""
        return len(self._pending)

    @property
    def idle_s(self) -> float:
        """Return the seconds since the last request; 0 during one, or before the start is complete."""
        return 0.0 if self._pending or not self.is_ready else time.monotonic() - self.last_used

    @property
    def can_take(self) -> bool:
        """Return whether the sender can take another request."""
        return self.is_ready and not self.is_closing and bool(self._free)

    def checks_without_beat(self) -> int:
        """Return the number of consecutive calls without progress of the sender."""
        beat = self.page.beat
        self._silent, self._beat = (self._silent + 1 if beat == self._beat else 0), beat
        return self._silent

    def take_slot(self) -> Slot:
        """Reserve a slot of the page."""
        self._slots_in_use += 1
        number = self._free.pop()
        self.page.write(number, begun=False, given=0)
        return Slot(self.page, number)

    def give_back(self, slot: Slot) -> None:
        """Free a slot of the page; with the last slot of an ended process, free the page."""
        self._slots_in_use -= 1
        if not slot.is_lost:
            self._free.append(slot.number)
        self._free_page()

    async def exchange(self, slot: Slot, request: SendRequest) -> Reply | None:
        """Pass a request to the process and return its reply; None if the process ended: its slot has the progress.

        A cancellation also cancels the request, and briefly waits for the final progress in its slot.
        """
        number = self.requests = self.requests + 1
        pending = self._pending[number] = _Pending()
        self.last_used = time.monotonic()
        try:
            request.send(number, self._channel)
            await pending.done.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(CANCEL_S, shield=True):
                self._channel.write(Frame(messages.CANCEL, number))
                await pending.done.wait()
            slot.is_lost = not pending.done.is_set()
            if slot.is_lost:
                with anyio.CancelScope(shield=True):
                    await self._channel.flush()  # the caller closes the files next
            raise
        finally:
            self._pending.pop(number, None)
            self.last_used = time.monotonic()
        return pending.reply

    async def serve(self) -> str | None:
        """Take replies until the process ends. Return a violation of the protocol, else None."""
        try:
            self._channel.write(self._hello)
            await self._channel.serve(self)
        except (ChannelError, OSError) as error:
            return str(error)
        return None

    def take(self, frame: Frame) -> None:
        """Give a reply to its request; the first frame says that the process is ready."""
        if frame.kind == messages.READY:
            self.is_ready, self.last_used = True, time.monotonic()
            log.info("sender_started", pid=self.pid)
            return
        reply = messages.read_reply(frame)
        pending = self._pending.pop(frame.number, None)
        if pending is not None:
            pending.reply = reply
            pending.done.set()

    def close(self) -> None:
        """Ask the process to end, by closing its channel."""
        self.is_closing = True
        self._channel.shut_down()

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    async def reap(self) -> int | None:
        """Wait for the end of the process, kill it after a time limit, end its requests; return the exit code.

        Only after the end of the process do the slots have the final progress of its requests.
        """
        if not self.is_closing:
            self.kill()
        self.close()
        if not await self._has_ended_within(END_S):
            self.kill()
            await self._has_ended_within(END_S)  # a thread in a hanging network share ends later, but sends nothing
        for pending in self._pending.values():
            pending.done.set()
        self._channel.close()
        self._has_ended = True
        self._free_page()
        return self._process.returncode

    def _free_page(self) -> None:
        if self._has_ended and not self._slots_in_use:
            self.page.close()

    async def _has_ended_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            while self._process.poll() is None:  # noqa: ASYNC110 - a thread to wait in may be unavailable
                await anyio.sleep(0.005)  # polling interval
            return True
        return False


def _spawn(channel: int, page: int) -> subprocess.Popen[bytes]:
    """Start the program with only its two descriptors; it inherits stderr, as only a defect writes to it."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(  # noqa: S603 - starts docferry itself
        [sys.executable, "-P", "-m", PROGRAM, str(channel), str(page), str(os.getpid())],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(channel, page),
        process_group=0,
    )
