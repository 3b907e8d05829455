"""What S3's answers mean to who comes with a signed URL."""

from __future__ import annotations

import re
from typing import Final

from docferry.errors import RemoteError
from docferry.model import Receipt
from docferry.remotes.http import Response, retry_after, safe_text, should_retry

_SIGNATURE_CODES: Final = frozenset({"SignatureDoesNotMatch", "ExpiredToken", "RequestTimeTooSkewed"})
#: AccessDenied is said of much; of a URL's time each server says it in its own words, and with 400 or 403.
_OF_TIME: Final = re.compile(r"expired|request time|not yet valid", re.IGNORECASE)
#: These came with other bytes than were sent, or fewer: 400, and yet nothing is wrong with the document.
_BODY_CODES: Final = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "IncompleteBody", "RequestTimeout"})
_MD5: Final = re.compile(r"[0-9a-f]{32}")


def receipt(answer: Response, md5: str | None) -> Receipt:
    """The receipt for a good answer. RemoteError when it is not S3's, or when the ETag tells of other bytes."""
    etag = answer.headers.get("etag", "").removeprefix("W/").strip('"')
    # Not every S3-like server gives an ETag; but none gives text of its own for a PUT that it took.
    if answer.is_html or (not etag and (answer.content.strip() or answer.body_error == "large")):
        raise RemoteError(
            f"something that is not S3 answered with {answer.status}: there is no ETag; check proxies in between",
            kind="not_ours",
            status=answer.status,
            body_complete=answer.maybe_complete,
        )
    if md5 is None or not is_md5(answer, etag):
        return Receipt(answer.status, etag=etag or None)
    if etag.lower() != md5:
        raise RemoteError(
            f"S3 has other bytes than were sent: its ETag is {safe_text(etag)}, their MD5 {md5}; it is sent again",
            kind="redo",
            status=answer.status,
            body_complete=True,
        )
    return Receipt(answer.status, etag=etag, proof="etag")


def refusal(answer: Response, now: float) -> RemoteError:
    """What an answer other than 2xx means. None of them says anything about the Wootiv key."""
    code, message = (_tag(answer, name) for name in ("Code", "Message"))
    said = " — ".join(safe_text(text) for text in (code, message) if text)
    kind = "answer"
    cure = "S3 refused the document" if answer.status < 500 or answer.status == 501 else "S3 has a problem of its own"
    if 300 <= answer.status < 400:
        kind, cure = "redirect", "S3 redirects to another address: Wootiv's URLs are signed for the wrong one"
    elif code in _SIGNATURE_CODES or (code == "AccessDenied" and _OF_TIME.search(message)):
        kind, cure = "signature", "the signed URL was refused: a new one is asked for (is the clock right?)"
    elif code in _BODY_CODES:
        kind, cure = "redo", "S3 did not get the bytes that were sent: they are sent again"
    elif answer.is_html and answer.status in (401, 403, 404):
        kind, cure = "not_ours", "something that is not S3 answered: check proxies in between"
    return RemoteError(
        f"{cure} ({answer.status}){f': {said}' if said else ''}",
        kind=kind,
        status=answer.status,
        body_complete=answer.maybe_complete,
        retry_after=retry_after(answer, now),
        should_retry=should_retry(answer),
        correlation_id=safe_text(_tag(answer, "RequestId") or answer.headers.get("x-amz-request-id", ""))[:100] or None,
    )


def is_md5(answer: Response, etag: str) -> bool:
    """Is this ETag the MD5 of the bytes? Not after multipart uploads, nor where KMS or a customer's key encrypts."""
    encryption = answer.headers.get("x-amz-server-side-encryption", "")
    own_key = "x-amz-server-side-encryption-customer-algorithm" in answer.headers
    return _MD5.fullmatch(etag.lower()) is not None and "kms" not in encryption and not own_key


def _tag(answer: Response, name: str) -> str:
    """The text of an element; S3's errors are flat, so that no XML parser is needed."""
    found = re.search(f"<{name}>([^<]*)</{name}>", answer.content[:64_000].decode("utf-8", "replace"))
    return found[1].strip() if found else ""
