"""One request and its answer: deadlines, caps, and what it means when httpx's errors come."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import certifi
import httpx
from anyio.lowlevel import checkpoint_if_cancelled

from docferry.clock import Clock
from docferry.errors import RemoteError
from docferry.remotes.address import address
from docferry.remotes.answers import Answer, moment
from docferry.remotes.body import Body, Outgoing
from docferry.remotes.proxied import Proxied
from docferry.remotes.reading import SLOWEST, Reading
from docferry.remotes.sinks import Into
from docferry.remotes.wire import Patience, Request, Transport, Wire

#: No answer that is read into memory is longer, decoded.
CAP: Final = 16 * 1024 * 1024
CONNECT_TIMEOUT: Final = 10.0
_LARGE: Final = 128 * 1024
_ALWAYS: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "docferry"}
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class Http:
    """The line to one remote. Nothing is retried, no redirect followed, no cookie kept, no environment believed."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        timeout: float = 60.0,
        *,
        connections: int = 16,
        proxy: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._name = name
        self._clock = clock
        self._timeout = timeout
        connect = min(CONNECT_TIMEOUT, timeout)
        self._of_large = Patience(connect, timeout, timeout)
        # For what is small the deadline of the whole is the one for its answer too.
        self._of_small = Patience(connect, None, timeout)
        self._connections = connections
        self._proxy = proxy
        self._ca_file = ca_file
        self._pool: _Pool | None = None
        self._date = ""
        self._asks_first: bool | None = False  # before a large body; None: the remote does not know how to answer
        self.clock_offset: float | None = None
        self.last_answer: float | None = None
        self.requests = 0

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        content: bytes | None = None,
        body: Body | None = None,
        cap: int = CAP,
        into: Into | None = None,
    ) -> Answer:
        """One request; RemoteError when no status came. `content` is a few bytes about a document, `body` is one.

        A 2xx body goes `into` a sink, where one is given, and others into memory; both up to `cap` bytes."""
        await checkpoint_if_cancelled()  # whoever was stopped while the books were written has sent nothing yet
        outgoing = Outgoing(body) if body is not None else None
        request = self._request(method, url, headers, content, outgoing)
        reading = Reading(cap, into)
        self.requests += 1
        try:
            with anyio.move_on_after(self._timeout + _size(outgoing) / SLOWEST) as scope:
                await self._exchange(request, reading, scope)
        except _UNSENT as error:
            raise self._failure(request, "unreachable", _why(error), None) from None
        except httpx.HTTPError as error:
            kind = "timeout" if isinstance(error, httpx.TimeoutException) else "cut"
            raise self._failure(request, kind, _why(error), outgoing) from None
        if scope.cancelled_caught:
            if not reading.begun:
                raise self._failure(request, "timeout", "the deadline passed", outgoing)
            reading.flaw = "cut"
        answer = reading.answer(body_complete=outgoing is not None and outgoing.body_complete)
        self._learn(answer, outgoing)
        return answer

    async def aclose(self) -> None:
        """Close what is open; a later call opens it again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.transport.aclose()

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None, outgoing: Outgoing | None
    ) -> Request:
        where = address(url)
        fields = {"Host": where.origin.named, **_ALWAYS, **headers}
        if outgoing is not None:
            fields["Content-Length"] = str(outgoing.length)
        elif content is not None or method in ("POST", "PUT"):
            fields["Content-Length"] = str(len(content or b""))
        large = _size(outgoing) > _LARGE
        if large and self._asks_first and self._proxy is None:
            # After a large body broke off unexplained, the next asks before it comes: a server that refuses early and
            # hangs up is heard then, and the document is not sent over and over.
            fields["Expect"] = "100-continue"
        body = outgoing if outgoing is not None else content or b""
        return Request(method, where, fields, body, self._of_large if large else self._of_small)

    async def _exchange(self, request: Request, reading: Reading, scope: anyio.CancelScope) -> None:
        """The request out, the answer in; whatever happens, the reply is closed and its line is free or gone."""
        pool = self._pool = self._pool or _Pool(self._transport())
        pool.busy += 1
        try:
            reply = await pool.transport.exchange(request)
            try:
                self._note(reply.headers)
                await reading.run(reply, scope)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await reply.aclose()
                raise
            await reply.aclose()
        except httpx.PoolTimeout:
            if self._pool is pool:
                self._pool = None  # cancelled requests leak slots of httpcore's pool: this one has none left
            raise
        finally:
            pool.busy -= 1
            if isinstance(request.body, Outgoing) and not request.body.is_spent:
                with anyio.CancelScope(shield=True):
                    await request.body.aclose()
            if pool is not self._pool and not pool.busy:
                with anyio.CancelScope(shield=True):
                    await pool.transport.aclose()

    def _transport(self) -> Transport:
        if self._proxy is None:
            return Wire(lambda: _trust(self._ca_file))
        return Proxied(self._proxy, _trust(self._ca_file), self._connections, self._timeout)

    def _note(self, headers: Mapping[str, str]) -> None:
        """Keep when the remote spoke last, and how far its clock is from ours."""
        self.last_answer = now = self._clock.now()
        date = headers.get("date", "")
        if date and date != self._date:
            self._date = date
            said = moment(date)
            if said is not None:
                self.clock_offset = said + 0.5 - now  # dates are cut to the second

    def _learn(self, answer: Answer, outgoing: Outgoing | None) -> None:
        if answer.status == 417:
            self._asks_first = None
        elif self._asks_first and _size(outgoing) > _LARGE and answer.ok:
            self._asks_first = False

    def _failure(self, request: Request, kind: str, why: str, outgoing: Outgoing | None) -> RemoteError:
        if kind == "cut" and _size(outgoing) > _LARGE and self._asks_first is False:
            self._asks_first = True
        # Only the host is named: paths say little, and a signed URL's query is a secret.
        where = f"{self._name} at {request.address.origin.host}"
        sentence = {
            "unreachable": f"{where} cannot be reached: {why}",
            "timeout": f"{where} did not answer in time: {why}",
            "cut": f"the connection to {where} broke: {why}",
        }[kind]
        return RemoteError(sentence, kind=kind, body_complete=outgoing is not None and outgoing.body_complete)


@dataclass(slots=True)
class _Pool:
    transport: Transport
    busy: int = 0


def _size(outgoing: Outgoing | None) -> int:
    return outgoing.length if outgoing is not None else 0


def _why(error: httpx.HTTPError) -> str:
    """The reason in a few words, without addresses."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}); is `ca_file` missing?"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return str(error)[:200] or type(error).__name__


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file) if ca_file else certifi.where())
