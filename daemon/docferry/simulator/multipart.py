"""Parse multipart/form-data as a stream."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote

from docferry.simulator.http import Malformed, Request

_PARAMETER = re.compile(r';\s*([A-Za-z0-9*_-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_END_OF_HEAD = b"\r\n\r\n"
_MAX_PARTS = 1000


class ContentSink:
    """Count and hash bytes, and keep up to `keep` of them."""

    __slots__ = ("_blocks", "_kept", "_limit", "_md5", "_sha256", "size")

    def __init__(self, *, keep: int = 0, md5: bool = False, digest: bool = True) -> None:
        self._limit = keep  # longer content is hashed but not stored
        self._blocks: list[bytes] | None = [] if keep else None
        self._sha256 = hashlib.sha256() if digest else None
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 and digest else None
        self.size = 0

    def write(self, data: bytes) -> None:
        """Add bytes."""
        self.size += len(data)
        if self._sha256 is not None:
            self._sha256.update(data)
        if self._md5 is not None:
            self._md5.update(data)
        if self._blocks is not None:
            self._blocks.append(data)
            if self.size > self._limit:
                self._blocks = None

    @property
    def content(self) -> bytes | None:
        """Return all bytes, or None if they were not stored."""
        return None if self._blocks is None else b"".join(self._blocks)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 in hex; empty without `digest`."""
        return self._sha256.hexdigest() if self._sha256 is not None else ""

    @property
    def md5(self) -> bytes:
        """Return the MD5; empty if it was not requested."""
        return self._md5.digest() if self._md5 is not None else b""


@dataclass(slots=True)
class Part:
    """Hold one part: its name, its file name if it is a file, and its content."""

    name: str
    filename: str | None
    head: bytes
    sink: ContentSink = field(repr=False)

    @property
    def text(self) -> str:
        """Return the content as text."""
        return (self.sink.content or b"").decode("utf-8", "replace")


#: Returns the sink of a part, from its name and file name.
Opener = Callable[[str, str | None], ContentSink]


async def read_form(request: Request, opener: Opener) -> list[Part]:
    """Return all parts of a request's body. Raises Malformed if it is not a complete multipart/form-data."""
    kind, _, rest = request.headers.get("content-type", "").partition(";")
    boundary = dict(_parameters(";" + rest)).get("boundary")
    if kind.strip().lower() != "multipart/form-data" or not boundary:
        raise Malformed("the body must be multipart/form-data with a boundary")
    parser = Multipart(boundary.encode("latin-1"), opener)
    while block := await request.body.block():
        parser.feed(block)
    return parser.finish()


class Multipart:
    """Parse a body from blocks of any size."""

    def __init__(self, boundary: bytes, opener: Opener) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._opener = opener
        self._buffer = b"\r\n"  # the first boundary has no line break before it
        self._state: Literal["before", "mark", "head", "bytes", "after"] = "before"
        self._parts: list[Part] = []

    def feed(self, block: bytes) -> None:
        """Parse a block."""
        self._buffer += block
        steps = {"before": self._preamble, "mark": self._after_mark, "head": self._head, "bytes": self._bytes}
        while self._state != "after" and steps[self._state]():
            pass
        if self._state == "after":
            self._buffer = b""

    def finish(self) -> list[Part]:
        """Return the parts. Raises Malformed if the last boundary is missing."""
        if self._state != "after":
            raise Malformed("the body ends before its last boundary")
        return self._parts

    # Each step consumes a part of `_buffer` and returns whether the next step may run.

    def _preamble(self) -> bool:
        found = self._buffer.find(self._delimiter)
        if found < 0:
            self._buffer = self._buffer[-len(self._delimiter) :]
            return False
        self._buffer = self._buffer[found + len(self._delimiter) :]
        self._state = "mark"
        return True

    def _after_mark(self) -> bool:
        if self._buffer.startswith(b"--"):
            self._state = "after"
            return False
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        if self._buffer[:end].strip(b" \t"):
            raise Malformed("text follows a boundary")
        self._buffer = self._buffer[end + 2 :]
        self._state = "head"
        return True

    def _head(self) -> bool:
        end = self._buffer.find(_END_OF_HEAD)
        if end < 0:
            if len(self._buffer) > 64 * 1024:
                raise Malformed("a part's head has no end")
            return False
        head, self._buffer = self._buffer[:end], self._buffer[end + len(_END_OF_HEAD) :]
        if len(self._parts) == _MAX_PARTS:
            raise Malformed(f"the body has more than {_MAX_PARTS} parts")
        name, filename = _disposition(head)
        self._parts.append(Part(name, filename, head, self._opener(name, filename)))
        self._state = "bytes"
        return True

    def _bytes(self) -> bool:
        found = self._buffer.find(self._delimiter)
        if found >= 0:
            self._parts[-1].sink.write(self._buffer[:found])
            self._buffer = self._buffer[found + len(self._delimiter) :]
            self._state = "mark"
            return True
        sure = len(self._buffer) - len(self._delimiter) + 1
        if sure > 0:
            self._parts[-1].sink.write(self._buffer[:sure])
            self._buffer = self._buffer[sure:]
        return False


def _disposition(head: bytes) -> tuple[str, str | None]:
    """Return name and file name of a part's head."""
    for line in head.decode("utf-8", "replace").split("\r\n"):
        label, _, value = line.partition(":")
        if label.strip().lower() == "content-disposition":
            kind, _, rest = value.partition(";")
            if kind.strip().lower() != "form-data":
                break
            found = dict(_parameters(";" + rest))
            return found.get("name", ""), found.get("filename")
    raise Malformed("a part has no Content-Disposition: form-data")


def _parameters(text: str) -> list[tuple[str, str]]:
    pairs = []
    for name, value in _PARAMETER.findall(text):
        if name.endswith("*"):  # RFC 5987: filename*=UTF-8''na%C3%AFve.pdf
            pairs.append((name[:-1].lower(), unquote(value.split("'", 2)[-1])))
        else:
            pairs.append((name.lower(), _unquoted(value.strip())))
    return pairs


def _unquoted(value: str) -> str:
    # Browsers and curl write `"` as %22, older programs as a backslash and a quote.
    if not value.startswith('"'):
        return value
    inner = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return inner.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
