"""Run a sender process: read, prove, encrypt and send the documents that the daemon passes."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Final

import anyio
import anyio.abc
import httpx
from anyio import to_thread

from docferry import event_loop
from docferry.files.source import OpenedFile
from docferry.memory import configure_malloc
from docferry.model import Source
from docferry.remotes.http.exchange import OutgoingRequest, Transport
from docferry.remotes.http.multipart import join_parts
from docferry.remotes.http.options import HttpOptions
from docferry.remotes.http.request_body import TrackedBody
from docferry.remotes.http.response import MAX_RECEIPT_BYTES
from docferry.remotes.http.transports import open_transport
from docferry.senders import messages, sandbox
from docferry.senders.channel import Channel, ChannelError, Frame
from docferry.senders.messages import Reply, SendFailure, SendRequest, SendResponse
from docferry.senders.progress import ProgressPage

#: The interval at which the page shows progress of the event loop, seconds.
BEAT_S: Final = 1.0
#: Small documents of one request up to this total are read together.
READ_TOGETHER_BYTES: Final = 1024 * 1024
#: A smaller body is one block, as it would be in the daemon.
ONE_BLOCK_BYTES: Final = 128 * 1024


def run(end: socket.socket, page: int) -> None:
    """Serve requests until the daemon closes the other end of the channel."""
    configure_malloc()
    shared = ProgressPage(page)
    os.close(page)
    event_loop.run(_Sender(Channel(end, takes_descriptors=True), shared).serve)


def len_of(part: bytes | Source) -> int:
    """Return the bytes of a part."""
    return len(part) if isinstance(part, bytes) else part.size


class _PartsBody:
    """Build a body from the parts that the daemon sent."""

    def __init__(self, parts: Sequence[bytes | Source]) -> None:
        self.parts = parts
        self.length = sum(map(len_of, parts))

    def blocks(self) -> AsyncIterator[bytes]:
        return join_parts(self.parts)


class _ReportedBody(TrackedBody):
    """Record on the page that the body begins, before its first byte is yielded, and its sent bytes."""

    def __init__(self, request: SendRequest, page: ProgressPage) -> None:
        super().__init__(_PartsBody(request.parts))
        self._page, self._slot = page, request.slot
        self._given = 0

    async def next_block(self) -> bytes | None:
        block = await super().next_block()
        if not self._given:
            self._begin()
        return block

    def handed_over(self, block: bytes) -> None:
        super().handed_over(block)
        self._given += len(block)
        self._page.write(self._slot, begun=True, given=self._given)

    def _begin(self) -> None:
        self._page.write(self._slot, begun=True, given=0)


class _OneBlockBody(_ReportedBody):
    """Yield a small body as one block; its files are read at that moment."""

    def __init__(self, request: SendRequest, page: ProgressPage) -> None:
        super().__init__(request, page)
        self._parts: Sequence[bytes | OpenedFile] | None = request.parts

    async def next_block(self) -> bytes | None:
        parts, self._parts = self._parts, None
        if parts is None:
            return None
        await _read_small(_files_of(parts))
        self._left = 0
        self._begin()
        return b"".join([part if isinstance(part, bytes) else part.whole or b"" for part in parts])


class _Sender:
    """Serve the requests of one process; connections are reused."""

    _group: anyio.abc.TaskGroup  # of the requests

    def __init__(self, channel: Channel, page: ProgressPage) -> None:
        self._channel = channel
        self._page = page
        self._clients: list[HttpOptions] = []
        self._transports: dict[int, Transport] = {}
        self._tasks: dict[int, anyio.TaskHandle[None]] = {}

    async def serve(self) -> None:
        async with anyio.create_task_group() as group:
            self._group = group
            await self._channel.serve(self)
            group.cancel_scope.cancel()

    def take(self, frame: Frame) -> None:
        """Start a request, cancel one, or read the first message; see `messages`."""
        if frame.kind == messages.REQUEST:
            request = SendRequest.read(frame, self._channel)
            self._tasks[frame.number] = self._group.start_soon(self._answer, frame.number, request)
        elif frame.kind == messages.CANCEL:
            if frame.number in self._tasks:
                self._tasks[frame.number].cancel()
        elif frame.kind == messages.HELLO:
            self._clients = messages.read_hello(frame)
            sandbox.restrict_files(path.parent for options in self._clients for path in messages.paths_of(options))
            self._group.start_soon(self._beat)
            self._channel.write(Frame(messages.READY))
        else:
            raise ChannelError(f"there is no message {frame.kind}")

    async def _beat(self) -> None:
        while True:
            self._page.set_beat(self._page.beat + 1)
            await anyio.sleep(BEAT_S)

    async def _answer(self, number: int, request: SendRequest) -> None:
        """Send one request and its reply; every error is the reply."""
        files = _files_of(request.parts)
        reply: Reply = SendFailure("", "", maybe_complete=False)  # when it is cancelled
        is_one_block = sum(map(len_of, request.parts)) < ONE_BLOCK_BYTES
        body = (_OneBlockBody if is_one_block else _ReportedBody)(request, self._page)
        try:
            if is_one_block:
                reply = await self._exchange(request, body)
            else:
                reply = await self._send_large(request, body, files)
        except Exception as error:  # noqa: BLE001 - it is raised where the request came from
            reply = SendFailure.of(error, maybe_complete=body.maybe_complete)
        finally:
            for file in files:
                file.close()
            del self._tasks[number]
            self._channel.write(reply.frame(number))

    async def _send_large(self, request: SendRequest, body: TrackedBody, files: Sequence[OpenedFile]) -> SendResponse:
        async with AsyncExitStack() as stack:
            for file in files:
                await stack.enter_async_context(file)
            small = [file for file in files if file.is_small]
            if sum(file.size for file in small) <= READ_TOGETHER_BYTES:
                await _read_small(small)
            stack.push_async_callback(body.aclose)
            return await self._exchange(request, body)

    async def _exchange(self, request: SendRequest, body: TrackedBody) -> SendResponse:
        timeouts = self._clients[request.client].timeouts
        asked = OutgoingRequest(request.origin, request.head, body, timeouts, request.expect_continue)
        answered, stream = await self._transport(request.client).exchange(asked)
        content, is_cut = await _read(stream)
        return SendResponse(answered.status, answered.headers, content, body.complete, body.maybe_complete, is_cut)

    def _transport(self, client: int) -> Transport:
        if client not in self._transports:
            self._transports[client] = open_transport(self._clients[client])
        return self._transports[client]


def _files_of(parts: Sequence[bytes | OpenedFile]) -> list[OpenedFile]:
    return [part for part in parts if not isinstance(part, bytes)]


async def _read_small(files: Sequence[OpenedFile]) -> None:
    """Read small documents: from the page cache at once, the others in one call of a thread."""
    waiting = [file for file in files if not file.read_cached()]
    if waiting:
        await to_thread.run_sync(_read_each, waiting)


def _read_each(files: Sequence[OpenedFile]) -> None:
    for file in files:
        file.read_small()


async def _read(stream: httpx.AsyncByteStream) -> tuple[bytes, bool]:
    """Return the raw content, which exceeds its limit by at most one block, and whether it broke off."""
    content = bytearray()
    try:
        async for block in stream:
            content += block
            if len(content) > MAX_RECEIPT_BYTES:
                break
    except Exception:  # noqa: BLE001 - the status counts, whatever happens to the content
        return bytes(content), True
    finally:
        await stream.aclose()
    return bytes(content), False
