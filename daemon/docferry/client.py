"""Queue documents from memory and wait until they are sent: the Python interface of docferry.

Example:
    async with Queue.open() as queue, queue.sending():  # without `sending` where `docferry run` runs
        document = await queue.put("acme-bank", "statement.pdf", content)
        print((await queue.wait(document)).state)
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus
from msgspec import Struct

from docferry import logs
from docferry.app.application import Application, open_application
from docferry.app.shutdown import drain, plain_errors
from docferry.detect.scan_scheduler import ScanScheduler
from docferry.errors import ConfigError, DatabaseBusy, FolderError
from docferry.files import outbox
from docferry.files.safe_open import BLOCK
from docferry.model import State, escaped
from docferry.settings import Settings, load, missing_keys
from docferry.settings.outbox import Outbox, inner

__all__ = ["Document", "Queue"]

log = logs.get("client")

#: States that no longer change by themselves.
_RESTING: Final = frozenset({State.SENT, State.HELD, State.GONE})
#: The first and the longest interval at which `wait` reads the queue, seconds.
_FIRST_POLL_S, _LONGEST_POLL_S = 0.05, 1.0


class Document(Struct, frozen=True):
    """Describe the present state of a queued document."""

    id: str
    state: State
    reason: str | None  # for a held document, see `State`
    detail: str | None  # the cause and the fix
    remote_name: str
    sha256: str | None


class Queue:
    """Access the queue of one configuration. Open it with `Queue.open`.

    Any number of processes may use the queue at once, also beside a running daemon.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._runs = False
        self._stopping = anyio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Path | str | Settings | None = None) -> AsyncIterator[Queue]:
        """Open the queue of a configuration, given as its file, as loaded settings, or as None for the default file.

        Raises:
            ConfigError: The configuration is wrong.
            StateError: The state folder or the database cannot be used.
        """
        settings = config if isinstance(config, Settings) else load(None if config is None else Path(config))
        failures: list[Exception] = []
        with plain_errors():
            async with open_application(settings, downloads=False) as app:
                with _kept_apart(failures):
                    yield cls(app)
        for failure in failures:
            raise failure

    async def put(self, mapping: str, name: str, content: bytes | BinaryIO) -> str:
        """Store a document durably, as if it were a file in the folder of the mapping; return its id.

        After the return, the document is sent exactly once, even after a kill. Before, it is sent once or not at all.

        Args:
            mapping: The name of an `[[upload]]`.
            name: The path of the document relative to the mapping's folder, such as "2026/report.pdf".
            content: The bytes, or an open binary file that is read to its end.

        Raises:
            ConfigError: There is no such mapping, or the mapping excludes documents of this name.
            OSError: The bytes could not be stored.
        """
        box, path = self._outbox(mapping), outbox.checked_name(name)
        _require_wanted(box, bytes(path))
        blocks = outbox.blocks_of(content) if isinstance(content, bytes) else _read(content)
        folder = await anyio.to_thread.run_sync(outbox.store, box.root, path, blocks)
        stored = f"{folder}/{path}"
        try:
            if box.replaces:
                # While an older document is being removed, the database says that the name still belongs to it.
                async with self._app.after_upload.serving:
                    older = await anyio.to_thread.run_sync(outbox.replace_older, box.root, folder)
                    await self._app.reconciler.check_paths(box, [os.fsencode(stored), *older])
            else:
                await self._app.reconciler.check_paths(box, [os.fsencode(stored)])
        except (DatabaseBusy, FolderError) as error:
            # The document is on the disk, so every scan finds it.
            log.warning("planned_later", str(error), mapping=mapping, path=os.fsencode(stored))
        return stored

    async def get(self, document: str) -> Document | None:
        """Return a document by its id; None while it is stored but waits for an earlier version."""
        path, boxes = os.fsencode(document), self._outboxes()
        is_stored = await anyio.to_thread.run_sync(
            lambda: any((box.root / document).exists() for box in boxes.values())
        )
        for name in boxes:
            rows = await self._app.reports.by_path(name, path)
            if rows:
                row = rows[0]
                detail = None if row.detail is None else escaped(row.detail)
                return Document(document, State(row.state), row.reason, detail, row.remote_name, row.sha256)
            if await self._app.documents.stamps(name, [path]):
                return _gone(document, "it was downloaded, and is not uploaded again")
        return None if is_stored else _gone(document, "a later document of its name replaced it")

    async def wait(self, document: str) -> Document:
        """Wait until a document is sent, held or gone, and return it.

        A document is gone when a later version replaced it.
        """
        pause = _FIRST_POLL_S
        while (found := await self.get(document)) is None or found.state not in _RESTING:
            await anyio.sleep(pause)
            pause = min(2 * pause, _LONGEST_POLL_S)
        return found

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send due documents while the block runs, and stop at its end, also after an error; see `run` and `stop`."""
        failures: list[Exception] = []
        with plain_errors():
            async with anyio.create_task_group() as group:
                await group.start(self.run, name="send")
                with _kept_apart(failures):
                    yield
                self.stop()
        for failure in failures:
            raise failure

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Send due documents until `stop`. A running daemon makes this unnecessary; both may run at once.

        Only outboxes are scanned for new documents: `docferry run` and `docferry sync` scan the folders of the
        mappings. Cancellation interrupts the requests in flight. Their documents become doubtful, and the next run asks
        the remote about them.

        Raises:
            ConfigError: A remote has no API key.
            RuntimeError: The method was called before; an opened queue runs only once.
        """
        if self._runs:
            raise RuntimeError("this queue runs or has run; open it again")
        self._runs = True
        app = self._app
        if problems := missing_keys(app.settings, app.settings.secrets()):
            raise ConfigError(problems)
        scans = ScanScheduler(app.reconciler, self._outboxes(), app.clock, app.wakeups, app.settings.rescan, app.shares)
        await app.scheduler.prepare()
        with plain_errors():
            async with anyio.create_task_group() as outer:
                await outer.start(app.scheduler.run)
                task_status.started()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(scans.run, name="scan outboxes")
                    tasks.start_soon(app.after_upload.run, name="after upload")
                    for upload in filter(lambda upload: upload.shared, app.uploads.values()):
                        tasks.start_soon(partial(app.scan_scheduler.follow_share, upload, elects=False))
                    await self._stopping.wait()
                    tasks.cancel_scope.cancel()
                await drain(app, outer)
            await app.after_upload.serve()

    def stop(self) -> None:
        """Make `run` return: start no more requests, and give those in flight `stop_grace` to finish."""
        self._stopping.set()

    def _outboxes(self) -> dict[str, Outbox]:
        return {name: upload for name, upload in self._app.uploads.items() if isinstance(upload, Outbox)}

    def _outbox(self, mapping: str) -> Outbox:
        boxes = self._outboxes().values()
        for box in boxes:
            if mapping in (box.origin.configured_name, box.origin.name):
                return box
        known = ", ".join(box.origin.configured_name for box in boxes) or "none"
        raise ConfigError([f'there is no upload mapping "{escaped(mapping)}"; there are: {known}'])


@contextmanager
def _kept_apart(failures: list[Exception]) -> Iterator[None]:
    """Store an error of the block outside the task groups, which would wrap the error in groups."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the caller raises it
        failures.append(error)


def _gone(document: str, detail: str) -> Document:
    return Document(document, State.GONE, None, detail, escaped(inner(os.fsencode(document))), None)


def _require_wanted(box: Outbox, path: bytes) -> None:
    """Raise ConfigError if the mapping excludes this path."""
    if box.origin.left_out(path) is not None or not _enters(box, path):
        raise ConfigError([f'"{escaped(path)}" is no document of {box.origin.name}: its patterns leave it out'])
    route = box.origin.route(path)
    if route.target is None:
        raise ConfigError([f'"{escaped(path)}" {route.problem}'])


def _enters(box: Outbox, path: bytes) -> bool:
    segments = path.split(b"/")[:-1]
    return all(box.origin.enters(b"/".join(segments[:depth])) for depth in range(1, len(segments) + 1))


def _read(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block
