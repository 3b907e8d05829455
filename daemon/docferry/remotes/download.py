"""Download an object of S3 into a file: only if it changed, resumed after an interruption, proved by its ETag."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from anyio.to_thread import run_sync
from msgspec import Struct

from docferry.errors import RemoteError
from docferry.remotes.http import Destination, HttpClient, Response, Sink, file_sink
from docferry.remotes.wootiv import s3

MAX_OBJECT_SIZE: Final = 5 * 1024**4  # the limit of S3, bytes
_RANGE: Final = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")


class Fetched(Struct, frozen=True):
    """Hold the result of a download; no file was written if the object did not change."""

    etag: str | None
    changed: bool


class Wanted(Struct, frozen=True):
    """Describe the object to download: its known ETag, and the limit in bytes."""

    etag: str | None = None
    limit: int = MAX_OBJECT_SIZE


async def fetch(http: HttpClient, url: str, to: Path, wanted: Wanted, now: float) -> Fetched:
    """Download the signed `url` into `to`. After an interruption, the received part stays for the next call."""
    start, partial = await run_sync(_read_partial, to)
    etag = wanted.etag if wanted.etag and _is_token(wanted.etag) else None
    headers = {"If-None-Match": f'"{etag}"'} if etag else {}
    if partial:
        headers = {"Range": f"bytes={start}-", "If-Match": partial}
    answer = await http.call(
        "GET",
        url,
        headers=headers,
        to=Destination(lambda status, said: _file_for(to, status, said, start), wanted.limit, raw=True),
    )
    if answer.status == 304:
        return Fetched(etag, changed=False)
    if answer.status in (412, 416) and partial:
        await run_sync(_forget, to)
        raise _retry("the object changed while it was downloaded", answer)
    if answer.status not in (200, 206):
        raise s3.refusal(answer, now)
    if answer.body_error == "large":
        await run_sync(_forget, to)
        raise RemoteError(
            f"the object has more than {wanted.limit:,} bytes; raise spool_max or max_size, or free disk space",
            status=answer.status,
        )
    if answer.body_error is not None:
        raise _retry("the download broke off", answer)
    if _is_page(answer.headers):
        await run_sync(_forget, to)
        raise RemoteError("the answer is a web page and not the object", kind="not_ours", status=answer.status)
    tag = answer.headers.get("etag", "").removeprefix("W/").strip('"')
    asked = (start, partial.strip('"')) if partial else (0, tag)
    if not await run_sync(_is_right, to, answer, tag, asked):
        await run_sync(_forget, to)
        raise _retry("the received bytes are not those of S3, by length or ETag", answer)
    await run_sync(_note_path(to).unlink, True)
    await run_sync(_mismatch_path(to).unlink, True)
    return Fetched(tag if _is_token(tag) else None, changed=True)


def _is_token(etag: str) -> bool:
    """Return whether an ETag can be sent in a header."""
    return bool(etag) and etag.isascii() and etag.isprintable() and '"' not in etag


def _is_page(headers: Mapping[str, str]) -> bool:
    """Return whether a 2xx response is a login page: HTML without the ETag that a storage always sends."""
    return not headers.get("etag") and headers.get("content-type", "").lower().startswith("text/html")


@asynccontextmanager
async def _file_for(to: Path, status: int, headers: Mapping[str, str], start: int) -> AsyncIterator[Sink]:
    """Open the file for a response.

    A part is accepted only at the requested offset: a later resume would append to wrong data. The ETag that allows a
    resume is stored before the first byte.
    """
    part = _is_part(status, headers)
    found = _RANGE.fullmatch(headers.get("content-range", "")) if part else None
    if part and (found is None or int(found["start"]) != start):
        await run_sync(_forget, to)
        raise _retry("the response is not the part that was requested", Response(status, dict(headers), b""))
    if not part:
        await run_sync(_note, to, headers.get("etag", ""))
    async with file_sink(to, "ab" if part else "wb") as sink:
        yield sink


def _is_part(status: int, headers: Mapping[str, str]) -> bool:
    """Return whether a response is a part of the object; rclone's server sends parts with 200."""
    return status == 206 or "content-range" in headers


def _read_partial(to: Path) -> tuple[int, str | None]:
    """Return the length and ETag of the part of an earlier call, `(0, None)` without one."""
    try:
        size, etag = to.stat().st_size, _note_path(to).read_text("ascii")
    except (OSError, ValueError):
        return 0, None
    return (size, etag) if size and etag else (0, None)


def _note(to: Path, etag: str) -> None:
    """Store a strong ETag for a later resume; a weak one does not guarantee identical bytes."""
    note = _note_path(to)
    if etag.startswith('"') and etag.isascii() and etag.isprintable():
        to.unlink(missing_ok=True)  # otherwise the stored ETag would describe the bytes of another object
        note.write_text(etag, "ascii")
    else:
        note.unlink(missing_ok=True)


def _note_path(to: Path) -> Path:
    return to.with_name(to.name + ".etag")


def _mismatch_path(to: Path) -> Path:
    return to.with_name(to.name + ".mismatch")


def _forget(to: Path) -> None:
    to.unlink(missing_ok=True)
    _note_path(to).unlink(missing_ok=True)


def _is_right(to: Path, answer: Response, etag: str, asked: tuple[int, str]) -> bool:
    """Return whether the file equals the object of S3.

    A part must have the start and the ETag in `asked`: some servers ignore If-Match.
    """
    if _is_part(answer.status, answer.headers):
        found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or (int(found["start"]), etag or asked[1]) != asked:
            return False
        if found["total"] != "*" and to.stat().st_size != int(found["total"]):
            return False
    if not s3.is_md5(answer, etag):
        return True
    with to.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return md5 == etag.lower() or _was_received_before(to, etag, md5)


def _was_received_before(to: Path, etag: str, md5: str) -> bool:
    """Return whether an earlier download had the same bytes for this ETag, which then is not their MD5.

    A storage may use its own 32 hex digits. A transmission error does not produce the same wrong bytes twice.
    """
    note = _mismatch_path(to)
    seen = f"{etag} {md5}"
    with suppress(OSError, ValueError):
        if note.read_text("ascii") == seen:
            return True
    note.write_text(seen, "ascii")
    return False


def _retry(why: str, answer: Response) -> RemoteError:
    return RemoteError(f"{why}; it is downloaded again", kind="cut", status=answer.status)
