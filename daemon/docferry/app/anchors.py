"""Copy heads of the receipt log to places outside the database."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import anyio
import anyio.to_thread

from docferry import logs
from docferry.clock import Clock, iso
from docferry.errors import DocferryError
from docferry.model import escaped
from docferry.receipts.heads import SignedHead, parse_notes
from docferry.settings import Settings
from docferry.store.receipt_log import StoredHead

log = logs.get("receipts")
T = TypeVar("T")

#: The time limit of one anchor, seconds: a share that hangs must not delay the shutdown.
ANCHOR_TIMEOUT_S: Final = 30.0
#: The length of the end of a file in which the newest heads are searched, bytes.
_TAIL_BYTES: Final = 256 * 1024


class AnchorError(DocferryError):
    """Report that a head could not be copied. The text gives the destination and the reason."""


class Anchor(Protocol):
    """Define one destination of heads; `put` may get a head that it has already stored."""

    @property
    def name(self) -> str:
        """Return the destination as written in `[receipts] anchor`."""

    async def put(self, head: StoredHead) -> bytes | None:
        """Copy a head, or raise AnchorError. Return an RFC 3161 time stamp if the destination gives one, else None."""


class LogAnchor:
    """Write heads to docferry's own log, which is often shipped to another machine."""

    name: Final = "log"

    def __init__(self) -> None:
        self._last: StoredHead | None = None

    async def put(self, head: StoredHead) -> None:
        """Log the head in one line that `docferry receipts verify --anchor` can read."""
        if head != self._last:
            log.info("head", head=head.signed.one_line())
            self._last = head


class FileAnchor:
    """Append heads to a file on other storage, and sync it to the disk."""

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path}"
        self.path = path
        self._threads = anyio.CapacityLimiter(1)  # threads that hang in the share must not become more and more

    async def put(self, head: StoredHead) -> None:
        """Append the head unless it is already the last one."""
        try:
            with anyio.fail_after(ANCHOR_TIMEOUT_S):
                await anyio.to_thread.run_sync(_append, self.path, head, abandon_on_cancel=True, limiter=self._threads)
        except OSError as error:
            raise AnchorError(f"{escaped(str(self.path))} cannot be written: {error.strerror}") from error
        except TimeoutError:
            raise AnchorError(f"{escaped(str(self.path))} does not answer; is the share mounted?") from None

    async def newest(self) -> Sequence[SignedHead]:
        """Return the last heads of the file, the newest last; none if there is no file. Raises AnchorError."""
        try:
            with anyio.fail_after(ANCHOR_TIMEOUT_S):
                return await anyio.to_thread.run_sync(_tail, self.path, abandon_on_cancel=True, limiter=self._threads)
        except OSError as error:
            raise AnchorError(f"{escaped(str(self.path))} cannot be read: {error.strerror}") from error
        except TimeoutError:
            raise AnchorError(f"{escaped(str(self.path))} does not answer; is the share mounted?") from None


class TsaAnchor:
    """Request time stamps from a time stamp authority (RFC 3161)."""

    def __init__(self, url: str, clock: Clock) -> None:
        from docferry.remotes import tsa

        tsa.check_installed()
        self.name = f"tsa:{url}"
        self._url = url
        self._clock = clock

    async def put(self, head: StoredHead) -> bytes | None:
        """Request a time stamp for the head's note, once."""
        from docferry.remotes import tsa

        if head.timestamp is not None:
            return None
        try:
            return await tsa.request_timestamp(self._url, head.signed.note().encode(), self._clock)
        except DocferryError as error:
            raise AnchorError(str(error)) from error


class ReceiverAnchor:
    """Send heads to receivers of alerts, by mail or webhook."""

    def __init__(self, kind: str, settings: Settings, clock: Clock) -> None:
        self.name = kind
        self._settings = [each for each in settings.alerts.to if each.kind == kind]
        self._clock = clock
        self._last: StoredHead | None = None

    async def put(self, head: StoredHead) -> None:
        """Send the head as a note, once."""
        if head == self._last:
            return
        from docferry.alerts.messages import Message
        from docferry.alerts.receivers import DeliveryError, open_receiver
        from docferry.alerts.tracker import Item, Kind
        from docferry.store.alerts import Alert, Observed

        text = f"Head of the receipts of docferry\n{head.signed.note()}"
        note = Alert("digest/head", head.time, (), text, "", Observed.NOTE, head.time, head.time)
        item = Item(note, Kind.NOTE, Observed.NOTE, head.time)
        try:
            for each in self._settings:
                await open_receiver(each, self._clock).send(Message(each.name, socket.gethostname(), (item,)))
        except DeliveryError as error:
            raise AnchorError(str(error)) from error
        self._last = head


def open_anchors(settings: Settings, clock: Clock) -> list[Anchor]:
    """Return the anchors of `[receipts] anchor`. Raises ConfigError if one needs a package that is not installed."""
    found: list[Anchor] = []
    for written in dict.fromkeys(settings.receipts.anchor):
        kind, _, place = written.partition(":")
        match kind:
            case "log":
                found.append(LogAnchor())
            case "file":
                found.append(FileAnchor(Path(place)))
            case "tsa":
                found.append(TsaAnchor(place, clock))
            case _:
                found.append(ReceiverAnchor(kind, settings, clock))
    return found


def _append(path: Path, head: StoredHead) -> None:
    heads = _tail(path)
    if heads and heads[-1] == head.signed:
        return
    is_new = not path.exists()
    with path.open("ab") as file:
        start = "" if is_new or _ends_line(path) else "\n"  # an interrupted append must not damage this one
        file.write(f"{start}# {iso(head.time)}\n{head.signed.note()}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        _sync_folder(path.parent)


def _tail(path: Path) -> list[SignedHead]:
    """Return the complete heads near the end of a file; skip incomplete and other lines."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return list(parse_notes(text, strict=False))


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
