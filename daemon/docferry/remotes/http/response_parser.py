"""Parse HTTP/1.1 responses with h11, behind a layer that repairs header lines which curl and browsers accept.

h11 reads whatever it accepts; a head that it rejects is repaired once and read again. What is irrelevant is dropped.
What could change where the body ends is an error that names the header.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import h11
import httpx

#: A response head, and the trailers of a chunked body, are no longer than this.
MAX_HEAD_BYTES: Final = 64 * 1024
#: More interim responses (1xx) before the final one are an attack.
MAX_INTERIM_RESPONSES: Final = 16
#: Framing of a chunked body may take this much, and twice as many bytes as the payload.
_FREE_OVERHEAD_BYTES: Final = 64 * 1024
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_STATUS: Final = re.compile(rb"(HTTP/1\.[01] [1-9][0-9]{2})(?![0-9])")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[^\x00\r\n]*")
_FRAMING: Final = re.compile(rb"(content.?length|transfer.?encoding)", re.IGNORECASE)
_BODILESS: Final = frozenset({204, 304})
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1")


class Head(NamedTuple):
    """A final response head.

    until_close     the end of the connection is the end of the body
    keep_alive      the server allows another request on the connection
    """

    status: int
    headers: list[tuple[bytes, bytes]]  # names in lower case
    until_close: bool
    keep_alive: bool


class ResponseParser:
    """The response to one request. Raises httpx.RemoteProtocolError for what is no HTTP/1.1."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head = bytearray()  # bytes of an incomplete head
        self._searched = 0
        self._interim_responses = 0
        self._received = self._payload = 0
        self._final: Head | None = None
        self.ended = False  # the whole message was read

    @property
    def interim_responses(self) -> int:
        """The number of 1xx responses so far."""
        return self._interim_responses

    @property
    def head(self) -> Head | None:
        """The final head, once it is complete."""
        return self._final

    @property
    def has_known_end(self) -> bool:
        """Whether length or chunks tell where the body ends; otherwise it ends with the connection."""
        return self._final is not None and not self._final.until_close

    @property
    def can_keep_alive(self) -> bool:
        """Whether the connection can carry another request; all of the response must have been read."""
        return self.ended and self._final is not None and self._final.keep_alive and not self._h11.trailing_data[0]

    def feed(self, data: bytes) -> None:
        """Take bytes from the server; b"" is the end of the connection."""
        if self._final is not None:
            self._received += len(data)
            try:
                self._h11.receive_data(data)
            except RuntimeError:
                raise httpx.RemoteProtocolError("the server sent more after the end") from None
            return
        if not data:
            raise httpx.RemoteProtocolError(
                "the server closed the connection inside a response head"
                if self._head
                else "the server closed the connection without a response"
            )
        self._head += data
        self._parse_heads()

    def read(self) -> bytes | None:
        """Return the next bytes of the body; None when more must be fed, or `ended` is true."""
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(f"the response body is malformed: {_short(error)}") from None
        if isinstance(event, h11.Data):
            self._payload += len(event.data)
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            self.ended = True
        elif self._received - self._payload > _FREE_OVERHEAD_BYTES + 2 * self._payload:
            raise httpx.RemoteProtocolError("the response body has more framing than content")
        return None

    def _parse_heads(self) -> None:
        while self._final is None and self._head:
            if self._head[:7] not in (b"HTTP/1.", b"HTTP/1."[: len(self._head)]):
                raise httpx.RemoteProtocolError(_not_http(self._head))
            found = _HEAD_END.search(self._head, max(0, self._searched - 2))
            if (found.end() if found else len(self._head)) > MAX_HEAD_BYTES:
                raise httpx.RemoteProtocolError(f"the response head is longer than {MAX_HEAD_BYTES // 1024} KiB")
            if found is None:
                self._searched = len(self._head)
                return
            raw = bytes(self._head[: found.end()])
            del self._head[: found.end()]
            self._searched = 0
            self._take(self._event(raw))

    def _take(self, event: h11.Response | h11.InformationalResponse) -> None:
        if isinstance(event, h11.InformationalResponse):
            self._interim_responses += 1
            if self._interim_responses > MAX_INTERIM_RESPONSES:
                raise httpx.RemoteProtocolError("the server sent interim responses (1xx) without end")
            return
        headers = list(event.headers)
        fields = dict(headers)
        bodiless = self._method == "HEAD" or event.status_code in _BODILESS
        length, chunked = fields.get(b"content-length"), b"transfer-encoding" in fields
        if not bodiless and chunked and length is not None:
            raise httpx.RemoteProtocolError("the response has both Transfer-Encoding and Content-Length")
        until_close = not bodiless and not chunked and length is None
        keep_alive = event.http_version == b"1.1" and not until_close and not _closes(headers)
        self._final = Head(event.status_code, headers, until_close, keep_alive)
        self.ended = bodiless or length == b"0"
        rest, self._head = bytes(self._head), bytearray()
        if rest:
            self.feed(rest)

    def _event(self, raw: bytes) -> h11.Response | h11.InformationalResponse:
        """Read one complete head, repaired if h11 rejects it as it is."""
        try:
            return self._read_head(raw)
        except h11.RemoteProtocolError:
            self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            return self._read_head(_repaired(raw))
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(f"the response head is malformed: {_short(error)}") from None

    def _read_head(self, raw: bytes) -> h11.Response | h11.InformationalResponse:
        # h11 reads a final response without a request too, as a server may answer early; it costs 8 µs less. Interim
        # responses, and what follows a HEAD, need one. Only its method matters: the request itself is written by us.
        if self._h11.our_state is h11.IDLE and (self._method == "HEAD" or _INTERIM.match(raw)):
            self._h11.send(h11.Request(method=self._method, target="/", headers=[("Host", "h")]))
        self._h11.receive_data(raw)
        event = self._h11.next_event()
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise httpx.RemoteProtocolError("the response head is malformed")
        return event


def _repaired(raw: bytes) -> bytes:
    """Return the head with only the lines that h11 reads; raise when a dropped line could frame the body."""
    first, *lines = raw.rstrip(b"\r\n").split(b"\n")
    status = _STATUS.match(first)
    if status is None:
        raise httpx.RemoteProtocolError(_not_http(first))
    kept: list[bytes] = [status[1]]
    for line in _unfolded(lines):
        name, colon, value = line.partition(b":")
        name, value = name.rstrip(b" \t"), value.strip(b" \t")
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            framing = _FRAMING.search(line)
            if framing is not None:
                raise httpx.RemoteProtocolError(f"the response has a malformed {framing[1].decode()} header")
        elif (name.lower(), value.lower()) != (b"transfer-encoding", b"identity"):
            kept.append(name + b": " + value)
    return b"\r\n".join(kept) + b"\r\n\r\n"


def _unfolded(lines: list[bytes]) -> list[bytes]:
    """Join continuation lines (obs-fold of RFC 9112) to the lines that they continue."""
    joined: list[bytearray] = []
    for line in lines:
        line = line.removesuffix(b"\r")
        if line[:1] in (b" ", b"\t") and joined:
            joined[-1] += b" " + line.strip(b" \t")
        else:
            joined.append(bytearray(line))
    return [bytes(line) for line in joined]


def _closes(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(b"close" in value.lower() for name, value in headers if name == b"connection")


def _not_http(raw: bytes | bytearray) -> str:
    if raw[:2] in (b"\x15\x03", b"\x16\x03"):
        return "the server speaks TLS on this port: use https"
    return f"what came is not HTTP/1.1: {bytes(raw[:40])!r}"


def _short(error: Exception) -> str:
    return str(error)[:200]
