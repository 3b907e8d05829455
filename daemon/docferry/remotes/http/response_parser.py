"""Parse HTTP/1.1 responses with httptools, and repair header lines that curl and browsers accept.

httptools (llhttp, the parser of Node.js) parses first; a rejected head is repaired once and parsed again. Irrelevant
lines are dropped. A line that could change the end of the body is an error that names the header.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import httptools
import httpx

#: The longest head of a response.
MAX_HEAD_BYTES: Final = 64 * 1024
#: The largest number of interim responses (1xx) before the final one; more are an attack.
MAX_INTERIM_RESPONSES: Final = 16
#: The allowed framing of a chunked body, trailers included: this much, plus twice the payload.
_FREE_OVERHEAD_BYTES: Final = 64 * 1024
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_STATUS: Final = re.compile(rb"(HTTP/1\.[01] [1-9][0-9]{2})(?![0-9])")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_FRAMING: Final = re.compile(rb"(content.?length|transfer.?encoding)", re.IGNORECASE)
#: Matches one length that is repeated.
_LENGTHS: Final = re.compile(rb"([0-9]+)(?:[ \t]*,[ \t]*\1)+")
_BODILESS: Final = frozenset({204, 304})


class ResponseHead(NamedTuple):
    """Hold the head of a final response.

    until_close     the end of the connection is the end of the body
    keep_alive      the server allows another request on the connection
    """

    status: int
    headers: list[tuple[bytes, bytes]]  # names in lower case
    until_close: bool
    keep_alive: bool


class ResponseParser:
    """Parse the response to one request. Raises httpx.RemoteProtocolError for invalid HTTP/1.1."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._message = _Message()
        self._parser: httptools.HttpResponseParser | None = None  # of the body
        self._incomplete = bytearray()  # bytes of an incomplete head
        self._searched = 0
        self._received = self._payload = 0
        self._is_chunked = False
        self._error: str | None = None  # the error of the body
        self.interim_responses = 0  # number of 1xx responses so far
        self.head: ResponseHead | None = None  # the final head, once it is complete
        self.ended = False  # the whole message was received; `read` may still return bytes of it

    @property
    def has_known_end(self) -> bool:
        """Return whether length or chunks define the end of the body; otherwise the connection's end does."""
        return self.head is not None and not self.head.until_close

    @property
    def can_keep_alive(self) -> bool:
        """Return whether the connection can serve another request, after all of the response was read."""
        return self.ended and self.head is not None and self.head.keep_alive and not self._message.is_followed

    def feed(self, data: bytes) -> None:
        """Parse bytes from the server; b"" is the end of the connection."""
        if self.head is not None:
            self._feed_body(self.head, data)
        elif data:
            self._incomplete += data
            self._parse_heads()
        else:
            raise httpx.RemoteProtocolError(
                "the server closed the connection inside a response head"
                if self._incomplete
                else "the server closed the connection without a response"
            )

    def read(self) -> bytes:
        """Return the new bytes of the body since the last call; raise a following error after them."""
        blocks = self._message.blocks
        if not blocks and self._error is not None:
            raise httpx.RemoteProtocolError(self._error)
        content = b"".join(blocks)
        blocks.clear()
        return content

    def _feed_body(self, head: ResponseHead, data: bytes) -> None:
        """Parse bytes of the body. `read` raises the errors later: the head is complete, and its status counts."""
        message = self._message
        if not data:
            if not (self.ended or head.until_close):
                self._error = "the server closed the connection inside a response body"
            self.ended = self.ended or head.until_close
            return
        if self.ended or self._parser is None:
            message.is_followed = True
            return
        before = len(message.blocks)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if message.is_complete:
                message.is_followed = True
            else:
                self._error = f"the response body is malformed: {_short(error)}"
        self.ended = message.is_complete
        self._received += len(data)
        self._payload += sum(map(len, message.blocks[before:]))
        if self.ended and not self._is_chunked and self._received > self._payload:
            message.is_followed = True  # llhttp skips empty lines between messages
        if self._received - self._payload > _FREE_OVERHEAD_BYTES + 2 * self._payload:
            self._error = "the response body has more framing than content"

    def _parse_heads(self) -> None:
        while self.head is None and self._incomplete:
            if self._incomplete[:7] not in (b"HTTP/1.", b"HTTP/1."[: len(self._incomplete)]):
                raise httpx.RemoteProtocolError(_not_http(self._incomplete))
            found = _HEAD_END.search(self._incomplete, max(0, self._searched - 2))
            if (found.end() if found else len(self._incomplete)) > MAX_HEAD_BYTES:
                raise httpx.RemoteProtocolError(f"the response head is longer than {MAX_HEAD_BYTES // 1024} KiB")
            if found is None:
                self._searched = len(self._incomplete)
                return
            raw = bytes(self._incomplete[: found.end()])
            del self._incomplete[: found.end()]
            self._searched = 0
            self._take(raw)

    def _take(self, raw: bytes) -> None:
        """Parse one complete head, repaired if httptools rejects it."""
        parser, message = _read_head(raw)
        if parser is None:
            parser, message = _read_head(_repaired(raw, self._method))
            if parser is None:
                raise httpx.RemoteProtocolError(f"the response head is malformed: {message.error}")
        status = parser.get_status_code()
        if status == 101:
            raise httpx.RemoteProtocolError("the server switched to another protocol, which was not requested")
        if status < 200:
            self.interim_responses += 1
            if self.interim_responses > MAX_INTERIM_RESPONSES:
                raise httpx.RemoteProtocolError("the server sent interim responses (1xx) without end")
            return
        fields = dict(message.headers)
        bodiless = _is_bodiless(self._method, status)
        until_close = not bodiless and b"content-length" not in fields and b"transfer-encoding" not in fields
        keep_alive = raw.startswith(b"HTTP/1.1") and not until_close and not _closes(message.headers)
        self.head = ResponseHead(status, message.headers, until_close, keep_alive)
        self.ended = bodiless or message.is_complete
        self._is_chunked = b"transfer-encoding" in fields
        self._parser, self._message = parser, message
        if self._incomplete:
            rest, self._incomplete = bytes(self._incomplete), bytearray()
            self._feed_body(self.head, rest)


class _Message:
    """Record the events of httptools for one message."""

    __slots__ = ("blocks", "error", "has_head", "headers", "is_complete", "is_followed")

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.blocks: list[bytes] = []  # unread bytes of the body
        self.has_head = self.is_complete = False
        self.is_followed = False  # more bytes came after the end
        self.error = ""

    def on_message_begin(self) -> None:
        self.is_followed = self.is_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:  # otherwise the line is a trailer, or belongs to another message
            self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, data: bytes) -> None:
        if not self.is_followed:
            self.blocks.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = True


def _read_head(raw: bytes) -> tuple[httptools.HttpResponseParser | None, _Message]:
    """Return a parser that has read the head, None if httptools rejects it."""
    message = _Message()
    parser = httptools.HttpResponseParser(message)
    # some servers pad sizes with spaces, which is harmless
    parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
    try:
        parser.feed_data(raw)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        message.error = _short(error)  # raised after a complete head, for 101
    encodings = [value.lower() for name, value in message.headers if name == b"transfer-encoding"]
    if encodings not in ([], [b"chunked"]):
        message.error = "it has an unsupported Transfer-Encoding"
    elif message.has_head and parser.get_status_code() >= 100:
        return parser, message
    return None, message


def _repaired(raw: bytes, method: str) -> bytes:
    """Return the head with only the valid lines; raise if a dropped line could frame the body."""
    first, *lines = raw.rstrip(b"\r\n").split(b"\n")
    status = _STATUS.match(first)
    if status is None:
        raise httpx.RemoteProtocolError(_not_http(first))
    bodiless = _is_bodiless(method, int(status[1][-3:]))
    kept: list[bytes] = [status[1]]
    lengths, is_encoded = set[bytes](), False
    for line in _unfolded(lines):
        name, colon, value = line.partition(b":")
        name, value = name.rstrip(b" \t"), value.strip(b" \t")
        key = name.lower()
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            framing = _FRAMING.search(line)
            if framing is not None:
                raise httpx.RemoteProtocolError(f"the response has a malformed {framing[1].decode()} header")
        elif key == b"content-length":
            lengths.add(_LENGTHS.sub(rb"\1", value))
        elif key != b"transfer-encoding":
            kept.append(name + b": " + value)
        elif not bodiless and value.lower() != b"identity":
            kept.append(name + b": " + value)
            is_encoded = True
    if is_encoded and lengths:
        raise httpx.RemoteProtocolError("the response has both Transfer-Encoding and Content-Length")
    if len(lengths) > 1 or not all(map(bytes.isdigit, lengths)):
        raise httpx.RemoteProtocolError("the response has a malformed Content-Length header")
    kept += [b"Content-Length: " + length for length in lengths]
    return b"\r\n".join(kept) + b"\r\n\r\n"


def _unfolded(lines: list[bytes]) -> list[bytes]:
    """Join continuation lines (obs-fold of RFC 9112) to their header lines."""
    joined: list[bytearray] = []
    for line in lines:
        line = line.removesuffix(b"\r")
        if line[:1] in (b" ", b"\t") and joined:
            joined[-1] += b" " + line.strip(b" \t")
        else:
            joined.append(bytearray(line))
    return [bytes(line) for line in joined]


def _is_bodiless(method: str, status: int) -> bool:
    return method == "HEAD" or status in _BODILESS or status < 200


def _closes(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(b"close" in value.lower() for name, value in headers if name == b"connection")


def _not_http(raw: bytes | bytearray) -> str:
    if raw[:2] in (b"\x15\x03", b"\x16\x03"):
        return "the server speaks TLS on this port: use https"
    return f"the response is not HTTP/1.1: {bytes(raw[:40])!r}"


def _short(error: Exception) -> str:
    return str(error)[:200]
