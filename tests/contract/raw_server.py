"""Run a server that sends exact bytes, and a client for it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import SocketListener, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from docferry.clock import SystemClock
from docferry.errors import RemoteError
from docferry.remotes.http import HttpClient, HttpOptions, Response
from docferry.senders.pool import SenderPool
from ready_senders import THROUGH_SENDERS, ready_first

Speak = Callable[[SocketStream], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Serve each connection to a port with `speak`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self.connections = 0
        self.open = 0
        self._closed = anyio.Event()

    def closed(self) -> None:
        self.open -= 1
        self._closed.set()

    async def all_closed(self) -> None:
        while self.open:
            self._closed = anyio.Event()
            await self._closed.wait()


@asynccontextmanager
async def serving(speak: Speak) -> AsyncIterator[Server]:
    door = socket.create_server(("127.0.0.1", 0))
    listener = await SocketListener.from_socket(door)
    async with listener, anyio.create_task_group() as group:
        server = Server(door.getsockname()[1])

        async def talk(client: SocketStream) -> None:
            server.connections += 1
            server.open += 1
            try:
                async with client:
                    await speak(client)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.IncompleteRead):
                pass
            finally:
                server.closed()

        group.start_soon(listener.serve, talk)
        yield server
        group.cancel_scope.cancel()


@asynccontextmanager
async def http_client(**more: Any) -> AsyncIterator[HttpClient]:
    """Return a client; with THROUGH_SENDERS in the environment, all its documents go through a sender process."""
    pool = SenderPool(int(THROUGH_SENDERS))
    http = pool.http_client("Test", SystemClock(), HttpOptions(**({"timeout": 2.0} | more)))
    async with (ready_first(SenderPool.run) if THROUGH_SENDERS else SenderPool.run)(pool):
        try:
            yield http
        finally:
            await http.aclose()


async def head_of(client: SocketStream) -> bytes:
    return await BufferedByteReceiveStream(client).receive_until(b"\r\n\r\n", 65536)


def saying(*blocks: bytes, ends: bool = True) -> Speak:
    """Answer every request with these blocks, each a packet of its own."""

    async def speak(client: SocketStream) -> None:
        while True:
            await head_of(client)
            for block in blocks:
                await client.send(block)
                await anyio.lowlevel.checkpoint()
            if ends:
                return

    return speak


async def asked(speak: Speak, method: str = "GET", **more: Any) -> Response:
    async with serving(speak) as server, http_client() as http:
        try:
            return await http.call(method, server.url, **more)
        except RemoteError as error:
            failed = error
    raise failed  # outside, as a task group would wrap it
