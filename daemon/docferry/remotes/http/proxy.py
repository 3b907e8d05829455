"""Send requests through a proxy, with httpx's own transport."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Final, cast

import anyio
import httpx
from anyio.lowlevel import checkpoint

from docferry.endpoints import parse_proxy
from docferry.remotes.http.connection import DISCARD_UNSENT
from docferry.remotes.http.exchange import OutgoingRequest
from docferry.remotes.http.public_addresses import PublicOnly
from docferry.remotes.http.request_body import TrackedBody
from docferry.remotes.http.response_parser import ResponseHead
from docferry.remotes.http.tls import Trust, explain_tls, find_tls_error

#: Unsent bytes in the kernel are not observable here. A small buffer keeps them few, so that a slow line does not look
#: dead.
_SEND_BUFFER: Final = (socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
_ADVICE: Final = {
    "401": "set user and password in `proxy`",
    "407": "set user and password in `proxy`",
    "403": "the proxy must allow this host",
    "502": "the proxy cannot reach the host",
    "503": "the proxy cannot reach the host, or is overloaded",
    "504": "the proxy cannot reach the host",
}


#: Blocks of a response after which their average must be 16 bytes: chunks of one byte are an attack.
_FREE_BLOCKS: Final = 4096
_BLOCKS_PER_YIELD: Final = 64


class ProxyTransport(httpx.AsyncBaseTransport):
    """Use one httpx transport with one connection for each request, and reuse those of finished requests.

    httpx's pool leaks a slot if a request is cancelled at the wrong moment. Here an unfinished request closes its
    transport, so no slot can leak.
    """

    def __init__(
        self,
        proxy: str,
        trust: Trust,
        *,
        local_address: str | None = None,
        public_only: PublicOnly | None = None,
    ) -> None:
        self._proxy = parse_proxy(proxy)
        self._trust = trust
        self._local_address = local_address
        self._public_only = public_only
        self._idle: list[httpx.AsyncHTTPTransport] = []
        self._closed = False

    async def exchange(self, request: OutgoingRequest) -> tuple[ResponseHead, httpx.AsyncByteStream]:
        """Send a request; return the head of its response, and its body, which the caller closes."""
        origin, body = request.origin, request.body
        asked = httpx.Request(
            request.method,
            f"{origin.scheme}://{origin.authority}{request.target.decode('ascii')}",
            headers=request.fields,
            stream=body if isinstance(body, TrackedBody) else httpx.ByteStream(body),
            extensions={"timeout": request.timeouts},
        )
        answered = await self.handle_async_request(asked)
        head = ResponseHead(answered.status_code, answered.headers.raw, until_close=False, keep_alive=False)
        return head, cast(httpx.AsyncByteStream, answered.stream)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return its response; the caller closes the stream."""
        timeout = request.extensions.get("timeout", {})
        if self._public_only is not None:
            await self._public_only.require_for_proxy(request.url.host, request.url.port or 443)
        transport = self._idle.pop() if self._idle else self._open()
        try:
            response = await _send(transport, request)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await transport.aclose()
            if isinstance(error, httpx.HTTPError):
                raise self._explained(error) from error
            raise
        content = _ResponseStream(self, transport, response, timeout.get("read"))
        return httpx.Response(response.status_code, headers=response.headers, stream=content, request=request)

    async def aclose(self) -> None:
        """Close idle connections; those in use close with their responses."""
        self._closed = True
        while self._idle:
            await self._idle.pop().aclose()

    async def put_idle(self, transport: httpx.AsyncHTTPTransport) -> None:
        """Store a transport for reuse after its response was read to the end."""
        if self._closed:
            await transport.aclose()
        else:
            self._idle.append(transport)

    def _open(self) -> httpx.AsyncHTTPTransport:
        proxy = self._proxy
        credentials = None if proxy.user is None else (proxy.user, proxy.password)
        try:
            return httpx.AsyncHTTPTransport(
                verify=self._trust.context(),
                trust_env=False,
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
                proxy=httpx.Proxy(proxy.url, auth=credentials),
                local_address=self._local_address,
                socket_options=[
                    _SEND_BUFFER,
                    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                    (socket.SOL_SOCKET, socket.SO_LINGER, DISCARD_UNSENT),
                ],
            )
        except ValueError as error:
            raise httpx.ConnectError(str(error)) from error
        except ImportError:
            raise httpx.ConnectError("SOCKS needs a package more: pip install 'docferry[socks]'") from None

    def _explained(self, error: httpx.HTTPError) -> httpx.HTTPError:
        """Return the error, with the proxy named if the proxy caused it."""
        name = f"the proxy {self._proxy.host}:{self._proxy.port}"
        if isinstance(error, httpx.ProxyError):
            said = str(error)[:100]
            advice = _ADVICE.get(said[:3], "ask its operator")
            return httpx.ProxyError(f"{name} refused the connection ({said}): {advice}")
        if isinstance(error, httpx.ConnectError):
            tls = find_tls_error(error)
            why = explain_tls(tls) if tls is not None else f"{name}: {str(error)[:200].lower()}"
            return httpx.ConnectError(why)
        if isinstance(error, httpx.ConnectTimeout):
            return httpx.ConnectTimeout(f"no connection through {name} in time")
        return error


async def _send(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
    """Send the request. Raises httpx.ReadTimeout without progress; interim responses (1xx) are no progress."""
    timeout = request.extensions.get("timeout", {})
    limit = timeout.get("read")
    with anyio.CancelScope() as scope:
        if limit is not None:
            scope.deadline = anyio.current_time() + (timeout.get("connect") or limit) + limit
            request.stream = _WatchedStream(cast(httpx.AsyncByteStream, request.stream), scope, limit)
        return await transport.handle_async_request(request)
    raise httpx.ReadTimeout("no response in time")


class _WatchedStream(httpx.AsyncByteStream):
    """Extend a deadline with each block of a request body."""

    def __init__(self, stream: httpx.AsyncByteStream, scope: anyio.CancelScope, timeout: float) -> None:
        self._stream = stream
        self._scope = scope
        self._timeout = timeout

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for block in self._stream:
            yield block
            self._scope.deadline = anyio.current_time() + self._timeout


class _ResponseStream(httpx.AsyncByteStream):
    """Read the body of a response, with a limit for the time without a byte."""

    def __init__(
        self,
        owner: ProxyTransport,
        transport: httpx.AsyncHTTPTransport,
        response: httpx.Response,
        timeout: float | None,
    ) -> None:
        self._owner = owner
        self._transport: httpx.AsyncHTTPTransport | None = transport
        self._response = response
        self._blocks = aiter(cast(httpx.AsyncByteStream, response.stream))
        self._timeout = timeout
        self._count = self._length = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        transport = self._transport
        if transport is None:
            raise StopAsyncIteration
        try:
            with anyio.fail_after(self._timeout):
                block = await anext(self._blocks, None)
                if block is None:
                    await self._response.aclose()
        except TimeoutError:
            await self.aclose()
            raise httpx.ReadTimeout("the response made no progress in time") from None
        except BaseException:
            await self.aclose()
            raise
        if block is not None:
            await self._check(block)
            return block
        self._transport = None
        await self._owner.put_idle(transport)
        raise StopAsyncIteration

    async def _check(self, block: bytes) -> None:
        self._count += 1
        self._length += len(block)
        if self._count > _FREE_BLOCKS and self._length < 16 * self._count:
            await self.aclose()
            raise httpx.RemoteProtocolError("the response body has more framing than content")
        if self._count % _BLOCKS_PER_YIELD == 0:
            await checkpoint()

    async def aclose(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            with anyio.CancelScope(shield=True):
                await self._response.aclose()
                await transport.aclose()
