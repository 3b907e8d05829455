"""Implement the httpx transport of the daemon that passes requests with documents to sender processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import httpx

from docferry.files.source import OpenedFile
from docferry.model import Source
from docferry.remotes.http.exchange import OutgoingRequest, Transport
from docferry.remotes.http.options import HttpOptions
from docferry.remotes.http.request_body import TrackedBody
from docferry.remotes.http.response_parser import ResponseHead
from docferry.remotes.http.transports import open_transport
from docferry.senders.handle import SenderHandle
from docferry.senders.messages import Reply, SendFailure, SendRequest
from docferry.senders.progress import Slot
from docferry.telemetry import CountedSource

if TYPE_CHECKING:
    from docferry.senders.pool import SenderPool


class SenderTransport:
    """Choose between senders and a transport of this process.

    A request goes to a running sender if its body holds open files. Its errors are those of the sender's transport. If
    the sender dies, the request is sent again only if no byte of it can have been sent.
    """

    def __init__(self, pool: SenderPool, options: HttpOptions) -> None:
        self._pool = pool
        self._options = options
        self._local: Transport | None = None

    async def exchange(self, request: OutgoingRequest) -> tuple[ResponseHead, httpx.AsyncByteStream]:
        """Send a request; return the head of its response, and its body, which the caller closes."""
        body = request.body
        while isinstance(body, TrackedBody) and self._pool.is_running:
            parts, chosen = _open_parts(body.parts or ()), self._pool.choose(self._options)
            if not parts or chosen is None:
                break
            sender, client = chosen
            reply = await _through(sender, client, request, body, parts)
            if reply is not None:
                return _response(reply, body)
        self._local = self._local or open_transport(self._options)
        return await self._local.exchange(request)

    async def aclose(self) -> None:
        """Close the connections of this process; those of senders end with the senders."""
        local, self._local = self._local, None
        if local is not None:
            await local.aclose()


async def _through(
    sender: SenderHandle,
    client: int,
    request: OutgoingRequest,
    body: TrackedBody,
    parts: Sequence[bytes | OpenedFile],
) -> Reply | None:
    """Return a sender's reply; None if the sender died before a byte of the request can have been sent."""
    slot = sender.take_slot()
    sources = [part for part in body.parts or () if not isinstance(part, bytes)]
    _follow(sources, slot)
    try:
        message = SendRequest(slot.number, client, request.origin, request.head, request.expect_continue, parts)
        reply = await sender.exchange(slot, message)
        # A head that asks for permission precedes the body, and the server counts it; the limits must count the next.
        if reply is None and (slot.has_begun or request.expect_continue):
            body.sent_elsewhere(complete=False, maybe_complete=slot.has_begun)
            raise httpx.ReadError("the process that sent the document ended")
    except anyio.get_cancelled_exc_class():
        if slot.has_begun:
            for source in sources:
                _uncounted(source).is_wanted = True
        raise
    finally:
        _follow(sources, None)
        sender.give_back(slot)
    return reply


def _response(reply: Reply, body: TrackedBody) -> tuple[ResponseHead, httpx.AsyncByteStream]:
    """Return the response of a reply, or raise its error; record the sender's progress in `body`."""
    if isinstance(reply, SendFailure):
        body.sent_elsewhere(complete=False, maybe_complete=reply.maybe_complete)
        error = reply.error()
        if not isinstance(error, httpx.HTTPError):
            body.error = error
        raise error
    body.sent_elsewhere(complete=reply.complete, maybe_complete=reply.maybe_complete)
    head = ResponseHead(reply.status, list(reply.headers), until_close=False, keep_alive=False)
    return head, _Content(reply.content, reply.is_cut)


class _Content(httpx.AsyncByteStream):
    """Yield content that was received already, perhaps incomplete."""

    def __init__(self, content: bytes, is_cut: bool) -> None:
        self._content, self._is_cut = content, is_cut

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._content:
            yield self._content
        if self._is_cut:
            raise httpx.ReadError("the response broke off")


def _open_parts(parts: Sequence[bytes | Source]) -> list[bytes | OpenedFile]:
    """Return the parts with open files in place of documents; none if a document is not open."""
    found = list[bytes | OpenedFile]()
    for part in parts:
        opened = part if isinstance(part, bytes) else getattr(_uncounted(part), "opened", None)
        if opened is None:
            return []
        found.append(opened)
    return found


def _uncounted(source: Source) -> Any:
    return source.source if type(source) is CountedSource else source  # a Protocol, for which isinstance() costs 10 µs


def _follow(sources: Sequence[Source], slot: Slot | None) -> None:
    """Let counted sources read the progress of a sender; None ends this."""
    before = 0
    for source in sources:
        if type(source) is CountedSource:
            source.follow(None if slot is None else partial(_given, slot, before))
        before += source.size


def _given(slot: Slot, before: int) -> int:
    return slot.given - before
