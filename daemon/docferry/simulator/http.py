"""Implement the server side of HTTP/1.1: parse heads, read bodies in blocks, write responses."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import unquote

import anyio
from anyio.lowlevel import checkpoint

from docferry.simulator.connection import Connection, Disconnected, Reset

#: Limit for bodies that are read into memory, bytes.
MAX_BODY_IN_MEMORY = 16 * 1024 * 1024
_CRLF = b"\r\n"


class Malformed(Exception):
    """Report a request that is not valid HTTP; the text goes into the 400."""


@dataclass(slots=True)
class Response:
    """Hold a response, and the way to deliver it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes, None] | None = None  # replaces `body`
    length: int | None = None  # of `stream`; None: up to the end of the connection
    then: Literal["keep", "close", "reset"] = "keep"
    rate: float | None = None  # bytes a second; None: at once
    extra: int = 0  # bytes in Content-Length beyond the body
    cut: int | None = None  # the number of bytes to send of the body

    @classmethod
    def of_json(cls, status: int, value: object, headers: dict[str, str] | None = None) -> Response:
        """Return a response with a JSON body."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class Body:
    """Read a request's body in blocks. Faults set `cut_after` and `rate`."""

    def __init__(self, connection: Connection, length: int | None, *, expects: bool = False) -> None:
        self._connection = connection
        self.length = length  # None: chunked
        self._missing = length or 0  # of the body, or of the chunk
        self._expects = expects  # the client waits for "100 Continue"
        self._in_chunk = False
        self.done = length == 0
        self.read = 0
        self.cut_after: int | None = None
        self.rate: float | None = None

    async def block(self) -> bytes:
        """Return the next bytes; b"" at the end."""
        if self.done:
            return b""
        if self._expects:
            self._expects = False
            await self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.length is None and not self._missing and not await self._next_chunk():
            return b""
        data = await self._connection.read_at_most(self._missing if self.cut_after is None else self._until_cut())
        self._missing -= len(data)
        self.read += len(data)
        self.done = self.length is not None and not self._missing
        if self.cut_after is not None and self.read >= self.cut_after:
            raise Reset
        if self.rate is not None:
            await anyio.sleep(len(data) / self.rate)
        return data

    async def read_all(self, limit: int = MAX_BODY_IN_MEMORY) -> bytes:
        """Return the whole body. Raises Malformed if it has more than `limit` bytes."""
        if self.length is not None and self.length > limit:
            raise Malformed(f"the body has {self.length} bytes, more than {limit}")
        blocks = []
        while block := await self.block():
            blocks.append(block)
            if self.read > limit:
                raise Malformed(f"the body has more than {limit} bytes")
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    async def drain(self) -> None:
        """Read and discard the rest."""
        while await self.block():
            pass

    @property
    def awaits_continue(self) -> bool:
        """Return whether the client still waits for `100 Continue`."""
        return self._expects

    async def _next_chunk(self) -> bool:
        if self._in_chunk:
            await self._connection.read_until(_CRLF)
        size = await self._connection.read_until(_CRLF)
        self._in_chunk = True
        try:
            self._missing = int(size.split(b";")[0], 16)
        except ValueError:
            raise Malformed("a chunk has no size") from None
        if self._missing == 0:
            while await self._connection.read_until(_CRLF):
                pass
            self.done = True
        return not self.done

    def _until_cut(self) -> int:
        assert self.cut_after is not None  # noqa: S101 - for the type checker; the caller has checked it
        return max(1, min(self._missing, self.cut_after - self.read))


@dataclass(slots=True)
class Request:
    """Hold one request, and the changes of a fault to its processing."""

    connection: Connection
    method: str
    path: str  # unchanged, without the query
    query: str  # unchanged
    headers: dict[str, str]  # names in lower case; repeated ones joined by a comma
    body: Body
    keep_alive: bool
    secure: bool = False
    forced: Response | None = None  # the response that the service itself gives
    stores: bool = True  # with `forced`: whether the service still stores the document
    late: float = 0.0  # delay of storing, seconds
    latency: float = 0.0  # wait before the response, seconds
    admitted: str | None = None  # the company whose concurrency includes this request

    @property
    def segments(self) -> list[str]:
        """Return the decoded segments of the path."""
        return [unquote(segment) for segment in self.path.split("/")[1:]]

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """Return the decoded pairs of the query; `+` stays `+`, as in S3."""
        pairs = (pair.partition("=") for pair in self.query.split("&") if pair)
        return [(unquote(name), unquote(value)) for name, _, value in pairs]

    def parameter(self, name: str) -> str | None:
        """Return the first value of a query parameter, or None."""
        return next((value for found, value in self.parameters if found == name), None)

    @property
    def base(self) -> str:
        """Return `http://host:port` as addressed by the client."""
        return f"{'https' if self.secure else 'http'}://{self.headers.get('host', 'localhost')}"

    async def pause(self) -> None:
        """Wait for the latency, once."""
        if self.latency:
            seconds, self.latency = self.latency, 0.0
            await anyio.sleep(seconds)

    async def json(self) -> Any:
        """Return the body as JSON. Raises Malformed if it is not JSON."""
        try:
            return json.loads(await self.body.read_all())
        except ValueError:
            raise Malformed("the body is not JSON") from None


async def next_request(connection: Connection, *, secure: bool) -> Request | None:
    """Return the next request's head, or None if the client closed the connection."""
    try:
        head = await connection.read_until(b"\r\n\r\n")
    except Disconnected:
        return None
    lines = head.decode("latin-1").lstrip("\r\n").split("\r\n")
    try:
        method, target, version = lines[0].split(" ")
    except ValueError:
        raise Malformed("the request line is malformed") from None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise Malformed("a header has no colon")
        name = name.lower()
        headers[name] = f"{headers[name]},{value.strip()}" if name in headers else value.strip()
    path, _, query = target.partition("?")
    keep = version != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
    return Request(connection, method, path, query, headers, _body(connection, headers), keep, secure)


def _body(connection: Connection, headers: Mapping[str, str]) -> Body:
    expects = headers.get("expect", "").lower() == "100-continue"
    if "transfer-encoding" in headers:
        if "content-length" in headers or headers["transfer-encoding"].lower() != "chunked":
            raise Malformed("the body's length is ambiguous")
        return Body(connection, None, expects=expects)
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Malformed("Content-Length is not a number")
    return Body(connection, int(length), expects=expects)


async def deliver(connection: Connection, response: Response, date: str, *, to_head: bool = False) -> None:
    """Write the response at its rate."""
    length = response.length if response.stream is not None else len(response.body)
    head = _head(response, date, length) + (b"" if to_head else response.body[: response.cut])
    if response.rate is None:
        await connection.write(head)
    else:
        await _write_slowly(connection, head, response.rate)
    if response.stream is not None and not to_head:
        await _write_stream(connection, response.stream, response.cut)


async def _write_stream(connection: Connection, stream: AsyncGenerator[bytes, None], cut: int | None) -> None:
    sent = 0
    async with aclosing(stream):
        async for block in stream:
            await connection.write(block if cut is None else block[: cut - sent])
            await checkpoint()  # allows a lost connection to be noticed between writes
            sent += len(block)
            if cut is not None and sent >= cut:
                return


def _head(response: Response, date: str, length: int | None) -> bytes:
    status = response.status
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Other"
    lines = [f"HTTP/1.1 {status} {phrase}", f"Date: {date}", "Server: docferry-simulator"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    if length is not None and status not in (204, 304):
        lines.append(f"Content-Length: {length + response.extra}")
    if response.then != "keep":
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


async def _write_slowly(connection: Connection, data: bytes, rate: float) -> None:
    step = max(1, int(rate / 10))  # ten writes a second
    for start in range(0, len(data), step):
        if connection.is_closed:
            raise Disconnected
        await connection.write(data[start : start + step])
        await anyio.sleep(step / rate)
