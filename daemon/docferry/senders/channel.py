"""Exchange frames over a socket pair: JSON, some bytes, and open file descriptors.

A frame is the lengths of both parts as two 32-bit numbers, the JSON, and the bytes. The descriptors are sent with the
first byte of their frame (SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import anyio
from msgspec import Struct

_LENGTHS: Final = struct.Struct("!II")
_RECEIVE_BYTES: Final = 256 * 1024
#: The largest number of descriptors in one frame (SCM_MAX_FD).
MAX_DESCRIPTORS: Final = 253
#: The longest frame; a longer one is a defect, or an attack.
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024


class ChannelError(Exception):
    """Report that the other process sent an invalid frame."""


class Frame(Struct, frozen=True):
    """Hold one message between the processes; `message` is JSON."""

    message: Sequence[Any]
    tail: bytes = b""


class Channel:
    """Hold one end of the socket pair. One task receives; any number may send."""

    def __init__(self, end: socket.socket, *, takes_descriptors: bool) -> None:
        end.setblocking(False)
        self._socket = end
        self._takes_descriptors = takes_descriptors
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._sending = anyio.Lock(fast_acquire=True)

    async def send(self, message: Sequence[Any], tail: Sequence[bytes] = (), descriptors: Sequence[int] = ()) -> None:
        """Send a frame.

        Raises OSError if the other process has ended. A started send is never cancelled, to keep frames whole.
        """
        head = json.dumps(message, separators=(",", ":")).encode("ascii")
        frame = b"".join([_LENGTHS.pack(len(head), sum(map(len, tail))), head, *tail])
        with anyio.CancelScope(shield=True):
            async with self._sending:
                rest = memoryview(frame)
                while rest:
                    try:
                        sent = socket.send_fds(self._socket, [rest], descriptors)
                    except BlockingIOError:
                        await anyio.wait_writable(self._socket)
                    else:
                        rest, descriptors = rest[sent:], ()

    async def receive(self) -> list[Frame]:
        """Wait for frames and return the complete ones; none at the end of the channel."""
        while True:
            try:
                data = self._read()
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            except ConnectionError:
                data = b""
            if not data:
                return []
            self._received += data
            if frames := self._complete():
                return frames

    def take_descriptors(self, count: int) -> list[int]:
        """Return the next received descriptors, which belong to the oldest frame that announced some."""
        if count > len(self._descriptors):
            raise ChannelError("descriptors are missing; is LimitNOFILE too low?")
        return [self._descriptors.popleft() for _ in range(count)]

    def shut_down(self) -> None:
        """Shut down both directions: `receive` returns in both processes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end; no task may be receiving."""
        self._socket.close()
        while self._descriptors:
            with contextlib.suppress(OSError):
                os.close(self._descriptors.popleft())

    def _read(self) -> bytes:
        if not self._takes_descriptors:
            return self._socket.recv(_RECEIVE_BYTES)
        data, descriptors, _, _ = socket.recv_fds(
            self._socket, _RECEIVE_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        self._descriptors += descriptors
        return data

    def _complete(self) -> list[Frame]:
        """Remove the complete frames from the front of the received bytes."""
        frames, start, received = list[Frame](), 0, self._received
        while len(received) - start >= _LENGTHS.size:
            head, tail = _LENGTHS.unpack_from(received, start)
            if head + tail > MAX_FRAME_BYTES:
                raise ChannelError("a frame is too long")
            middle = start + _LENGTHS.size + head
            if middle + tail > len(received):
                break
            frames.append(
                _frame(bytes(received[start + _LENGTHS.size : middle]), bytes(received[middle : middle + tail]))
            )
            start = middle + tail
        del received[:start]
        return frames


def _frame(head: bytes | bytearray, tail: bytes) -> Frame:
    try:
        message = json.loads(head)
    except (ValueError, RecursionError):
        raise ChannelError("a frame holds no JSON") from None
    if not isinstance(message, list) or not message:
        raise ChannelError("a frame holds no message")
    return Frame(message, tail)
