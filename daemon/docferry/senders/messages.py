"""Define the messages between the daemon and a sender process."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx
from msgspec import Struct, structs

from docferry.errors import SourceChanged, SourceError, SourceUnreadable, SourceVanished
from docferry.files.source import OpenedFile
from docferry.model import Stamp
from docferry.remotes.http.options import HttpOptions
from docferry.remotes.http.public_addresses import PrivateAddressError, PublicOnly
from docferry.senders.channel import Channel, ChannelError, Frame

#: The first word of each message.
HELLO: Final = "hello"  # to the sender: the options of all clients, first
REQUEST: Final = "request"  # to the sender: one request
CANCEL: Final = "cancel"  # to the sender: cancel a request
READY: Final = "ready"  # from the sender
RESPONSE: Final = "response"  # from the sender: the end of a request
FAILURE: Final = "failure"  # from the sender: the end of a request without a response

Headers = Sequence[tuple[bytes, bytes]]
_PATHS: Final = ("ca_file", "cert_file", "key_file")
_HTTP_ERRORS: Final[dict[str, type[httpx.TransportError]]] = {
    each.__name__: each
    for each in (
        httpx.ConnectError, httpx.ConnectTimeout, httpx.LocalProtocolError, httpx.PoolTimeout, httpx.ProxyError,
        httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.UnsupportedProtocol, httpx.WriteError,
        httpx.WriteTimeout, httpx.CloseError, PrivateAddressError,
    )
}  # fmt: skip
_SOURCE_ERRORS: Final[dict[str, type[SourceError]]] = {
    each.__name__: each for each in (SourceError, SourceVanished, SourceChanged, SourceUnreadable)
}


class SendRequest(Struct, frozen=True):
    """Describe one request with documents.

    `number` and `slot` are unique among the requests of one sender at a time.
    """

    number: int
    slot: int
    client: int
    method: str
    url: str
    headers: Headers
    extensions: dict[str, Any]  # of httpx.Request, as JSON
    parts: Sequence[bytes | OpenedFile]

    async def send(self, channel: Channel) -> None:
        """Send the request with its open files."""
        files = [part for part in self.parts if not isinstance(part, bytes)]
        parts = [len(part) if isinstance(part, bytes) else _described(part) for part in self.parts]
        message = [
            REQUEST, self.number, self.slot, self.client, self.method, self.url, _text(self.headers), self.extensions,
            parts,
        ]  # fmt: skip
        tail = [part for part in self.parts if isinstance(part, bytes)]
        await channel.send(message, tail, [file.descriptor for file in files])

    @classmethod
    def read(cls, frame: Frame, channel: Channel) -> SendRequest:
        """Return the request of a frame, which owns its open files."""
        _, number, slot, client, method, url, headers, extensions, described = frame.message
        descriptors = iter(channel.take_descriptors(sum(isinstance(each, list) for each in described)))
        parts, start = list[bytes | OpenedFile](), 0
        for each in described:
            if isinstance(each, int):
                parts.append(frame.tail[start : start + each])
                start += each
            else:
                path, fingerprint, *stamp = each
                parts.append(OpenedFile(next(descriptors), path.encode("latin-1"), Stamp(*stamp), fingerprint))
        return cls(number, slot, client, method, url, _raw(headers), extensions, parts)


class SendResponse(Struct, frozen=True):
    """Hold the response to a request. `is_cut`: its content is incomplete."""

    number: int
    status: int
    headers: Headers
    content: bytes
    complete: bool
    maybe_complete: bool
    is_cut: bool

    async def send(self, channel: Channel) -> None:
        """Send the response to the daemon."""
        flags = [self.complete, self.maybe_complete, self.is_cut]
        await channel.send([RESPONSE, self.number, self.status, _text(self.headers), *flags], [self.content])


class SendFailure(Struct, frozen=True):
    """Hold the error of a request; `kind` is the name of its class, "" after a cancellation."""

    number: int
    kind: str
    text: str
    maybe_complete: bool

    @classmethod
    def of(cls, number: int, error: Exception, *, maybe_complete: bool) -> SendFailure:
        """Return the failure for any exception."""
        return cls(number, type(error).__name__, str(error), maybe_complete)

    async def send(self, channel: Channel) -> None:
        """Send the failure to the daemon."""
        await channel.send([FAILURE, self.number, self.kind, self.text, self.maybe_complete])

    def error(self) -> Exception:
        """Return the exception: of httpx or of a source; any other becomes a broken connection with its name."""
        if self.kind in _SOURCE_ERRORS:
            return _SOURCE_ERRORS[self.kind](self.text)
        if self.kind in _HTTP_ERRORS:
            return _HTTP_ERRORS[self.kind](self.text)
        return httpx.ReadError(f"{self.kind}: {self.text}")


Reply = SendResponse | SendFailure


def read_reply(frame: Frame) -> Reply:
    """Return the reply of a frame. Raises ChannelError if it is none."""
    try:
        if frame.message[0] == RESPONSE:
            _, number, status, headers, complete, maybe, is_cut = frame.message
            return SendResponse(int(number), int(status), _raw(headers), frame.tail, complete, maybe, is_cut)
        _, number, kind, text, maybe = frame.message
        return SendFailure(int(number), str(kind), str(text), bool(maybe))
    except (TypeError, ValueError, AttributeError) as error:
        raise ChannelError("a message has another shape") from error


def hello(clients: Sequence[HttpOptions]) -> list[Any]:
    """Return the first message to a sender."""
    return [HELLO, [_fields(options) for options in clients]]


def read_options(fields: dict[str, Any]) -> HttpOptions:
    """Return the options of a client."""
    paths = {name: Path(fields[name]) for name in _PATHS if fields[name] is not None}
    public = fields["public_only"]
    only = PublicOnly(public["trusted_host"], tuple(public["patterns"])) if public is not None else None
    return HttpOptions(**(fields | paths | {"public_only": only}))


def paths_of(options: HttpOptions) -> list[Path]:
    """Return the files that TLS needs."""
    return [path for name in _PATHS if (path := getattr(options, name)) is not None]


def _fields(options: HttpOptions) -> dict[str, Any]:
    only = options.public_only
    fields = dataclasses.asdict(options)  # noqa: TID251 - HttpOptions is a dataclass
    fields["public_only"] = None if only is None else structs.asdict(only)
    return fields | {name: str(fields[name]) for name in _PATHS if fields[name] is not None}


def _described(file: OpenedFile) -> list[Any]:
    stamp = file.stamp
    return [file.path.decode("latin-1"), file.fingerprint, stamp.size, stamp.mtime_ns, stamp.ctime_ns]


def _text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _raw(headers: Sequence[Sequence[str]]) -> Headers:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
