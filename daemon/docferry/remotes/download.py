"""An object from S3 into a file: only when it changed, resumed where an earlier try broke off, proved by its ETag."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anyio.to_thread import run_sync

from docferry.errors import RemoteError
from docferry.remotes.http import Destination, HttpClient, Response, Sink, file_sink
from docferry.remotes.wootiv import s3

_LARGEST: Final = 5 * 1024**4  # S3's largest object
_RANGE: Final = re.compile(r"bytes (?P<start>\d+)-\d+/(?P<total>\d+|\*)")


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of a download; when nothing changed, no file was written."""

    etag: str | None
    changed: bool


async def fetch(http: HttpClient, url: str, to: Path, etag: str | None, now: float) -> Fetched:
    """GET the signed `url` into `to`. Broken off, what came stays there for the next call to go on with."""
    start, partial = await run_sync(_begun, to)
    headers = {"If-None-Match": f'"{etag}"'} if etag else {}
    if partial:
        headers = {"Range": f"bytes={start}-", "If-Match": partial}
    answer = await http.call(
        "GET",
        url,
        headers=headers,
        to=Destination(lambda status, said: _landing(to, status, said, start), _LARGEST, raw=True),
    )
    if answer.status == 304:
        return Fetched(etag, changed=False)
    if answer.status in (412, 416) and partial:
        await run_sync(_forget, to)
        raise _again("the object changed while it was fetched", answer)
    if answer.status not in (200, 206):
        raise s3.refusal(answer, now)
    if answer.body_error is not None:
        raise _again("the download broke off", answer)
    tag = answer.headers.get("etag", "").removeprefix("W/").strip('"')
    asked = (start, partial.strip('"')) if partial else (0, tag)
    if not await run_sync(_is_right, to, answer, tag, asked):
        await run_sync(_forget, to)
        raise _again("what came is not what S3 has, by length or ETag", answer)
    await run_sync(_note_of(to).unlink, True)
    return Fetched(tag or None, changed=True)


@asynccontextmanager
async def _landing(to: Path, status: int, headers: Mapping[str, str], start: int) -> AsyncIterator[Sink]:
    """A part goes on where the file ends: another one, broken off, would be what the next is glued to. What can be
    resumed is noted before the first byte."""
    part = _is_part(status, headers)
    found = _RANGE.fullmatch(headers.get("content-range", "")) if part else None
    if part and (found is None or int(found["start"]) != start):
        await run_sync(_forget, to)
        raise _again("what came is not the part that was asked for", Response(status, dict(headers), b""))
    if not part:
        await run_sync(_note, to, headers.get("etag", ""))
    async with file_sink(to, "ab" if part else "wb") as sink:
        yield sink


def _is_part(status: int, headers: Mapping[str, str]) -> bool:
    """Not every server says 206: rclone's sends a part with 200."""
    return status == 206 or "content-range" in headers


def _begun(to: Path) -> tuple[int, str | None]:
    """Length and ETag of what an earlier call left."""
    try:
        size, etag = to.stat().st_size, _note_of(to).read_text("ascii")
    except (OSError, ValueError):
        return 0, None
    return (size, etag) if size and etag else (0, None)


def _note(to: Path, etag: str) -> None:
    """A weak ETag does not promise the same bytes: without a strong one nothing is resumed."""
    note = _note_of(to)
    if etag.startswith('"') and etag.isascii() and etag.isprintable():
        to.unlink(missing_ok=True)  # or the note would speak of another object's bytes
        note.write_text(etag, "ascii")
    else:
        note.unlink(missing_ok=True)


def _note_of(to: Path) -> Path:
    return to.with_name(to.name + ".etag")


def _forget(to: Path) -> None:
    to.unlink(missing_ok=True)
    _note_of(to).unlink(missing_ok=True)


def _is_right(to: Path, answer: Response, etag: str, asked: tuple[int, str]) -> bool:
    """Is the file what S3 has? A part must be the one `asked` for, by start and ETag; If-Match is not always heeded."""
    if _is_part(answer.status, answer.headers):
        found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or (int(found["start"]), etag or asked[1]) != asked:
            return False
        if found["total"] != "*" and to.stat().st_size != int(found["total"]):
            return False
    if not s3.is_md5(answer, etag):
        return True
    with to.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == etag.lower()


def _again(why: str, answer: Response) -> RemoteError:
    return RemoteError(f"{why}; it is fetched again", kind="cut", status=answer.status)
