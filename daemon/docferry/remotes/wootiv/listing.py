"""Read Wootiv's lists of buckets and objects; the response to `GET /aws/objects` is not documented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from docferry.errors import RemoteError
from docferry.remotes.http import safe_text

_LISTS: Final = ("objects", "Contents", "contents", "data", "items", "buckets", "Buckets")
_NAMES: Final = ("key", "Key", "pathWithFilename", "name", "Name", "filename")


class StoredObject(Struct, frozen=True):
    """Describe one object in Wootiv's list; unknown values are None."""

    name: str
    size: int | None = None  # bytes
    etag: str | None = None
    modified: str | None = None


def objects(answer: object) -> list[StoredObject]:
    """Return the objects of a list in the format of S3 or of Wootiv. Raises RemoteError for anything else."""
    found = []
    for row in _rows(answer):
        if (name := _name(row)) is not None:
            facts = {key.lower(): value for key, value in row.items()} if isinstance(row, Mapping) else {}
            size, etag = facts.get("size"), facts.get("etag")
            modified = facts.get("lastmodified")
            found.append(
                StoredObject(
                    name,
                    size if isinstance(size, int) else None,
                    safe_text(etag).strip('"') if isinstance(etag, str) else None,
                    safe_text(modified) if isinstance(modified, str) else None,
                )
            )
    return found


def buckets(answer: object) -> list[str]:
    """Return the names of the buckets. Raises RemoteError if the response is no list."""
    return [name for row in _rows(answer) if (name := _name(row)) is not None]


def _rows(answer: object) -> Iterator[Any]:
    if isinstance(answer, Mapping):
        answer = next((answer[key] for key in _LISTS if isinstance(answer.get(key), list)), None)
    if not isinstance(answer, list):
        raise RemoteError("Wootiv's response is not a list; this server lists nothing", kind="not_ours")
    yield from answer


def _name(row: object) -> str | None:
    if isinstance(row, Mapping):
        row = next((row[key] for key in _NAMES if isinstance(row.get(key), str)), None)
    return row if isinstance(row, str) and row else None
