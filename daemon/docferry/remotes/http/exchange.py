"""Define what a transport takes and returns.

httpx's own requests and responses cost 60 µs a request, as much as everything else in the client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import httpx
from msgspec import Struct

from docferry.endpoints import Origin
from docferry.remotes.http.request_body import TrackedBody
from docferry.remotes.http.response_parser import ResponseHead

#: Characters that would split a header in two or invalidate it; line breaks are counted.
_UNSAFE: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class OutgoingRequest(Struct):
    """Hold one request with an encoded head, down to its empty line.

    `timeouts` are those of httpx's extension `timeout`, seconds.
    """

    origin: Origin
    head: bytes
    body: bytes | TrackedBody
    timeouts: Mapping[str, float]
    expect_continue: bool = False

    @property
    def method(self) -> str:
        """Return the method."""
        return self.head[: self.head.index(b" ")].decode("ascii")

    @property
    def target(self) -> bytes:
        """Return path and query."""
        return self.head.split(b" ", 2)[1]

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Return the header fields."""
        lines = [line.partition(b": ") for line in self.head.split(b"\r\n")[1:-2]]
        return [(name, value) for name, _, value in lines]


class Transport(Protocol):
    """Send requests; all errors are httpx's, or those of the request's body."""

    async def exchange(self, request: OutgoingRequest) -> tuple[ResponseHead, httpx.AsyncByteStream]:
        """Send a request; return the head of its response, and its body, which the caller closes."""

    async def aclose(self) -> None:
        """Close idle connections; those in use close with their responses."""


def encode_head(method: str, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the head of a request. Raises httpx.LocalProtocolError if it cannot be sent."""
    lines = [b"%s %s HTTP/1.1" % (method.encode("ascii"), target)]
    lines += [b"%s: %s" % field for field in fields]
    lines.append(b"\r\n")
    head = b"\r\n".join(lines)
    if _UNSAFE.search(head) or head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
        raise httpx.LocalProtocolError("a header holds a control character, such as a line break")
    return head
