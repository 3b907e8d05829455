"""Memory that a sender process shares with the daemon: how far each request got, whatever happens to the sender."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import Final

#: Requests of one sender at a time.
SLOTS: Final = 1024
_BEAT: Final = struct.Struct("Q")
_SLOT: Final = struct.Struct("QQ")  # whether a byte of the body was given out; bytes that the kernel took
_SIZE: Final = _BEAT.size + SLOTS * _SLOT.size


class ProgressPage:
    """The shared memory of one sender. The sender writes, the daemon reads."""

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
        """A number that changes while the sender is alive."""
        found: int = _BEAT.unpack_from(self._memory)[0]
        return found

    def set_beat(self, number: int) -> None:
        """Show that the sender is alive."""
        _BEAT.pack_into(self._memory, 0, number)

    def read(self, slot: int) -> tuple[bool, int]:
        """Return whether a byte of the body may be on its way, and how many the kernel took."""
        begun, given = _SLOT.unpack_from(self._memory, _BEAT.size + slot * _SLOT.size)
        return bool(begun), given

    def write(self, slot: int, *, begun: bool, given: int) -> None:
        """Record how far the request in a slot got."""
        _SLOT.pack_into(self._memory, _BEAT.size + slot * _SLOT.size, begun, given)

    def close(self) -> None:
        """Free the memory on this side."""
        self._memory.close()


@dataclass(slots=True)
class Slot:
    """The place of one request on the page, as the daemon reads it."""

    page: ProgressPage
    number: int
    is_lost: bool = False  # nobody knows how far it got; the place is not used again

    @property
    def has_begun(self) -> bool:
        """Whether a byte of the body may be on its way to the server."""
        return self.is_lost or self.page.read(self.number)[0]

    @property
    def given(self) -> int:
        """Bytes of the body that the kernel took."""
        return self.page.read(self.number)[1]
