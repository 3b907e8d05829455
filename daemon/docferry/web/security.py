"""Refuse strangers: the Host check against DNS rebinding, and the origin check against foreign pages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from docferry.settings.listeners import address

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CSP: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def allowed_hosts(listen: str, hosts: Sequence[str]) -> frozenset[str]:
    """Return the valid names of a listener, without ports."""
    where = address(listen)
    # A forwarder to a Unix socket uses a loopback address.
    own = {"127.0.0.1", "::1"} if where.path is not None or where.host == "localhost" else {where.host}
    return frozenset({"localhost", *own, *(host.removeprefix("[").removesuffix("]") for host in hosts)})


class HostCheck:
    """Answer 421 to a foreign `Host`: a foreign name that resolves to this machine is an attack."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with 421."""
        if scope["type"] != "http" or host_name(Headers(scope=scope).get("host", "")) in self._allowed:
            await self._app(scope, receive, send)
            return
        text = "docferry is not served under this name; add it to web.hosts in the configuration\n"
        await PlainTextResponse(text, 421, headers=_HEADERS)(scope, receive, send)


class OriginCheck:
    """Refuse changes requested by other pages, even pages on another port of this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with 403."""
        if scope["type"] != "http" or scope["method"] in _SAFE or is_same_origin(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        text = "refused: this request came from another page\n"
        await PlainTextResponse(text, 403, headers=_HEADERS)(scope, receive, send)


class SecureHeaders:
    """Add the headers that restrict a browser to docferry's own files."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the headers to its response."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def host_name(host: str) -> str:
    """Return the name of a `Host` header, without port and brackets, lower case."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def is_same_origin(headers: Headers) -> bool:
    """Return whether a browser sends the request from docferry's own pages.

    Without `Sec-Fetch-Site`, the origin is compared.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin", "")
    scheme, _, authority = origin.partition("://")
    return scheme in ("http", "https") and bool(authority) and authority.lower() == headers.get("host", "").lower()
