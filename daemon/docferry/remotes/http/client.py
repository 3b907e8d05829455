"""Send one request: headers, limits, and the meaning of network errors for a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote

import anyio
import httpx
from anyio.lowlevel import checkpoint_if_cancelled

from docferry.clock import Clock
from docferry.endpoints import Origin, split_url
from docferry.errors import RemoteError
from docferry.remotes.http.exchange import OutgoingRequest, Transport, encode_head
from docferry.remotes.http.options import HttpOptions
from docferry.remotes.http.public_addresses import PrivateAddressError
from docferry.remotes.http.request_body import Body, TrackedBody
from docferry.remotes.http.response import (
    MEMORY,
    RECEIPT,
    BodyError,
    Destination,
    Response,
    header_dict,
    parse_time,
    read_content,
    safe_text,
)
from docferry.remotes.http.transports import open_transport

#: Above this size a request waits for permission (`Expect: 100-continue`) after a refusal or an unexplained break.
_LARGE_BYTES: Final = 128 * 1024
_ALWAYS: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "docferry"}
#: After these errors no byte of the request has reached the server.
_UNSENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)


class HttpClient:
    """Send requests to one remote, named `name` in messages.

    Nothing is retried. Redirects, cookies, `.netrc` and proxies of the environment are ignored. Every error of a
    request is a RemoteError, except errors of the document's source or of the sink. `open_transport` opens the
    transport at the first request.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        options: HttpOptions | None = None,
        open_transport: Callable[[HttpOptions], Transport] = open_transport,
    ) -> None:
        self._name = name
        self._clock = clock
        self._open_transport = open_transport
        self._options = options = options or HttpOptions()
        self._timeouts = options.timeouts
        self._headers = [(name.lower(), (name, value)) for name, value in _raw_headers(_ALWAYS | dict(options.headers))]
        self._transport: Transport | None = None
        self._date = ""
        self._expect_continue: bool | None = False  # None: the remote answers 417
        self.clock_offset: float | None = None
        self.last_response: float | None = None
        self.requests = 0

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        body: bytes | Body | None = None,
        to: Destination = MEMORY,
    ) -> Response:
        """Send one request and return its response. Raises RemoteError if no status arrives.

        `body` is a document, or a few bytes; `to` is the destination of the response's body.
        """
        await checkpoint_if_cancelled()  # a request that was cancelled while it waited has sent nothing yet
        tracked = None if body is None or isinstance(body, bytes) else TrackedBody(body)
        to = RECEIPT if to is MEMORY and tracked is not None else to
        request = self._request(method, url, headers, body if isinstance(body, bytes) else tracked)
        self.requests += 1
        try:
            self._transport = self._transport or self._open_transport(self._options)
            head, stream = await self._transport.exchange(request)
            response_headers = header_dict(head.headers)
        except Exception as error:
            if tracked is not None and error is tracked.error:
                raise
            raise self._failure(error, request, tracked) from None
        finally:
            if tracked is not None and tracked.is_open:
                with anyio.CancelScope(shield=True):
                    await tracked.aclose()
        self._note(response_headers)
        content, length, wrong = await _read(head.status, stream, response_headers, to)
        complete, maybe = (tracked.complete, tracked.maybe_complete) if tracked is not None else (False, False)
        response = Response(
            head.status,
            response_headers,
            content,
            body_complete=complete,
            maybe_complete=maybe,
            body_error=wrong,
            length=length,
        )
        self._learn(response, tracked)
        return response

    async def aclose(self) -> None:
        """Close idle connections; a later call opens new ones."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | TrackedBody | None
    ) -> OutgoingRequest:
        """Return the request. Raises RemoteError if the URL or a header cannot be sent."""
        try:
            parsed, origin, target = split_url(url)
            own = _raw_headers(headers)
        except ValueError as error:
            raise RemoteError(f"the address of {self._name} {error}", kind="not_ours") from None
        names = {name.lower() for name, _ in own}
        fields = [(b"Host", origin.authority.encode("ascii"))]
        fields += [field for name, field in self._headers if name not in names]
        fields += own
        if body is not None or method in ("POST", "PUT"):
            length = body.length if isinstance(body, TrackedBody) else len(body or b"")
            fields.append((b"Content-Length", b"%d" % length))
        asks_first = _is_large(body) and bool(self._expect_continue) and self._options.proxy is None
        if asks_first:
            # With permission first, an early refusal is read before a reset, so the document is not sent repeatedly.
            fields.append((b"Expect", b"100-continue"))
        try:
            head = encode_head(method, parsed.raw_path if target is None else target, fields)
        except httpx.LocalProtocolError as error:
            where = f"{self._name} at {_host_of(origin)}"
            raise RemoteError(f"{where} cannot be reached: {error}", kind="unreachable") from None
        return OutgoingRequest(origin, head, b"" if body is None else body, self._timeouts, asks_first)

    def _note(self, headers: Mapping[str, str]) -> None:
        """Store the time of the latest response, and the seconds by which the remote's clock is ahead."""
        self.last_response = now = self._clock.now()
        date = headers.get("date", "")
        if date and date != self._date:
            self._date = date
            remote_now = parse_time(date)
            if remote_now is not None:
                self.clock_offset = remote_now + 0.5 - now  # dates are truncated to the second

    def _learn(self, response: Response, tracked: TrackedBody | None) -> None:
        if response.status == 417:
            self._expect_continue = None
        elif _is_large(tracked) and self._expect_continue is not None:
            # Ask for permission after a refusal of a large body: the next refusal then costs no body.
            self._expect_continue = not response.ok

    def _failure(self, error: Exception, request: OutgoingRequest, tracked: TrackedBody | None) -> RemoteError:
        """Return the RemoteError for any exception of a request."""
        # Name only the host: paths add little, and a signed URL's query is a secret.
        where = f"{self._name} at {_host_of(request.origin)}"
        why = self._describe(error, request)
        if isinstance(error, PrivateAddressError):
            return RemoteError(f"no document is sent to {where}: {why}", kind="not_ours")
        if isinstance(error, _UNSENT):
            return RemoteError(f"{where} cannot be reached: {why}", kind="unreachable")
        maybe = tracked is not None and tracked.maybe_complete
        if isinstance(error, httpx.TimeoutException):
            return RemoteError(f"{where} did not answer in time: {why}", kind="timeout", body_complete=maybe)
        if _is_large(tracked) and self._expect_continue is False:
            self._expect_continue = True
        return RemoteError(f"the connection to {where} broke: {why}", kind="cut", body_complete=maybe)

    def _describe(self, error: Exception, request: OutgoingRequest) -> str:
        """Return the reason on one line, without secrets."""
        secrets = [request.target.partition(b"?")[2].decode("ascii")]
        secrets += [value.decode() for name, value in request.fields if name.lower() == b"authorization"]
        if self._options.proxy is not None:
            credentials = self._options.proxy.rpartition("@")[0].partition("://")[2]
            secrets += [credentials, unquote(credentials.partition(":")[2])]
        text = safe_text(error)
        if not text or any(secret and secret in text for secret in secrets):
            return type(error).__name__
        return text if isinstance(error, httpx.HTTPError) else f"{type(error).__name__}: {text}"


async def _read(
    status: int, stream: httpx.AsyncByteStream, headers: Mapping[str, str], to: Destination
) -> tuple[bytes, int, BodyError | None]:
    """Read the body to its destination."""
    try:
        if to.open_sink is None or not 200 <= status < 300:
            return await read_content(aiter(stream), headers, to, None)
        async with to.open_sink(status, headers) as sink:
            return await read_content(aiter(stream), headers, to, sink)
    finally:
        await stream.aclose()


def _raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode()) for name, value in headers.items()]


def _host_of(origin: Origin) -> str:
    """Return the host as people write it."""
    return httpx.URL(f"{origin.scheme}://{origin.authority}").host


def _is_large(body: bytes | TrackedBody | None) -> bool:
    return isinstance(body, TrackedBody) and body.length > _LARGE_BYTES
