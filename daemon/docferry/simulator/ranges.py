"""Answer conditional and partial GETs of an object: If-Match, If-None-Match, Range and If-Range."""

from __future__ import annotations

import re

from docferry.simulator.http import Request, Response
from docferry.simulator.recorder import S3Object

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def conditional_response(request: Request, s3_object: S3Object, modified: str) -> Response:
    """Return the object, the requested part, or the status that follows from the conditions."""
    headers = {
        "ETag": s3_object.etag,
        "Last-Modified": modified,
        "Accept-Ranges": "bytes",
        "Content-Type": s3_object.content_type,
    }
    content = s3_object.content if s3_object.content is not None else b""
    asked = request.headers
    if "if-match" in asked and not _matches_etag(asked["if-match"], s3_object.etag):
        return Response(412, headers=headers)
    if "if-none-match" in asked and _matches_etag(asked["if-none-match"], s3_object.etag):
        return Response(304, headers=headers)
    if "range" not in asked or asked.get("if-range", s3_object.etag) not in (s3_object.etag, modified):
        return Response(200, content, headers)
    found = _RANGE.fullmatch(asked["range"].strip())
    if found is None or found.groups() == ("", ""):
        return Response(200, content, headers)  # RFC 9110: an invalid Range header is ignored
    start, end = _bounds(found.group(1), found.group(2), s3_object.size)
    if start > end:
        return Response(416, headers={**headers, "Content-Range": f"bytes */{s3_object.size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{s3_object.size}"
    return Response(206, content[start : end + 1], headers)


def _matches_etag(wanted: str, etag: str) -> bool:
    return wanted.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in wanted.split(","))


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """Return the first and last byte, both included; the first exceeds the last if the range is empty."""
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1
