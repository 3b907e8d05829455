"""The heads of HTTP/1.1 messages: requests written, answers read strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx

_STATUS: Final = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?")
_FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1[0-9]{2} ")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_PATIENCE: Final = re.compile(r"timeout=([0-9]{1,6})")
#: What a line of a request's head is made of: with a line break it would be two.
_LINE: Final = re.compile(r"[^\r\n\0]*")


@dataclass(slots=True)
class Head:
    """What an answer says before its body."""

    status: int
    fields: dict[str, str]  # names in lower case
    length: int | None  # None: until the end of the line, or chunked
    chunked: bool
    keeps: bool  # the line may be used again
    kept_for: float | None  # seconds, when the server says


def request(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """The head of a request. A line break in a field would be another field: that is refused."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if not all(map(_LINE.fullmatch, lines)):
        raise httpx.LocalProtocolError("a header has a line break in it")
    try:
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
    except UnicodeEncodeError:
        raise httpx.LocalProtocolError("a header has a character in it that none may have") from None


def answer(raw: bytes, method: str) -> Head:
    """The head of an answer, with how its body ends. RemoteProtocolError when it is none."""
    first, *rest = _text(raw[:-4]).split("\r\n")
    status_line = _STATUS.fullmatch(first)
    if status_line is None:
        raise httpx.RemoteProtocolError("what came is no HTTP/1.1")
    status = int(status_line[2])
    fields = _fields(rest)
    bodiless = method == "HEAD" or status < 200 or status in (204, 304)
    chunked = not bodiless and "transfer-encoding" in fields
    length = 0 if bodiless else None if chunked else _length(fields.get("content-length"))
    if chunked and fields["transfer-encoding"].lower() != "chunked":
        raise httpx.RemoteProtocolError("the answer is encoded in an unknown way")
    keeps = status_line[1] == "1" and "close" not in fields.get("connection", "").lower()
    keeps = keeps and (chunked != ("content-length" in fields) or length == 0)
    return Head(status, fields, length, chunked, keeps and (chunked or length is not None), _kept_for(fields))


def is_interim(raw: bytes | bytearray) -> bool:
    """Is this 1xx, with the real answer still to come?"""
    return _INTERIM.match(raw) is not None


def chunk_size(line: bytes) -> int:
    found = _CHUNK.fullmatch(line)
    if found is None:
        raise httpx.RemoteProtocolError("a chunk of the answer has no length")
    return int(found[1], 16)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _fields(lines: list[str]) -> dict[str, str]:
    """What is said twice is one list."""
    fields: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise httpx.RemoteProtocolError("the answer has a header that is none")
        name, value = field[1].lower(), field[2].rstrip(" \t")
        before = fields.get(name)
        if before is not None and name == "content-length":
            if before != value:
                raise httpx.RemoteProtocolError("the answer has two lengths")
        else:
            fields[name] = value if before is None else f"{before}, {value}"
    return fields


def _length(said: str | None) -> int | None:
    if said is None:
        return None
    if not _LENGTH.fullmatch(said):
        raise httpx.RemoteProtocolError("the answer has a length that is none")
    return int(said)


def _kept_for(fields: Mapping[str, str]) -> float | None:
    """A second less than the server says: it may be closing already when our next request arrives."""
    found = _PATIENCE.search(fields.get("keep-alive", ""))
    return max(0.0, int(found[1]) - 1.0) if found else None
