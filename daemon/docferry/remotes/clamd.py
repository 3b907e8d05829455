"""Ask clamd whether bytes are infected, with its command INSTREAM (clamd(8)) over a Unix or TCP socket.

Any incomplete or malformed reply is an error: no document counts as clean by accident.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import anyio
from anyio.abc import ByteStream
from msgspec import Struct

from docferry.errors import DocferryError
from docferry.model import escaped

#: Scans at a time; clamd has 10 threads by default.
_SCANS: Final = 8
#: The time limit to connect, and to write one block of bytes, seconds.
_CONNECT_S: Final = 10.0
_SEND_S: Final = 60.0
#: The time limit of a scan, above clamd's default of 120 s, and the interval of pings during it, seconds.
_SCAN_S: Final = 180.0
_PING_EVERY_S: Final = 5.0
_PING_S: Final = 5.0
_LONGEST_REPLY: Final = 4096
#: A chunk up to this size is written together with its length, bytes.
_SMALL: Final = 65_536
_END: Final = bytes(4)
_TOO_LARGE: Final = b"INSTREAM size limit exceeded. ERROR"
#: The name reported instead of a virus if clamd skipped a part of the document (AlertExceedsMax).
_LIMITS: Final = "Heuristics.Limits.Exceeded"
_BROKEN: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


class ClamdError(DocferryError):
    """Report that there is no verdict. `about_document`: clamd responds, so the document may be the cause."""

    def __init__(self, message: str, *, about_document: bool = False) -> None:
        super().__init__(message)
        self.about_document = about_document


class ScanVerdict(Struct, frozen=True):
    """Hold the result of a scan: clean, infected, or too large to scan."""

    signature: str | None = None  # the name of the found signature
    too_large: str | None = None  # the reply of clamd


class Clamd:
    """Access one clamd. `path` is the path of a Unix socket; without it, `host` and `port` are used."""

    def __init__(self, path: str | None, host: str = "", port: int = 0) -> None:
        self._path, self._host, self._port = path, host, port
        self._scans = anyio.CapacityLimiter(_SCANS)
        self._shown = f"clamd at {path or f'{host}:{port}'}"

    async def scan(self, blocks: AsyncIterator[bytes]) -> ScanVerdict:
        """Scan bytes. Raises ClamdError, and any error of `blocks`."""
        async with self._scans, await self._connect() as stream:
            is_sent = await self._send(stream, blocks)
            return await self._verdict(await self._reply(stream), is_sent=is_sent)

    async def ping(self) -> bool:
        """Return whether clamd responds."""
        with anyio.move_on_after(_PING_S):
            try:
                async with await self._connect() as stream:
                    await stream.send(b"zPING\0")
                    return await stream.receive(_LONGEST_REPLY) == b"PONG\0"
            except (ClamdError, *_BROKEN):
                return False
        return False

    async def _connect(self) -> ByteStream:
        try:
            with anyio.fail_after(_CONNECT_S):
                if self._path is not None:
                    return await anyio.connect_unix(self._path)
                return await anyio.connect_tcp(self._host, self._port)
        except (OSError, TimeoutError) as error:
            raise ClamdError(f"{self._shown} cannot be reached: {error or 'no answer'}") from error

    async def _send(self, stream: ByteStream, blocks: AsyncIterator[bytes]) -> bool:
        """Send the command and all bytes. Return False if clamd closed the connection early."""
        try:
            await self._send_some(stream, b"zINSTREAM\0")
            async for block in blocks:
                if not block:
                    continue  # an empty chunk means the end
                length = len(block).to_bytes(4, "big")
                if len(block) <= _SMALL:
                    await self._send_some(stream, length + block)
                else:
                    await self._send_some(stream, length)
                    await self._send_some(stream, block)
            await self._send_some(stream, _END)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
            return False
        return True

    async def _send_some(self, stream: ByteStream, content: bytes) -> None:
        try:
            with anyio.fail_after(_SEND_S):
                await stream.send(content)
        except TimeoutError:
            raise await self._failed("takes no more bytes") from None

    async def _reply(self, stream: ByteStream) -> bytes:
        reply = bytearray()
        deadline = anyio.current_time() + _SCAN_S
        while b"\0" not in reply:
            part = None
            try:
                with anyio.move_on_after(_PING_EVERY_S):
                    part = await stream.receive(_LONGEST_REPLY)
            except _BROKEN:
                raise await self._failed("closed the connection without a verdict") from None
            if part is None and (anyio.current_time() > deadline or not await self.ping()):
                raise await self._failed("gives no verdict")
            reply += part or b""
            if len(reply) > _LONGEST_REPLY:
                raise ClamdError(f"{self._shown} is not clamd: its reply does not end")
        return bytes(reply)

    async def _verdict(self, reply: bytes, *, is_sent: bool) -> ScanVerdict:
        said, _, rest = reply.partition(b"\0")
        text = escaped(said)
        if rest:
            raise ClamdError(f"{self._shown} said more than one verdict")
        if said == b"stream: OK" and is_sent:
            return ScanVerdict()
        if said.startswith(b"stream: ") and said.endswith(b" FOUND") and len(said) > len(b"stream:  FOUND"):
            signature = text[len("stream: ") : -len(" FOUND")]
            return (
                ScanVerdict(too_large=signature) if signature.startswith(_LIMITS) else ScanVerdict(signature=signature)
            )
        if said == _TOO_LARGE:
            return ScanVerdict(too_large=text)
        if said.endswith(b" ERROR"):
            raise await self._failed(f'said "{text}"')
        raise ClamdError(f'{self._shown} gave no verdict that can be understood: "{text[:200]}"')

    async def _failed(self, how: str) -> ClamdError:
        return ClamdError(f"{self._shown} {how}", about_document=await self.ping())
