"""Request RFC 3161 time stamps: an authority signs that a head existed at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from docferry.clock import Clock
from docferry.errors import ConfigError, RemoteError
from docferry.remotes.http import HttpClient, HttpOptions

if TYPE_CHECKING:
    from rfc3161_client import TimeStampRequest

#: The time limit without progress of the authority, seconds.
TSA_TIMEOUT_S: Final = 20.0
_REQUEST: Final = "application/timestamp-query"
_REPLY: Final = "application/timestamp-reply"


def check_installed() -> None:
    """Raise ConfigError if the library for time stamps is missing."""
    try:
        import rfc3161_client  # noqa: F401 - only tests whether it is installed
    except ImportError:
        raise ConfigError(
            ["[receipts] anchor tsa: needs the extra `receipts`: pip install 'docferry[receipts]', or remove it"]
        ) from None


async def request_timestamp(url: str, data: bytes, clock: Clock) -> bytes:
    """Return the authority's reply for `data`, DER. Raises RemoteError for an invalid reply, or one for other data."""
    from rfc3161_client import TimestampRequestBuilder

    request = TimestampRequestBuilder().data(data).nonce(nonce=True).cert_request(cert_request=True).build()
    headers = {"Content-Type": _REQUEST, "Accept": _REPLY}
    http = HttpClient("the time stamp authority", clock, HttpOptions(TSA_TIMEOUT_S))
    try:
        response = await http.call("POST", url, headers=headers, body=request.as_bytes())
    finally:
        await http.aclose()
    if not response.ok or response.body_error is not None:
        raise RemoteError(f"the time stamp authority answered with {response.status}", status=response.status)
    _check(response.content, request)
    return response.content


def _check(reply: bytes, request: TimeStampRequest) -> None:
    """Return whether the reply grants the request, with equal digest and nonce. The auditor verifies the signature."""
    from rfc3161_client import decode_timestamp_response

    try:
        response = decode_timestamp_response(reply)
        info = response.tst_info
        grants = response.status in (0, 1)
        matches = info.nonce == request.nonce and info.message_imprint.message == request.message_imprint.message
    except ValueError as error:
        raise RemoteError(f"the time stamp authority's answer is no time stamp: {error}", kind="not_ours") from error
    if not grants or not matches:
        raise RemoteError("the time stamp authority stamped something else", kind="not_ours")
