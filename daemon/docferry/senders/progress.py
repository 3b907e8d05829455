"""Share memory between a sender process and the daemon: the progress of each request survives the sender."""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final

from msgspec import Struct

#: The largest number of concurrent requests of one sender.
SLOTS: Final = 1024
_BEAT: Final = struct.Struct("Q")
_SLOT: Final = struct.Struct("QQ")  # whether a byte of the body was yielded; bytes that the kernel took
_SIZE: Final = _BEAT.size + SLOTS * _SLOT.size


class ProgressPage:
    """Access the shared memory of one sender. The sender writes, the daemon reads."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _SIZE)

    @staticmethod
    def create() -> int:
        """Return a descriptor of new memory."""
        descriptor = os.memfd_create("docferry-sender", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _SIZE)
        return descriptor

    @property
    def beat(self) -> int:
        """Return a number that changes while the sender makes progress."""
        found: int = _BEAT.unpack_from(self._memory)[0]
        return found

    def set_beat(self, number: int) -> None:
        """Record progress of the sender."""
        _BEAT.pack_into(self._memory, 0, number)

    def read(self, slot: int) -> tuple[bool, int]:
        """Return whether a byte of the body may have been sent, and the number of bytes that the kernel took."""
        begun, given = _SLOT.unpack_from(self._memory, _BEAT.size + slot * _SLOT.size)
        return bool(begun), given

    def write(self, slot: int, *, begun: bool, given: int) -> None:
        """Record the progress of the request in a slot."""
        _SLOT.pack_into(self._memory, _BEAT.size + slot * _SLOT.size, begun, given)

    def close(self) -> None:
        """Unmap the memory in this process."""
        self._memory.close()


class Slot(Struct):
    """Read the progress of one request on the page, in the daemon."""

    page: ProgressPage
    number: int
    is_lost: bool = False  # its progress is unknown; the slot is not used again

    @property
    def has_begun(self) -> bool:
        """Return whether a byte of the body may have been sent to the server."""
        return self.is_lost or self.page.read(self.number)[0]

    @property
    def given(self) -> int:
        """Return the bytes of the body that the kernel took."""
        return self.page.read(self.number)[1]
