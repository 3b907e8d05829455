"""Upload through Wootiv itself: build the form of a request, read its response, and divide documents into requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from docferry.errors import ErrorDetails, RemoteError
from docferry.model import Finding, Found, Transfer, UploadItem
from docferry.remotes.http import Form, Response, parse_json, safe_text
from docferry.remotes.wootiv.s3 import ObjectStat

#: Bytes of the documents in one bulk request: after a failure, each is looked up and perhaps sent again.
MAX_BULK_BYTES: Final = 64 * 1024 * 1024


class BulkPolicy(Struct, frozen=True):
    """Decide which documents share a request to `/aws/buckets/bulk_upload`."""

    mappings: frozenset[str]  # with via = "direct"
    size: int  # the largest number of documents in one request

    def divide(self, transfers: Sequence[Transfer]) -> list[list[Transfer]]:
        """Divide transfers into requests: one folder each, and each transfer that failed before alone."""
        requests: list[list[Transfer]] = []
        filling: dict[str, list[Transfer]] = {}
        for transfer in transfers:
            folder, _ = _parted(transfer.remote_name)
            open_request = filling.get(folder)
            if transfer.tries or not self._is_bulk(transfer):
                requests.append([transfer])
            elif open_request is not None and self._has_room(open_request, transfer):
                open_request.append(transfer)
            else:
                filling[folder] = [transfer]
                requests.append(filling[folder])
        return requests

    def _is_bulk(self, transfer: Transfer) -> bool:
        is_direct = transfer.mapping in self.mappings and can_name(transfer.remote_name)
        return is_direct and transfer.size <= MAX_BULK_BYTES

    def _has_room(self, request: Sequence[Transfer], transfer: Transfer) -> bool:
        fits = sum(each.size for each in request) + transfer.size <= MAX_BULK_BYTES
        return fits and len(request) < self.size


def can_name(name: str) -> bool:
    """Return whether a form can name an object: a server decodes these escapes in a name."""
    return not any(escape in name.upper() for escape in ("%22", "%0D", "%0A"))


def request(items: Sequence[UploadItem]) -> tuple[str, Form]:
    """Return the path and the body of the request for documents of one folder."""
    folder = _parted(items[0].transfer.remote_name)[0]
    names = [_parted(item.transfer.remote_name)[1] for item in items]
    fields = [("path", folder)]
    if len(items) == 1:
        return "/aws/buckets/upload", Form(items, fields, names=names)
    return "/aws/buckets/bulk_upload", Form(items, fields, part="bulk[]", names=names)


def read_urls(response: Response, items: Sequence[UploadItem]) -> list[object]:
    """Return the signed read URL of each document, None if the response has none.

    Raises:
        RemoteError: The response is not Wootiv's, or names other objects than requested.
    """
    if response.body_error == "cut":
        return [None] * len(items)  # the status counts, and the requested names identify the objects
    try:
        found = parse_json(response, "Wootiv")
    except RemoteError as error:
        raise RemoteError(str(error), kind=error.kind, status=error.status, body_complete=True) from error
    rows: list[dict[str, Any]] = [
        row for row in (found if isinstance(found, list) else [found]) if isinstance(row, dict)
    ]
    if len(rows) != len(items):
        raise RemoteError(
            "Wootiv's response does not describe the uploaded documents; they are looked up",
            kind="cut",
            status=response.status,
            body_complete=True,
        )
    by_name = {_stored_name(row): row for row in rows}
    return [_row_of(item, by_name, rows, response.status).get("signedUrl") for item in items]


def confirmed(transfer: Transfer, stat: ObjectStat | None) -> Finding | None:
    """Return whether the object has the bytes of a transfer; None if only reading the object can show it."""
    if stat is None:
        return Finding(Found.ABSENT, "Wootiv has no object of this name", "etag")
    if stat.md5 is not None and transfer.md5 is not None:
        if stat.md5 == transfer.md5:
            return Finding(Found.PRESENT, "the object's ETag is the MD5 of the document", "etag")
        return Finding(Found.ABSENT, "the object has other bytes, by its ETag", "etag")
    if stat.size is not None and stat.size != transfer.size:
        return Finding(Found.ABSENT, "the object has another size", "etag")
    return None


def _row_of(
    item: UploadItem, by_name: Mapping[str | None, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], status: int
) -> Mapping[str, Any]:
    name = item.transfer.remote_name
    if (row := by_name.get(name.strip("/"))) is not None:
        return row
    if len(rows) == 1 and None in by_name:
        return rows[0]  # the URL names no object: the read URL of the requested name decides
    stored = safe_text(next((each for each in by_name if each is not None), ""))
    raise RemoteError(
        f'Wootiv stored it as "{stored}" and not as "{safe_text(name)}"; rename the document, or set '
        'via = "signed_url" in its mapping',
        status=status,
        body_complete=True,
        details=ErrorDetails(about_document=True),
    )


def _stored_name(row: Mapping[str, Any]) -> str | None:
    name = row.get("pathWithFilename")
    return name.strip("/") if isinstance(name, str) and name else None


def _parted(name: str) -> tuple[str, str]:
    """Return the folder and the last segment of an object name."""
    folder, _, last = name.strip("/").rpartition("/")
    return folder, last
