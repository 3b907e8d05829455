"""The heads of HTTP/1.1 messages: requests written, answers read strictly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import httpx

Fields = Sequence[tuple[bytes, bytes]]
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1[0-9]{2} ")
_PATIENCE: Final = re.compile(rb"timeout=(\d{1,6})")


@dataclass(slots=True)
class Head:
    """What an answer says before its body."""

    status: int
    fields: list[tuple[bytes, bytes]]
    length: int | None  # None: until the end of the line, or chunked
    chunked: bool
    keeps: bool  # the line may be used again
    kept_for: float | None  # seconds, when the server says


def request(method: str, target: bytes, fields: Fields) -> bytes:
    """The head of a request. A line break in a field would be another field: that is refused."""
    lines = [b"%s %s HTTP/1.1" % (method.encode("ascii"), target), *(b"%s: %s" % field for field in fields), b"", b""]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1 or b"\0" in head:
        raise httpx.LocalProtocolError("a header has a line break in it")
    return head


def answer(raw: bytes, method: str) -> Head:
    """The head of an answer, with how its body ends. RemoteProtocolError when it is none."""
    first, *rest = raw[:-4].split(b"\r\n")
    status_line = _STATUS.fullmatch(first)
    if status_line is None:
        raise httpx.RemoteProtocolError("what came is no HTTP/1.1")
    status = int(status_line[2])
    fields: list[tuple[bytes, bytes]] = []
    known: dict[bytes, bytes] = {}
    for line in rest:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise httpx.RemoteProtocolError("the answer has a header that is none")
        name, value = field[1].lower(), field[2].rstrip()
        fields.append((name, value))
        if name == b"content-length" and known.get(name, value) != value:
            raise httpx.RemoteProtocolError("the answer has two lengths")
        known[name] = value
    bodiless = method == "HEAD" or status < 200 or status in (204, 304)
    chunked = not bodiless and b"transfer-encoding" in known
    length = 0 if bodiless else None if chunked else _length(known.get(b"content-length"))
    if chunked and known[b"transfer-encoding"].lower() != b"chunked":
        raise httpx.RemoteProtocolError("the answer is encoded in an unknown way")
    keeps = status_line[1] == b"1" and b"close" not in known.get(b"connection", b"").lower()
    keeps = keeps and (chunked != (b"content-length" in known) or length == 0)
    return Head(status, fields, length, chunked, keeps and (chunked or length is not None), _kept_for(known))


def is_interim(raw: bytes | bytearray) -> bool:
    """Is this 1xx, with the real answer still to come?"""
    return _INTERIM.match(raw) is not None


def chunk_size(line: bytes) -> int:
    found = _CHUNK.fullmatch(line)
    if found is None:
        raise httpx.RemoteProtocolError("a chunk of the answer has no length")
    return int(found[1], 16)


def _length(said: bytes | None) -> int | None:
    if said is None:
        return None
    if not said.isdigit() or len(said) > 18:
        raise httpx.RemoteProtocolError("the answer has a length that is none")
    return int(said)


def _kept_for(known: dict[bytes, bytes]) -> float | None:
    """A second less than the server says: it may be closing already when our next request arrives."""
    found = _PATIENCE.search(known.get(b"keep-alive", b""))
    return max(0.0, int(found[1]) - 1.0) if found else None
