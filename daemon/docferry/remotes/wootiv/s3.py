"""Interpret the responses of S3 to a request with a signed URL."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from docferry.errors import ErrorDetails, RemoteError
from docferry.model import Receipt
from docferry.remotes.http import Response, retry_after, safe_text, should_retry

_SIGNATURE_CODES: Final = frozenset({"SignatureDoesNotMatch", "ExpiredToken", "RequestTimeTooSkewed"})
#: AccessDenied has many causes; for an expired URL each server has its own text, with 400 or 403.
_TIME_WORDS: Final = re.compile(r"expired|request time|not yet valid", re.IGNORECASE)
#: The storage received other or fewer bytes than were sent, without a fault of the document.
_BODY_CODES: Final = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "IncompleteBody", "RequestTimeout"})
#: The codes that refuse this document. All others concern account, bucket, signer or quota.
_DOCUMENT_CODES: Final = frozenset(
    {"EntityTooLarge", "EntityTooSmall", "KeyTooLongError", "InvalidObjectName", "XMinioInvalidObjectName"}
)
_TOTAL: Final = re.compile(r"bytes \d+-\d+/(\d+)$")
_MD5: Final = re.compile(r"[0-9a-f]{32}")


def receipt(response: Response, md5: str | None) -> Receipt:
    """Return the receipt for a 2xx.

    Raises RemoteError if the response is not S3's (it has no ETag), or names other bytes.
    """
    etag = response.headers.get("etag", "").removeprefix("W/").strip('"')
    if response.is_html or not etag:
        raise RemoteError(
            f"another server than S3 answered with {response.status}: there is no ETag; check proxies in between",
            kind="not_ours",
            status=response.status,
            body_complete=response.maybe_complete,
        )
    if md5 is None or not is_md5(response, etag):
        return Receipt(response.status, etag=safe_text(etag))
    if etag.lower() != md5:
        raise RemoteError(
            f"S3 has other bytes than were sent: its ETag is {safe_text(etag)}, their MD5 {md5}; it is sent again",
            kind="redo",
            status=response.status,
            body_complete=True,
        )
    return Receipt(response.status, etag=etag, proof="etag")


def refusal(response: Response, now: float) -> RemoteError:
    """Return the error for a response other than 2xx; none of them concerns the Wootiv key."""
    code, message = (_tag(response, name) for name in ("Code", "Message"))
    said = " — ".join(safe_text(text) for text in (code, message) if text)
    kind, advice = _meaning(response, code, message)
    return RemoteError(
        f"{advice} ({response.status}){f': {said}' if said else ''}",
        kind=kind,
        status=response.status,
        body_complete=response.maybe_complete,
        details=ErrorDetails(
            retry_after=retry_after(response, now),
            should_retry=should_retry(response),
            correlation_id=safe_text(_tag(response, "RequestId") or response.headers.get("x-amz-request-id", ""))[:100]
            or None,
            about_document=code in _DOCUMENT_CODES,
        ),
    )


class ObjectStat(Struct, frozen=True):
    """Describe an object in the storage; unknown values are None."""

    size: int | None  # bytes
    etag: str
    md5: str | None  # the ETag, if it is the MD5 of the bytes


def stat(response: Response) -> ObjectStat:
    """Return size and ETag from the response to a GET of the whole object or of its first byte."""
    etag = response.headers.get("etag", "").removeprefix("W/").strip('"')
    if response.is_html or not etag:
        raise RemoteError(
            f"another server than S3 answered with {response.status}: there is no ETag; check proxies in between",
            kind="not_ours",
            status=response.status,
        )
    found = _TOTAL.search(response.headers.get("content-range", ""))
    size = found[1] if found else response.headers.get("content-length", "")
    md5 = etag.lower() if is_md5(response, etag) else None
    return ObjectStat(int(size) if size.isascii() and size.isdecimal() else None, safe_text(etag), md5)


def is_absent(response: Response) -> bool:
    """Return whether the storage states that there is no such object."""
    return response.status == 404 and _tag(response, "Code") == "NoSuchKey"


def is_md5(response: Response, etag: str) -> bool:
    """Return whether an ETag is the MD5 of the bytes.

    The ETag has another value after a multipart upload, and with keys of KMS or of the customer.
    """
    encryption = response.headers.get("x-amz-server-side-encryption", "")
    own_key = "x-amz-server-side-encryption-customer-algorithm" in response.headers
    return _MD5.fullmatch(etag.lower()) is not None and "kms" not in encryption and not own_key


def _meaning(response: Response, code: str, message: str) -> tuple[str, str]:
    """Return the kind of an error, and the advice."""
    if 300 <= response.status < 400:
        return "redirect", "S3 redirects to another address: Wootiv's URLs are signed for the wrong one"
    if code in _SIGNATURE_CODES or (code == "AccessDenied" and _TIME_WORDS.search(message)):
        return "signature", "the signed URL was refused: a new one is requested (is the clock right?)"
    if code in _BODY_CODES:
        return "redo", "S3 did not get the bytes that were sent: they are sent again"
    if code in _DOCUMENT_CODES:
        return "response", "S3 refused the document"
    if not code and response.content.strip():
        return "not_ours", "another server than S3 answered: check proxies in between"
    if response.status >= 500:
        return "answer", "S3 reports an internal error"
    return "storage", "S3 refused its account, bucket, signer or quota: ask Wootiv"


def _tag(response: Response, name: str) -> str:
    """Return the text of an element. S3's errors are flat, so no XML parser is needed."""
    found = re.search(f"<{name}>([^<]*)</{name}>", response.content[:64_000].decode("utf-8", "replace"))
    return found[1].strip() if found else ""
