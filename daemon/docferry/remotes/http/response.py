"""Represent responses: status, headers, content, and missing parts of the content.

All values come from outside and are checked: dates, pauses, JSON, and text for people.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

from anyio.lowlevel import checkpoint
from msgspec import Struct

from docferry.errors import RemoteError
from docferry.model import escaped
from docferry.redaction import redacted

#: The longest pause that a remote can request.
MAX_PAUSE_S: Final = 86_400.0
#: Dates outside these years are placeholders or mistakes, and would break arithmetic.
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)
_MAX_TEXT: Final = 400
#: A compressed body is unpacked in steps of this size, so that other tasks run in between.
_UNPACK_BYTES: Final = 1024 * 1024
_PACKED: Final = frozenset({"gzip", "x-gzip", "deflate"})

BodyError = Literal["cut", "large"]
Sink = Callable[[bytes], Awaitable[None]]
#: Opens a sink for the body of a 2xx response, given its status and headers.
OpenSink = Callable[[int, Mapping[str, str]], AbstractAsyncContextManager[Sink]]
#: The longest response that is read into memory, unpacked.
MAX_CONTENT_BYTES: Final = 16 * 1024 * 1024
#: The same for the response to a document, a receipt: sender processes and the daemon hold many of them at once.
MAX_RECEIPT_BYTES: Final = 1024 * 1024


class Destination(Struct, frozen=True):
    """Define the destination of a response's body.

    open_sink   opens the sink for the body of a 2xx; other bodies, or all without a sink, are read into memory
    limit       a longer body is not read to its end
    raw         the bytes as received; otherwise gzip and deflate are unpacked
    """

    open_sink: OpenSink | None = None
    limit: int = MAX_CONTENT_BYTES
    raw: bool = False


MEMORY: Final = Destination()
RECEIPT: Final = Destination(limit=MAX_RECEIPT_BYTES)


class Response(Struct, frozen=True):
    """Represent one response.

    headers             names in lower case; repeated ones are joined by ", "
    content             the body, empty if it went to a sink
    length              bytes of the body, also in a sink
    body_complete       every byte of the request body was handed to the kernel: a success counts
    maybe_complete      the server may have the whole request body: an error is doubtful
    body_error          the error of the response body: "cut" | "large" (above the limit); the status counts
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = b""
    body_complete: bool = False
    maybe_complete: bool = False
    body_error: BodyError | None = None
    length: int = 0

    @property
    def ok(self) -> bool:
        """Return whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def is_html(self) -> bool:
        """Return whether the response is a web page, which no remote sends."""
        start = self.content[:256].lstrip()[:5].lower()
        return "html" in self.headers.get("content-type", "").lower() or start in (b"<!doc", b"<html")

    def json_object(self) -> Mapping[str, Any]:
        """Return the content as a JSON object; an empty one for other content."""
        found = _decoded(self.content) if self.body_error is None else None
        return found if isinstance(found, dict) else {}


async def read_content(
    blocks: AsyncIterator[bytes], headers: Mapping[str, str], to: Destination, sink: Sink | None
) -> tuple[bytes, int, BodyError | None]:
    """Read a body into memory or into the sink; return content, length and the error of the body.

    Any error of `blocks` is "cut"; the sink's own errors are raised.
    """
    packed = not to.raw and headers.get("content-encoding", "").strip().lower() in _PACKED
    content = bytearray()  # a list of tiny blocks would take many times the memory
    length = 0
    decoded = _Unpacked(blocks) if packed else blocks
    while True:
        try:
            block = await anext(decoded)
        except StopAsyncIteration:
            return bytes(content), length, None
        except Exception:  # noqa: BLE001 - every error of a response concerns only its request
            return bytes(content), length, "cut"
        length += len(block)
        if length > to.limit:
            return bytes(content), length, "large"
        if sink is None:
            content += block
        else:
            await sink(block)


class _Unpacked:
    """Unpack the bytes in small steps: one block of a bomb holds a thousand times its size."""

    def __init__(self, blocks: AsyncIterator[bytes]) -> None:
        self._blocks = blocks
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._packed = b""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while True:
            await checkpoint()
            try:
                packed = self._packed or await anext(self._blocks)
            except StopAsyncIteration:
                if self._unpacker.eof:
                    raise
                raise zlib.error("the compressed body ends early") from None
            block = self._unpacker.decompress(packed, _UNPACK_BYTES)
            self._packed = self._unpacker.unconsumed_tail
            if block:
                return block


def header_dict(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name in lower case; repeated ones are joined."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name = raw_name.decode("ascii", "replace").lower()
        try:
            value = raw_value.decode()
        except UnicodeDecodeError:
            value = raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def parse_time(text: str) -> float | None:
    """Return the wall seconds of an HTTP date or an ISO 8601 date-time (UTC without a zone), or None.

    Years before 1970 and after 2200 also give None.
    """
    try:
        found = datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        return found.timestamp() if _EARLIEST <= found < _LATEST else None
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def retry_after(response: Response, now: float) -> float | None:
    """Return the pause that the remote requests, from 0 to MAX_PAUSE_S seconds, or None."""
    said = response.headers.get("retry-after", "").strip()
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        when = parse_time(said)
        if when is None:
            return None
        # By the remote's own clock: the clock of this machine may be wrong.
        seconds = when - (parse_time(response.headers.get("date", "")) or now)
    if seconds != seconds:  # float() accepts "nan"
        return None
    return min(max(seconds, 0.0), MAX_PAUSE_S)


def should_retry(response: Response) -> bool | None:
    """Return the value of the header `x-should-retry`, or None."""
    return {"true": True, "false": False}.get(response.headers.get("x-should-retry", "").strip().lower())


def require_whole(response: Response, remote: str) -> Response:
    """Return a response with a complete body; raise RemoteError otherwise. Receipts skip this check."""
    if response.body_error is None:
        return response
    wrong = "is longer than any such response may be" if response.body_error == "large" else "broke off"
    kind = "not_ours" if response.body_error == "large" else "cut"
    raise RemoteError(f"the response of {remote} {wrong}; it is asked for again", kind=kind, status=response.status)


def require_body_complete(response: Response, remote: str) -> Response:
    """Return a success that follows a complete request body; raise a doubtful RemoteError for an earlier success."""
    if response.body_complete or not response.ok:
        return response
    raise RemoteError(
        f"{remote} confirmed the document with {response.status} before all of it was sent; "
        "the remote is asked whether it has the document",
        kind="cut",
        status=response.status,
        body_complete=True,
    )


def parse_json(response: Response, remote: str) -> object:
    """Return the content as JSON; raise RemoteError for other content."""
    found = _decoded(require_whole(response, remote).content)
    if found is None or response.is_html:
        raise RemoteError(
            f"another server than {remote} answered with {response.status}; check base_url, and proxies in between",
            kind="not_ours",
            status=response.status,
            body_complete=response.maybe_complete,
        )
    return found


def safe_text(text: object) -> str:
    """Return foreign text on one line, without secrets, limited in length and safe for a terminal."""
    return redacted(escaped(" ".join(str(text).split())))[:_MAX_TEXT]


def _decoded(content: bytes) -> object:
    if not content:
        return None  # most receipts are empty: an exception would cost more than all other steps
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
