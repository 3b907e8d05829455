"""HTTP/1.1 as a server needs it: heads parsed, bodies in blocks, answers written whole or as a fault wants them."""

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

from docferry.simulator.wire import Gone, Reset, Wire

#: Bodies that are no documents may have so many bytes.
LARGEST_WHOLE = 16 * 1024 * 1024
_CRLF = b"\r\n"


class Malformed(Exception):
    """What came is no HTTP; the sentence goes into a 400."""


@dataclass(slots=True)
class Answer:
    """A response, and how it is to be delivered."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes, None] | None = None  # instead of `body`
    length: int | None = None  # of `stream`; None: until the connection ends
    then: Literal["keep", "close", "reset"] = "keep"
    rate: float | None = None  # bytes a second; None: at once
    extra: int = 0  # bytes that Content-Length promises on top
    cut: int | None = None  # of the body only so many bytes are sent

    @classmethod
    def of_json(cls, status: int, value: object, headers: dict[str, str] | None = None) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class Body:
    """A request's body, read block by block. Faults set `cut_after` and `rate`."""

    def __init__(self, wire: Wire, length: int | None, *, expects: bool = False) -> None:
        self._wire = wire
        self.length = length  # None: chunked
        self._missing = length or 0  # of the body, or of the chunk
        self._expects = expects  # the client waits for "100 Continue"
        self._in_chunk = False
        self.done = length == 0
        self.read = 0
        self.cut_after: int | None = None
        self.rate: float | None = None

    async def block(self) -> bytes:
        """The next bytes; b"" when all are read."""
        if self.done:
            return b""
        if self._expects:
            self._expects = False
            await self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.length is None and not self._missing and not await self._next_chunk():
            return b""
        data = await self._wire.at_most(self._missing if self.cut_after is None else self._until_cut())
        self._missing -= len(data)
        self.read += len(data)
        self.done = self.length is not None and not self._missing
        if self.cut_after is not None and self.read >= self.cut_after:
            raise Reset
        if self.rate is not None:
            await anyio.sleep(len(data) / self.rate)
        return data

    async def whole(self, limit: int = LARGEST_WHOLE) -> bytes:
        """All of it; Malformed when it has more than `limit` bytes."""
        if self.length is not None and self.length > limit:
            raise Malformed(f"the body has {self.length} bytes, more than {limit}")
        blocks = []
        while block := await self.block():
            blocks.append(block)
            if self.read > limit:
                raise Malformed(f"the body has more than {limit} bytes")
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    async def drain(self) -> None:
        """Read the rest and forget it."""
        while await self.block():
            pass

    @property
    def unwanted(self) -> bool:
        """The client still waits to be asked for its body."""
        return self._expects

    async def _next_chunk(self) -> bool:
        if self._in_chunk:
            await self._wire.until(_CRLF)
        size = await self._wire.until(_CRLF)
        self._in_chunk = True
        try:
            self._missing = int(size.split(b";")[0], 16)
        except ValueError:
            raise Malformed("a chunk has no size") from None
        if self._missing == 0:
            while await self._wire.until(_CRLF):
                pass
            self.done = True
        return not self.done

    def _until_cut(self) -> int:
        assert self.cut_after is not None  # noqa: S101 - for the type checker; the caller has asked
        return max(1, min(self._missing, self.cut_after - self.read))


@dataclass(slots=True)
class Request:
    """One request, and what a fault wants of the shore that answers it."""

    wire: Wire
    method: str
    path: str  # as it was sent, without the query
    query: str  # as it was sent
    headers: dict[str, str]  # names in lower case; repeated ones joined by a comma
    body: Body
    keep_alive: bool
    secure: bool = False
    forced: Answer | None = None  # the service itself is to give this answer
    stores: bool = True  # with `forced`: does it store all the same?
    late: float = 0.0  # what is stored is stored so many seconds later
    latency: float = 0.0  # seconds still to let pass before the answer
    admitted: str | None = None  # the company that counts this request among those at once

    @property
    def segments(self) -> list[str]:
        return [unquote(segment) for segment in self.path.split("/")[1:]]

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """The query's pairs, unquoted; `+` stays what it is, as S3 has it."""
        pairs = (pair.partition("=") for pair in self.query.split("&") if pair)
        return [(unquote(name), unquote(value)) for name, _, value in pairs]

    def parameter(self, name: str) -> str | None:
        return next((value for found, value in self.parameters if found == name), None)

    @property
    def base(self) -> str:
        """`http://host:port` as the client knows this server."""
        return f"{'https' if self.secure else 'http'}://{self.headers.get('host', 'localhost')}"

    async def pause(self) -> None:
        """Let the latency pass, once."""
        if self.latency:
            seconds, self.latency = self.latency, 0.0
            await anyio.sleep(seconds)

    async def json(self) -> Any:
        """The body as JSON; Malformed if it is none."""
        try:
            return json.loads(await self.body.whole())
        except ValueError:
            raise Malformed("the body is no JSON") from None


async def next_request(wire: Wire, *, secure: bool) -> Request | None:
    """The next request's head; None when the client has ended the connection."""
    try:
        head = await wire.until(b"\r\n\r\n")
    except Gone:
        return None
    lines = head.decode("latin-1").lstrip("\r\n").split("\r\n")
    try:
        method, target, version = lines[0].split(" ")
    except ValueError:
        raise Malformed("the request line is none") from None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise Malformed("a header has no colon")
        name = name.lower()
        headers[name] = f"{headers[name]},{value.strip()}" if name in headers else value.strip()
    path, _, query = target.partition("?")
    keep = version != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
    return Request(wire, method, path, query, headers, _body(wire, headers), keep, secure)


def _body(wire: Wire, headers: Mapping[str, str]) -> Body:
    expects = headers.get("expect", "").lower() == "100-continue"
    if "transfer-encoding" in headers:
        if "content-length" in headers or headers["transfer-encoding"].lower() != "chunked":
            raise Malformed("the body's length is ambiguous")
        return Body(wire, None, expects=expects)
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise Malformed("Content-Length is no number")
    return Body(wire, int(length), expects=expects)


async def deliver(wire: Wire, answer: Answer, date: str, *, to_head: bool = False) -> None:
    """Write `answer` to the client, at its rate."""
    length = answer.length if answer.stream is not None else len(answer.body)
    head = _head(answer, date, length) + (b"" if to_head else answer.body[: answer.cut])
    if answer.rate is None:
        await wire.write(head)
    else:
        await _slowly(wire, head, answer.rate)
    if answer.stream is not None and not to_head:
        await _streamed(wire, answer.stream, answer.cut)


async def _streamed(wire: Wire, stream: AsyncGenerator[bytes, None], cut: int | None) -> None:
    sent = 0
    async with aclosing(stream):
        async for block in stream:
            await wire.write(block if cut is None else block[: cut - sent])
            await checkpoint()  # else who writes on a broken line would never hear of it
            sent += len(block)
            if cut is not None and sent >= cut:
                return


def _head(answer: Answer, date: str, length: int | None) -> bytes:
    status = answer.status
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Other"
    lines = [f"HTTP/1.1 {status} {phrase}", f"Date: {date}", "Server: docferry-simulator"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if length is not None and status not in (204, 304):
        lines.append(f"Content-Length: {length + answer.extra}")
    if answer.then != "keep":
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


async def _slowly(wire: Wire, data: bytes, rate: float) -> None:
    step = max(1, int(rate / 10))  # ten writes a second are slow enough to feel and cheap enough to make
    for start in range(0, len(data), step):
        if wire.ended:
            raise Gone
        await wire.write(data[start : start + step])
        await anyio.sleep(step / rate)
