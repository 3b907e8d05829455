"""Measure the sink alone: prebuilt requests from raw sockets, in a process of its own.

`python -m benchmarks.ceiling PORT REQUESTS BODY` prints requests a second.
"""

from __future__ import annotations

import asyncio
import sys
import time

AT_ONCE = 8


class Raw(asyncio.Protocol):
    """Sends one request after the other, the same bytes each time."""

    def __init__(self, request: bytes, left: list[int], over: asyncio.Event) -> None:
        self._request = request
        self._left = left
        self._over = over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        assert data.endswith(b"\r\n\r\n")
        self._next()

    def _next(self) -> None:
        self._left[0] -= 1
        if self._left[0] < 0:
            self._over.set()
            self._transport.close()
        else:
            self._transport.write(self._request)


async def _measure(port: int, requests: int, body: int) -> float:
    head = f"PUT /bench/x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {body}\r\n\r\n".encode()
    request, left, over = head + bytes(body), [requests], asyncio.Event()
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    for _ in range(AT_ONCE):
        await loop.create_connection(lambda: Raw(request, left, over), "127.0.0.1", port)
    await over.wait()
    return requests / (time.perf_counter() - began)


if __name__ == "__main__":
    print(asyncio.run(_measure(*map(int, sys.argv[1:4]))))
