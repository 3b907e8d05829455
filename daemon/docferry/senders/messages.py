"""Define the messages between the daemon and a sender process."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import httpx
from msgspec import DecodeError, Struct, json, structs

from docferry.endpoints import Origin
from docferry.errors import SourceChanged, SourceError, SourceUnreadable, SourceVanished
from docferry.files.source import OpenedFile
from docferry.model import Stamp
from docferry.remotes.http.options import HttpOptions
from docferry.remotes.http.public_addresses import PrivateAddressError, PublicOnly
from docferry.senders.channel import Channel, ChannelError, Frame

#: The kinds of frames.
HELLO: Final = 1  # to the sender: the options of all clients, before anything else
REQUEST: Final = 2  # to the sender: one request
CANCEL: Final = 3  # to the sender: its answer is no longer wanted
READY: Final = 4  # from the sender
RESPONSE: Final = 5  # from the sender: the end of a request
FAILURE: Final = 6  # from the sender: the end of a request without a response

Headers = Sequence[tuple[bytes, bytes]]
#: Slot, client, whether to wait for 100 Continue, bytes of the origin, and of the head. Both follow, and the parts.
_REQUEST: Final = struct.Struct("!HH?HI")
#: Status, `complete`, `maybe_complete`, `is_cut`. The headers follow, a line each.
_RESPONSE: Final = struct.Struct("!H???")
#: The longest first string of a reply, bytes: a head has at most 64 KiB.
MAX_REPLY_META_BYTES: Final = 256 * 1024
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
    """Describe one request with documents, each as an open file or as its bytes. `slot` is its place on the page."""

    slot: int
    client: int
    origin: Origin
    head: bytes  # with the empty line at its end
    expect_continue: bool
    parts: Sequence[bytes | OpenedFile]

    def send(self, number: int, channel: Channel) -> None:
        """Send the request with its open files."""
        files = [part for part in self.parts if not isinstance(part, bytes)]
        origin = _packed_origin(self.origin)
        meta = _REQUEST.pack(self.slot, self.client, self.expect_continue, len(origin), len(self.head))
        meta += origin + self.head
        if not files:
            channel.write(Frame(REQUEST, number, meta, b"".join(self.parts)))  # type: ignore[arg-type]  # all bytes
            return
        parts = [len(part) if isinstance(part, bytes) else _described(part) for part in self.parts]
        tail = b"".join([part for part in self.parts if isinstance(part, bytes)])
        frame = Frame(REQUEST, number, meta + json.encode(parts), tail)
        channel.write(frame, [file.descriptor for file in files])

    @classmethod
    def read(cls, frame: Frame, channel: Channel) -> SendRequest:
        """Return the request of a frame, which owns its open files."""
        meta = frame.meta
        slot, client, expect_continue, origin, head = _REQUEST.unpack_from(meta)
        middle = _REQUEST.size + origin
        end = middle + head
        parts: Sequence[bytes | OpenedFile] = [frame.tail]
        if len(meta) > end:
            parts = _read_parts(json.decode(meta[end:]), frame.tail, channel)
        return cls(slot, client, _origin(meta[_REQUEST.size : middle]), meta[middle:end], expect_continue, parts)


class SendResponse(Struct, frozen=True):
    """Hold the response to a request. `is_cut`: its content is incomplete."""

    status: int
    headers: Headers
    content: bytes
    complete: bool
    maybe_complete: bool
    is_cut: bool

    def frame(self, number: int) -> Frame:
        """Return the frame for the daemon."""
        flags = _RESPONSE.pack(self.status, self.complete, self.maybe_complete, self.is_cut)
        return Frame(RESPONSE, number, flags + b"\n".join([b"%s:%s" % field for field in self.headers]), self.content)


class SendFailure(Struct, frozen=True):
    """Hold the error of a request; `kind` is the name of its class, "" after a cancellation."""

    kind: str
    text: str
    maybe_complete: bool

    @classmethod
    def of(cls, error: Exception, *, maybe_complete: bool) -> SendFailure:
        """Return the failure for an exception."""
        return cls(type(error).__name__, str(error), maybe_complete)

    def frame(self, number: int) -> Frame:
        """Return the frame for the daemon."""
        return Frame(FAILURE, number, json.encode([self.kind, self.text, self.maybe_complete]))

    def error(self) -> Exception:
        """Return the exception: of httpx or of a source; any other becomes a broken connection with its name."""
        if self.kind in _SOURCE_ERRORS:
            return _SOURCE_ERRORS[self.kind](self.text)
        if self.kind in _HTTP_ERRORS:
            return _HTTP_ERRORS[self.kind](self.text)
        return httpx.ReadError(f"{self.kind}: {self.text}")


Reply = SendResponse | SendFailure


def read_reply(frame: Frame) -> Reply:
    """Return the reply of a frame. Raises ChannelError for an invalid frame."""
    if len(frame.meta) > MAX_REPLY_META_BYTES:
        raise ChannelError("a message is too long")
    try:
        if frame.kind == RESPONSE:
            status, *flags = _RESPONSE.unpack_from(frame.meta)
            return SendResponse(status, _read_headers(frame.meta[_RESPONSE.size :]), frame.tail, *flags)
        if frame.kind == FAILURE:
            kind, text, maybe = json.decode(frame.meta)
            return SendFailure(str(kind), str(text), bool(maybe))
    except (TypeError, ValueError, RecursionError, DecodeError, struct.error) as error:
        raise ChannelError("a message has another shape") from error
    raise ChannelError(f"there is no message {frame.kind} from a sender")


def hello(clients: Sequence[HttpOptions]) -> Frame:
    """Return the first message to a sender."""
    return Frame(HELLO, meta=json.encode([_fields(options) for options in clients]))


def read_hello(frame: Frame) -> list[HttpOptions]:
    """Return the options of all clients."""
    return [_options(fields) for fields in json.decode(frame.meta)]


def paths_of(options: HttpOptions) -> list[Path]:
    """Return the files that TLS needs."""
    return [path for name in _PATHS if (path := getattr(options, name)) is not None]


def _options(fields: dict[str, Any]) -> HttpOptions:
    paths = {name: Path(fields[name]) for name in _PATHS if fields[name] is not None}
    public = fields["public_only"]
    only = PublicOnly(public["trusted_host"], tuple(public["patterns"])) if public is not None else None
    return HttpOptions(**(fields | paths | {"public_only": only}))


def _fields(options: HttpOptions) -> dict[str, Any]:
    only = options.public_only
    fields = dataclasses.asdict(options)  # noqa: TID251 - HttpOptions is a dataclass
    fields["public_only"] = None if only is None else structs.asdict(only)
    return fields | {name: str(fields[name]) for name in _PATHS if fields[name] is not None}


@lru_cache(maxsize=256)
def _packed_origin(origin: Origin) -> bytes:
    return f"{origin.scheme} {origin.host} {origin.port} {origin.authority}".encode("ascii")


@lru_cache(maxsize=256)
def _origin(packed: bytes) -> Origin:
    scheme, host, port, authority = packed.decode("ascii").split(" ")
    return Origin(scheme, host, int(port), authority)


def _described(file: OpenedFile) -> list[Any]:
    stamp = file.stamp
    return [file.path.decode("latin-1"), file.fingerprint, stamp.size, stamp.mtime_ns, stamp.ctime_ns]


def _read_parts(described: Sequence[int | list[Any]], tail: bytes, channel: Channel) -> list[bytes | OpenedFile]:
    descriptors = iter(channel.take_descriptors(sum(isinstance(each, list) for each in described)))
    parts, start = list[bytes | OpenedFile](), 0
    for each in described:
        if isinstance(each, int):
            parts.append(tail[start : start + each])
            start += each
        else:
            path, fingerprint, *stamp = each
            parts.append(OpenedFile(next(descriptors), path.encode("latin-1"), Stamp(*stamp), fingerprint))
    return parts


def _read_headers(lines: bytes) -> Headers:
    """Return header fields; a name holds no colon, and no field a line break."""
    found = [line.partition(b":") for line in lines.split(b"\n")] if lines else []
    return [(name, value) for name, _, value in found]
