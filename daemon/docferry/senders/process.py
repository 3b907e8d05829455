"""Run a sender process: read, prove, encrypt and send the documents that the daemon passes."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Final, cast

import anyio
import anyio.abc
import httpx
from anyio import to_thread

from docferry.files.source import OpenedFile
from docferry.memory import share_arena
from docferry.model import Source
from docferry.remotes.http.multipart import join_parts
from docferry.remotes.http.options import HttpOptions
from docferry.remotes.http.request_body import TrackedBody
from docferry.remotes.http.response import MAX_CONTENT_BYTES
from docferry.remotes.http.transports import open_transport
from docferry.senders import messages, sandbox
from docferry.senders.channel import Channel, ChannelError, Frame
from docferry.senders.messages import Reply, SendFailure, SendRequest, SendResponse
from docferry.senders.progress import ProgressPage

#: The interval at which the page shows progress of the event loop, seconds.
BEAT_S: Final = 1.0
#: Small documents of one request up to this total are read together.
READ_TOGETHER_BYTES: Final = 1024 * 1024


def run(end: socket.socket, page: int) -> None:
    """Serve requests until the daemon closes the other end of the channel."""
    share_arena()
    shared = ProgressPage(page)
    os.close(page)
    anyio.run(_Sender(Channel(end, takes_descriptors=True), shared).serve)


class _PartsBody:
    """Build a body from the parts that the daemon sent."""

    def __init__(self, parts: Sequence[bytes | Source]) -> None:
        self.parts = parts
        self.length = sum(len(part) if isinstance(part, bytes) else part.size for part in parts)

    def blocks(self) -> AsyncIterator[bytes]:
        return join_parts(self.parts)


class _SharedBody(TrackedBody):
    """Record the progress of a body on the page, before its first byte is yielded."""

    def __init__(self, request: SendRequest, page: ProgressPage) -> None:
        super().__init__(_PartsBody(request.parts))
        self._page, self._slot = page, request.slot
        self._given = 0

    async def next_block(self) -> bytes | None:
        block = await super().next_block()
        if block is not None and not self._given:
            self._page.write(self._slot, begun=True, given=0)
        return block

    def handed_over(self, block: bytes) -> None:
        super().handed_over(block)
        self._given += len(block)
        self._page.write(self._slot, begun=True, given=self._given)


class _Sender:
    """Serve the requests of one process; connections are reused."""

    def __init__(self, channel: Channel, page: ProgressPage) -> None:
        self._channel = channel
        self._page = page
        self._clients: list[HttpOptions] = []
        self._transports: dict[int, httpx.AsyncBaseTransport] = {}
        self._scopes: dict[int, anyio.CancelScope] = {}

    async def serve(self) -> None:
        async with anyio.create_task_group() as group:
            while frames := await self._channel.receive():
                for frame in frames:
                    await self._take(group, frame)
            group.cancel_scope.cancel()

    async def _take(self, group: anyio.abc.TaskGroup, frame: Frame) -> None:
        kind, value = frame.message[:2]
        if kind == messages.REQUEST:
            request = SendRequest.read(frame, self._channel)
            self._scopes[request.number] = scope = anyio.CancelScope()
            group.start_soon(self._answer, request, scope)
        elif kind == messages.CANCEL:
            if value in self._scopes:
                self._scopes[value].cancel()
        elif kind == messages.HELLO:
            self._clients = [messages.read_options(fields) for fields in value]
            sandbox.restrict_files(path.parent for options in self._clients for path in messages.paths_of(options))
            group.start_soon(self._beat)
            await self._channel.send([messages.READY])
        else:
            raise ChannelError(f"there is no message {kind!r}")

    async def _beat(self) -> None:
        while True:
            self._page.set_beat(self._page.beat + 1)
            await anyio.sleep(BEAT_S)

    async def _answer(self, request: SendRequest, scope: anyio.CancelScope) -> None:
        """Send one request and return its reply; errors are replies, too."""
        body = _SharedBody(request, self._page)
        reply: Reply = SendFailure(request.number, "", "", maybe_complete=False)
        with scope:
            try:
                reply = await self._send(request, body)
            except Exception as error:  # noqa: BLE001 - raised in the daemon
                reply = SendFailure.of(request.number, error, maybe_complete=body.maybe_complete)
        del self._scopes[request.number]
        await reply.send(self._channel)

    async def _send(self, request: SendRequest, body: _SharedBody) -> SendResponse:
        async with AsyncExitStack() as stack:
            files = [part for part in request.parts if not isinstance(part, bytes)]
            for file in files:
                stack.callback(file.close)
            for file in files:
                await stack.enter_async_context(file)
            await _read_small([file for file in files if file.is_small])
            stack.push_async_callback(body.aclose)
            asked = httpx.Request(
                request.method, request.url, headers=request.headers, stream=body, extensions=request.extensions
            )
            answered = await self._transport(request.client).handle_async_request(asked)
            content, is_cut = await _read(cast(httpx.AsyncByteStream, answered.stream))
        headers, progress = answered.headers.raw, (body.complete, body.maybe_complete)
        return SendResponse(request.number, answered.status_code, headers, content, *progress, is_cut)

    def _transport(self, client: int) -> httpx.AsyncBaseTransport:
        if client not in self._transports:
            self._transports[client] = open_transport(self._clients[client])
        return self._transports[client]


async def _read_small(files: Sequence[OpenedFile]) -> None:
    """Read the small documents of a form in one call of a thread, unless their total is large."""
    if files and sum(file.size for file in files) <= READ_TOGETHER_BYTES:
        await to_thread.run_sync(_read_each, files)


def _read_each(files: Sequence[OpenedFile]) -> None:
    for file in files:
        file.read_small()


async def _read(stream: httpx.AsyncByteStream) -> tuple[bytes, bool]:
    """Return the raw content, slightly more than its limit at most, and whether it is incomplete."""
    content = bytearray()
    try:
        async for block in stream:
            content += block
            if len(content) > MAX_CONTENT_BYTES:
                break
    except Exception:  # noqa: BLE001 - the status counts, whatever happens to the content
        return bytes(content), True
    finally:
        await stream.aclose()
    return bytes(content), False
