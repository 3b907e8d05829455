"""Exchange frames over a socket pair: a kind, a number, two strings of bytes, and open file descriptors.

All frames of one step of the event loop leave in one system call, a batch. The descriptors are sent with the first byte
of their batch (SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import anyio
from msgspec import Struct, field

#: Kind, number, bytes of `meta`, bytes of `tail`.
_HEAD: Final = struct.Struct("!BQII")
_RECEIVE_BYTES: Final = 256 * 1024
#: System calls of one step of the event loop that receive.
_RECEIVE_CALLS: Final = 4
#: The largest number of descriptors in one system call (SCM_MAX_FD).
MAX_DESCRIPTORS: Final = 253
#: The largest number of parts in one system call; the kernel takes 1,024 (UIO_MAXIOV).
_MAX_PARTS: Final = 512
#: The largest frame; a larger one is a defect, or an attack.
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024


class ChannelError(Exception):
    """Report that the other process sent an invalid frame."""


class Frame(NamedTuple):
    """Hold one message. `number` is that of a request; the meaning of both strings depends on the kind."""

    kind: int
    number: int = 0
    meta: bytes = b""
    tail: bytes = b""


class FrameReceiver(Protocol):
    """Process the frames of a channel."""

    def take(self, frame: Frame) -> None:
        """Process one frame, without waiting."""


class _Batch(Struct):
    """Hold the frames of one system call; `has_left` is set once the kernel has the descriptors."""

    parts: list[bytes | memoryview] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    has_left: anyio.Event | None = None


class Channel:
    """Send and receive frames at one end of the socket pair. Frames leave in the order of `write`."""

    def __init__(self, end: socket.socket, *, takes_descriptors: bool) -> None:
        end.setblocking(False)
        self._socket = end
        self._takes_descriptors = takes_descriptors
        self._space = memoryview(bytearray(_RECEIVE_BYTES))
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._batches: deque[_Batch] = deque()

    def write(self, frame: Frame, descriptors: Sequence[int] = ()) -> None:
        """Send a frame, together with all others of this step of the event loop, unless the other end has gone.

        The caller keeps the descriptors open until the frame is answered, or `flush` returns.
        """
        batch = self._open_batch(len(descriptors))
        batch.parts += encoded(frame)
        batch.descriptors += descriptors

    async def flush(self) -> None:
        """Wait until all descriptors have left, or none will.

        The number of a descriptor that was closed earlier may be another file's.
        """
        if self._batches:
            last = self._batches[-1]
            last.has_left = last.has_left or anyio.Event()
            await last.has_left.wait()

    async def serve(self, receiver: FrameReceiver) -> None:
        """Give each frame to a receiver until the other process ends.

        Raises ChannelError for an invalid frame, and the exceptions of the receiver.
        """
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        failures: list[Exception] = []

        def readable() -> None:
            try:
                if self._read(receiver):
                    return
            except Exception as error:  # noqa: BLE001 - it is raised where the channel is served
                failures.append(error)
            loop.remove_reader(self._socket)
            ended.set()

        # Not anyio.wait_readable: it registers the socket anew for each wait, two system calls.
        loop.add_reader(self._socket, readable)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._socket)
        if failures:
            raise failures[0]

    def take_descriptors(self, count: int) -> list[int]:
        """Return the next received descriptors, which belong to the oldest frame that announced some."""
        if count > len(self._descriptors):
            raise ChannelError("descriptors are missing; is LimitNOFILE too low?")
        return [self._descriptors.popleft() for _ in range(count)]

    def shut_down(self) -> None:
        """End both directions: `serve` returns in both processes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end; `serve` must have returned."""
        self._give_up()
        asyncio.get_running_loop().remove_writer(self._socket)
        self._socket.close()
        while self._descriptors:
            with contextlib.suppress(OSError):
                os.close(self._descriptors.popleft())

    # sending

    def _open_batch(self, descriptors: int) -> _Batch:
        """Return the batch that takes the next frame."""
        batches = self._batches
        if not batches:
            asyncio.get_running_loop().call_soon(self._send)
        elif len(batches[-1].parts) < _MAX_PARTS and len(batches[-1].descriptors) + descriptors <= MAX_DESCRIPTORS:
            return batches[-1]
        batches.append(_Batch())
        return batches[-1]

    def _send(self) -> None:
        """Send the batches, the rest of them once the socket is writable."""
        while self._batches:
            batch = self._batches[0]
            if not batch.parts:
                _left(self._batches.popleft(), 0)
                continue
            try:
                sent = socket.send_fds(self._socket, batch.parts, batch.descriptors)
            except BlockingIOError:
                asyncio.get_running_loop().add_writer(self._socket, self._continue)
                # Later frames get another batch: the rest of this one would be copied with each of them.
                self._batches.append(_Batch())
                return
            except OSError:  # the other process ended, or the kernel refuses descriptors or memory
                self.shut_down()  # frames are lost, so their requests get no reply
                self._give_up()
                return
            _left(batch, sent)

    def _continue(self) -> None:
        asyncio.get_running_loop().remove_writer(self._socket)
        self._send()

    def _give_up(self) -> None:
        while self._batches:
            _left(self._batches.popleft(), 0)

    # receiving

    def _read(self, receiver: FrameReceiver) -> bool:
        """Receive without waiting; False at the end of the channel."""
        for _ in range(_RECEIVE_CALLS):
            try:
                size = self._receive()
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not size:
                return False
            self._received += self._space[:size]
            self._take_complete(receiver)
            if size < _RECEIVE_BYTES:
                return True
        return True

    def _receive(self) -> int:
        if not self._takes_descriptors:
            return self._socket.recv_into(self._space)
        size, ancillary, _, _ = self._socket.recvmsg_into(
            [self._space], socket.CMSG_SPACE(4 * MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors += memoryview(data[: len(data) - len(data) % 4]).cast("i")
        return size

    def _take_complete(self, receiver: FrameReceiver) -> None:
        """Pass on the complete frames at the front of the received bytes."""
        start, received = 0, self._received
        while len(received) - start >= _HEAD.size:
            kind, number, meta, tail = _HEAD.unpack_from(received, start)
            if meta + tail > MAX_FRAME_BYTES:
                raise ChannelError("a frame is too long")
            begin = start + _HEAD.size
            middle, end = begin + meta, begin + meta + tail
            if end > len(received):
                break
            frame = Frame(kind, number, bytes(received[begin:middle]), bytes(received[middle:end]))
            start = end
            receiver.take(frame)
        del received[:start]


def encoded(frame: Frame) -> tuple[bytes, bytes]:
    """Return the bytes of a frame, in two parts."""
    kind, number, meta, tail = frame
    return _HEAD.pack(kind, number, len(meta), len(tail)) + meta, tail


def _left(batch: _Batch, sent: int) -> None:
    """Remove the bytes that were sent from the front of a batch."""
    batch.descriptors.clear()
    if batch.has_left is not None:
        batch.has_left.set()
    parts, whole = batch.parts, 0
    while whole < len(parts) and len(parts[whole]) <= sent:
        sent -= len(parts[whole])
        whole += 1
    del parts[:whole]
    if sent:
        parts[0] = memoryview(parts[0])[sent:]  # a copy for each system call would take long
