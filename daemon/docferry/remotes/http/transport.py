"""Implement an httpx transport for documents: direct, reused connections with exact progress of each body."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import AsyncIterator
from typing import Final

import anyio
import httpx

from docferry.endpoints import Origin, parse_url
from docferry.remotes.http.connect import Connector, resolve
from docferry.remotes.http.connection import Connection, Timeouts
from docferry.remotes.http.exchange import OutgoingRequest, encode_head
from docferry.remotes.http.public_addresses import PublicOnly
from docferry.remotes.http.request_body import TrackedBody
from docferry.remotes.http.response_parser import ResponseHead
from docferry.remotes.http.tls import Trust, explain_tls, handshake

#: The longest idle time of a reusable connection; a server may set a shorter one.
_KEEP_ALIVE_S: Final = 10.0
_KEEP_ALIVE: Final = re.compile(rb"timeout=([0-9]{1,6})")


class DirectTransport(httpx.AsyncBaseTransport):
    """Use a separate connection for each concurrent request, to any number of origins; no request waits for another.

    A cancelled or failed request closes its connection. A TrackedBody as request body is told the bytes that the kernel
    took. Of the `timeout` extension, `connect` covers all addresses and TLS; `write` and `read` limit the time without
    progress. All errors are those of httpx.
    """

    def __init__(
        self,
        trust: Trust,
        *,
        local_address: str | None = None,
        public_only: PublicOnly | None = None,
    ) -> None:
        self._trust = trust
        self._local_address = local_address
        self._public_only = public_only
        self._idle: dict[Origin, list[Connection]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return its response; the caller closes the stream."""
        url, stream = request.url, request.stream
        body = stream if isinstance(stream, TrackedBody) else await request.aread()
        head = encode_head(request.method, url.raw_path, request.headers.raw)
        timeouts = request.extensions.get("timeout", {})
        response, content = await self.exchange(OutgoingRequest(parse_url(str(url))[1], head, body, timeouts))
        return httpx.Response(response.status, headers=response.headers, stream=content, request=request)

    async def exchange(self, request: OutgoingRequest) -> tuple[ResponseHead, httpx.AsyncByteStream]:
        """Send a request; return the head of its response, and its body for the caller to close."""
        origin, timeouts = request.origin, request.timeouts
        limits = Timeouts(timeouts.get("write"), timeouts.get("read"))
        connection = self._take_idle(origin) or await self._connect(origin, timeouts.get("connect"))
        try:
            response = await connection.exchange(
                request.method, request.head, request.body, limits, expect_continue=request.expect_continue
            )
        except BaseException:
            connection.close()
            raise
        return response, _ResponseStream(self, origin, connection, response.headers, limits.read)

    async def aclose(self) -> None:
        """Close idle connections; those in use close with their responses."""
        self._closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def put_idle(self, origin: Origin, connection: Connection, headers: list[tuple[bytes, bytes]]) -> None:
        """Store the connection for the next request, for as long as the server allows."""
        if self._closed:
            connection.close()
            return
        connection.expires = time.monotonic() + _keep_alive_s(headers)
        self._idle.setdefault(origin, []).append(connection)

    def _take_idle(self, origin: Origin) -> Connection | None:
        """Return the latest idle connection that is still open; close expired ones."""
        connections = self._idle.get(origin)
        now = time.monotonic()
        while connections:
            connection = connections.pop()
            if connection.expires > now and connection.is_idle():
                while connections and connections[0].expires <= now:
                    connections.pop(0).close()
                return connection
            connection.close()
        return None

    async def _connect(self, origin: Origin, timeout: float | None) -> Connection:
        connector = Connector(origin.host, origin.port, self._local_address)
        connected = False
        try:
            with anyio.fail_after(timeout):
                addresses = await resolve(origin.host, origin.port)
                if self._public_only is not None:
                    await self._public_only.require(origin.host, addresses)
                opened = await connector.connect_to(addresses)
                connected = True
                if origin.is_tls:
                    opened = await handshake(opened, self._trust.context(), origin.host)
                return Connection(opened)
        except TimeoutError as error:
            if connected:
                raise httpx.ConnectTimeout(f"the TLS handshake was not complete after {timeout:g} s") from error
            tried = connector.summary() or "its name was not looked up"
            raise httpx.ConnectTimeout(f"no connection after {timeout:g} s ({tried})") from error
        except ssl.SSLError as error:
            raise httpx.ConnectError(explain_tls(error)) from error
        except OSError as error:
            during = " during the TLS handshake" if connected else ""
            raise httpx.ConnectError(f"{(error.strerror or str(error)).lower()}{during}") from error


class _ResponseStream(httpx.AsyncByteStream):
    """Read the body of a response. At its end the connection becomes idle; an earlier close closes the connection."""

    def __init__(
        self,
        transport: DirectTransport,
        origin: Origin,
        connection: Connection,
        headers: list[tuple[bytes, bytes]],
        timeout: float | None,
    ) -> None:
        self._transport = transport
        self._origin = origin
        self._connection: Connection | None = connection
        self._headers = headers
        self._timeout = timeout

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        connection = self._connection
        if connection is None:
            raise StopAsyncIteration
        try:
            block = await connection.read_body(self._timeout)
        except BaseException:
            await self.aclose()
            raise
        if block is not None:
            return block
        if connection.can_keep_alive:
            self._connection = None
            self._transport.put_idle(self._origin, connection, self._headers)
        else:
            await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _keep_alive_s(headers: list[tuple[bytes, bytes]]) -> float:
    """Return a second less than the server's limit, because the next request needs time to arrive."""
    for name, value in headers:
        if name == b"keep-alive" and (found := _KEEP_ALIVE.search(value)):
            return min(_KEEP_ALIVE_S, max(0.0, int(found[1]) - 1.0))
    return _KEEP_ALIVE_S
