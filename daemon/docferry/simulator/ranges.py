"""Conditional and partial GETs of an object: If-Match, If-None-Match, Range and If-Range."""

from __future__ import annotations

import re

from docferry.simulator.http import Answer, Request
from docferry.simulator.recorder import S3Object

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def ranged(request: Request, stands: S3Object, modified: str) -> Answer:
    """The object, the part that was asked for, or why not."""
    headers = {
        "ETag": stands.etag,
        "Last-Modified": modified,
        "Accept-Ranges": "bytes",
        "Content-Type": stands.content_type,
    }
    content = stands.content if stands.content is not None else b""
    asked = request.headers
    if "if-match" in asked and not _names(asked["if-match"], stands.etag):
        return Answer(412, headers=headers)
    if "if-none-match" in asked and _names(asked["if-none-match"], stands.etag):
        return Answer(304, headers=headers)
    if "range" not in asked or asked.get("if-range", stands.etag) not in (stands.etag, modified):
        return Answer(200, content, headers)
    found = _RANGE.fullmatch(asked["range"].strip())
    if found is None or found.groups() == ("", ""):
        return Answer(200, content, headers)  # a range that cannot be read is no range
    start, end = _bounds(found.group(1), found.group(2), stands.size)
    if start > end:
        return Answer(416, headers={**headers, "Content-Range": f"bytes */{stands.size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{stands.size}"
    return Answer(206, content[start : end + 1], headers)


def _names(wanted: str, etag: str) -> bool:
    return wanted.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in wanted.split(","))


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """First and last byte, both included; the first behind the last when there is nothing."""
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1
