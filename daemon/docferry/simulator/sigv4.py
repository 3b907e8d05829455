"""Create and verify AWS Signature Version 4 in queries and in POST policies."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote, unquote

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_LIFETIME_S = 7 * 24 * 3600
#: The allowed lead of a signature over the server's clock.
_MAX_CLOCK_SKEW_S = 900.0
_UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Hold the key pair that the simulated S3 accepts."""

    access_key: str = "AKIADOCFERRYSIMULATE"
    secret_key: str = "docferry-simulated-secret-key"  # noqa: S105 - public on purpose
    region: str = "us-east-1"

    def scope(self, day: str) -> str:
        """Return the credential scope of a day."""
        return f"{day}/{self.region}/s3/aws4_request"

    def sign(self, day: str, text: str) -> str:
        """Return the signature of a text, in hex."""
        return hmac.new(_signing_key(self.secret_key, day, self.region), text.encode(), hashlib.sha256).hexdigest()


class S3Error(Exception):
    """Report an error response of S3: status, Code and Message of its XML."""

    def __init__(self, status: int, code: str, message: str, **extra: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.extra = extra


@dataclass(frozen=True, slots=True)
class Signable:
    """Hold the parts of a request that a signature covers."""

    method: str
    path: str  # as in the request, with its percent-encoding
    parameters: Sequence[tuple[str, str]]
    headers: Mapping[str, str]  # names in lower case


def presign(
    credentials: Credentials, method: str, path: str, headers: Mapping[str, str], *, now: float, lifetime: float
) -> str:
    """Return the query that permits `method` on `path`. Requests must send `headers`, host included."""
    stamp = amz_date(now)
    parameters = [
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{credentials.access_key}/{credentials.scope(stamp[:8])}"),
        ("X-Amz-Date", stamp),
        ("X-Amz-Expires", str(max(1, int(lifetime)))),
        ("X-Amz-SignedHeaders", ";".join(sorted(headers))),
    ]
    signature = _signature(credentials, Signable(method, path, parameters, headers), sorted(headers), stamp)
    return "&".join(
        f"{name}={quote(value, safe='-_.~')}" for name, value in [*parameters, ("X-Amz-Signature", signature)]
    )


def verify(credentials: Credentials, request: Signable, now: float) -> None:
    """Raise S3Error unless the query of the request has a valid signature."""
    found = dict(request.parameters)
    if "X-Amz-Signature" not in found:
        raise S3Error(403, "AccessDenied", "Access Denied")
    if (
        missing := {"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders"}
        - found.keys()
    ):
        raise _bad_query(f"the query lacks {', '.join(sorted(missing))}")
    stamp = found["X-Amz-Date"]
    check_scope(credentials, found["X-Amz-Algorithm"], found["X-Amz-Credential"], stamp)
    _check_times(stamp, found["X-Amz-Expires"], now)
    signed = found["X-Amz-SignedHeaders"].split(";")
    _check_headers(request.headers, signed)
    expected = _signature(credentials, request, signed, stamp)
    if not hmac.compare_digest(expected, found["X-Amz-Signature"]):
        raise mismatch()


def check_scope(credentials: Credentials, algorithm: str, credential: str, stamp: str) -> None:
    """Raise S3Error unless algorithm, access key and scope are the expected ones."""
    if algorithm != ALGORITHM:
        raise _bad_query(f"X-Amz-Algorithm only supports {ALGORITHM}")
    access_key, _, scope = credential.partition("/")
    if access_key != credentials.access_key:
        raise S3Error(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    if scope != credentials.scope(stamp[:8]):
        raise _bad_query("the credential's scope is not that of this day, region and service")


def mismatch() -> S3Error:
    """Return the error of a wrong signature."""
    return S3Error(
        403,
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided.",
    )


def amz_date(seconds: float) -> str:
    """Return a time as `YYYYMMDDTHHMMSSZ`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%SZ")


def _check_times(stamp: str, expires: str, now: float) -> None:
    try:
        begins = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        ends = begins + int(expires)
    except ValueError:
        raise _bad_query("X-Amz-Date or X-Amz-Expires cannot be read") from None
    if not 0 < int(expires) <= MAX_LIFETIME_S:
        raise _bad_query("X-Amz-Expires must be between 1 and 604800 seconds")
    if now > ends:
        raise S3Error(
            403,
            "AccessDenied",
            "Request has expired",
            **{"X-Amz-Expires": expires},
            Expires=_iso(ends),
            ServerTime=_iso(now),
        )
    if now < begins - _MAX_CLOCK_SKEW_S:
        raise S3Error(403, "AccessDenied", "Request is not yet valid", ServerTime=_iso(now))


def _check_headers(headers: Mapping[str, str], signed: Sequence[str]) -> None:
    if "host" not in signed:
        raise _bad_query("the host header must be signed")
    unsigned = [name for name in headers if name.startswith("x-amz-") and name not in signed]
    if unsigned:
        raise S3Error(
            403,
            "AccessDenied",
            "There were headers present in the request which were not signed",
            HeadersNotSigned=", ".join(unsigned),
        )


def _signature(credentials: Credentials, request: Signable, signed: Sequence[str], stamp: str) -> str:
    payload = request.headers.get("x-amz-content-sha256", _UNSIGNED)
    canonical = "\n".join(
        (
            request.method,
            quote(unquote(request.path), safe="/-_.~"),
            _canonical_query(request.parameters),
            *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in signed),
            "",
            ";".join(signed),
            payload,
        )
    )
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
    return credentials.sign(stamp[:8], f"{ALGORITHM}\n{stamp}\n{credentials.scope(stamp[:8])}\n{digest}")


def _canonical_query(parameters: Sequence[tuple[str, str]]) -> str:
    pairs = [
        (quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in parameters if name != "X-Amz-Signature"
    ]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


@lru_cache(maxsize=64)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for step in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, step.encode(), hashlib.sha256).digest()
    return key


def _bad_query(message: str) -> S3Error:
    return S3Error(400, "AuthorizationQueryParametersError", message)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
