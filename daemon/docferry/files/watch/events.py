"""Define the events of a watched folder. Hints hurry the scan; only a scan decides which files exist."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, Self

import anyio
from msgspec import Struct

#: Means all of a root in places that name top-level folders.
WHOLE_ROOT: Final = frozenset({b""})


class Hint(Struct, frozen=True):
    """Report that these paths, relative to the root, may have changed."""

    paths: set[bytes]


class Armed(Struct, frozen=True):
    """Report that everything is watched from now on; a scan must find earlier changes."""


class Lost(Struct, frozen=True):
    """Report that changes may have been missed. `Armed` follows once watching continues."""

    reason: str


class Degraded(Struct, frozen=True):
    """Report that changes of these top-level folders (b"": of all) are missed until `Armed`; the reason has the fix."""

    reason: str
    folders: frozenset[bytes] = WHOLE_ROOT


WatchEvent = Hint | Armed | Lost | Degraded


class WatchEvents:
    """Queue the events of one root: added from any thread, iterated on the event loop. The context ends the queue."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sender, self._receiver = anyio.create_memory_object_stream[WatchEvent](math.inf)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()
        self._receiver.close()

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self._receiver

    def tell(self, event: WatchEvent) -> None:
        """Add an event, from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: WatchEvent) -> None:
        with suppress(anyio.ClosedResourceError):  # the watch has ended
            self._sender.send_nowait(event)
