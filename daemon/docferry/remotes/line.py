"""One connection to a server.

It works on the socket itself rather than on a buffered stream, as three things must be exact: when the last block of a
body is given to the kernel, whether a kept line has been closed meanwhile, and what a server said before it hung up."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import httpx
from anyio.lowlevel import checkpoint

from docferry.remotes import heads
from docferry.remotes.body import Outgoing
from docferry.remotes.heads import Head

_HEAD_CAP: Final = 64 * 1024
_BLOCK: Final = 256 * 1024
#: A first block up to this size travels with the request's head.
_TOGETHER: Final = 256 * 1024
#: So long a server that was asked whether it wants a body may stay silent; then it gets it.
_INVITATION: Final = 1.0
#: So often a line that takes no more is looked at for an answer that came early.
_GLANCE: Final = 0.25


class Line:
    """One request at a time. `unread` is what has come and nobody has taken yet."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self.unread = bytearray()
        self._ended = False
        self._interims = 0
        self.until = 0.0

    async def send(self, head: bytes, body: bytes | Outgoing, patience: float | None, *, asks: bool = False) -> bool:
        """The request; each block is asked for when the one before has been taken. False: an answer came first."""
        if isinstance(body, bytes):
            return await self._push(head + body, patience)
        if asks:
            if not (await self._push(head, patience) and await self._is_invited()):
                return False
            head = b""
        first = True
        async for block in body:
            if not first:
                await checkpoint()  # a fast line never waits: others must have their turn, and the server its say
                if self._has_answer():
                    return False
            elif len(block) <= _TOGETHER:
                block = head + block
            elif not await self._push(head, patience):
                return False
            first = False
            if not await self._push(block, patience, body.accepted):
                return False
        return not first or await self._push(head, patience)

    async def head(self, method: str, patience: float | None) -> Head:
        """The answer's head, once it is here; what is not final is passed over."""
        while True:
            raw = await self.through(b"\r\n\r\n", _HEAD_CAP, patience)
            head = heads.answer(raw, method)
            if head.status >= 200:
                return head

    async def through(self, mark: bytes, cap: int, patience: float | None) -> bytes:
        """Everything up to and with `mark`."""
        start = 0
        while (found := self.unread.find(mark, start)) < 0:
            if len(self.unread) > cap:
                raise httpx.RemoteProtocolError("the answer's head is too long")
            start = max(0, len(self.unread) - len(mark) + 1)
            block = await self._receive(patience)
            if not block:
                raise httpx.RemoteProtocolError("the server hung up without an answer")
            self.unread += block
        end = found + len(mark)
        taken = bytes(self.unread[:end])
        del self.unread[:end]
        return taken

    async def some(self, most: int | None, patience: float | None) -> bytes:
        """At least one byte and at most so many; b"" at the end of the line."""
        most = _BLOCK if most is None else min(most, _BLOCK)
        if self.unread:
            taken = bytes(self.unread[:most])
            del self.unread[: len(taken)]
            return taken
        return await self._receive(patience, most)

    def is_quiet(self) -> bool:
        """Nothing has come since the last answer, not even the end."""
        return not self.unread and not self._has_come() and not self._ended

    def close(self) -> None:
        self._socket.close()

    async def _is_invited(self) -> bool:
        """Does the server want the body? False when it has said all it has to say."""
        with anyio.move_on_after(_INVITATION):
            while not self._has_answer():
                if self._interims:
                    return True
                await anyio.wait_readable(self._socket)
            return False
        return True

    async def _push(self, block: bytes, patience: float | None, accepted: Callable[[], None] = lambda: None) -> bool:
        rest = memoryview(block)
        waited = 0.0
        while rest:
            try:
                sent = self._socket.send(rest)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError) as blocked:
                if patience is not None and waited >= patience:
                    raise httpx.WriteTimeout("the server takes no more") from None
                waited += await _glance(self._socket, blocked)
            except OSError as error:
                # The server may have said why before it hung up: what came is still here to be read.
                if self._has_answer():
                    return False
                raise httpx.WriteError("the line broke while sending") from error
            else:
                accepted()
                rest, waited = rest[sent:], 0.0
            if rest and self._has_answer():
                return False
        return True

    async def _receive(self, patience: float | None, most: int = 64 * 1024) -> bytes:
        while True:
            try:
                return self._socket.recv(most)
            except (BlockingIOError, ssl.SSLWantReadError):
                wait = anyio.wait_readable
            except ssl.SSLWantWriteError:
                wait = anyio.wait_writable
            except OSError as error:
                raise httpx.ReadError("the line broke while reading") from error
            if patience is None:
                await wait(self._socket)
                continue
            try:
                with anyio.fail_after(patience):
                    await wait(self._socket)
            except TimeoutError:
                raise httpx.ReadTimeout("no answer in time") from None

    def _has_answer(self) -> bool:
        """Has the server said its last word, or gone, although the body is still on its way?"""
        if self._has_come() and (end := self.unread.find(b"\r\n\r\n")) >= 0:
            if not heads.is_interim(self.unread):
                return True
            del self.unread[: end + 4]
            self._interims += 1
        return self._ended

    def _has_come(self) -> bool:
        """Take what is there without waiting; True when something was."""
        try:
            block = self._socket.recv(64 * 1024)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            block = b""
        self.unread += block
        self._ended = not block
        return bool(block)


async def _glance(line: socket.socket, blocked: OSError) -> float:
    """Wait a little until the line takes more; the seconds it did not."""
    wait: Callable[[socket.socket], Awaitable[None]] = anyio.wait_writable
    if isinstance(blocked, ssl.SSLWantReadError):
        wait = anyio.wait_readable
    with anyio.move_on_after(_GLANCE):
        await wait(line)
        return 0.0
    return _GLANCE
