"""The same by a proxy, on httpx's own transport: who needs one gets its tunnels, and does without the lean line."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping

import httpx

from docferry.remotes.body import Outgoing
from docferry.remotes.wire import Request


class Proxied:
    """Requests by a proxy, over at most so many connections; one that is free is waited for so many seconds."""

    def __init__(self, proxy: str, trust: ssl.SSLContext, connections: int, patience: float) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._transport = httpx.AsyncHTTPTransport(
            verify=trust, trust_env=False, limits=limits, retries=0, proxy=httpx.Proxy(proxy)
        )
        self._patience = patience

    async def exchange(self, request: Request) -> _Reply:
        origin, (connect, read, write) = request.address.origin, request.patience
        url = httpx.URL(f"{origin.scheme}://{origin.named}{request.address.target}")
        body = httpx.ByteStream(request.body) if isinstance(request.body, bytes) else _Leaving(request.body)
        asked = httpx.Request(request.method, url, headers=request.fields, stream=body)
        asked.extensions["timeout"] = {"connect": connect, "read": read, "write": write, "pool": self._patience}
        return _Reply(await self._transport.handle_async_request(asked))

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Leaving(httpx.AsyncByteStream):
    """Nobody knows when a block leaves: it may be gone as soon as it was asked for."""

    def __init__(self, body: Outgoing) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for block in self._body:
            self._body.accepted()
            yield block


class _Reply:
    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self._response = response

    def blocks(self) -> AsyncIterator[bytes]:
        if not isinstance(self._response.stream, httpx.AsyncByteStream):
            raise TypeError("the transport is not asynchronous")
        return aiter(self._response.stream)

    async def aclose(self) -> None:
        await self._response.aclose()
