"""Define the events of a watched folder. Hints hurry the scan; a scan alone is the truth."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

import anyio

#: Stands for all of a root where top-level folders are named.
WHOLE_ROOT: Final = frozenset({b""})


@dataclass(frozen=True, slots=True)
class Hint:
    """These paths, relative to the root, may have changed."""

    paths: set[bytes]


@dataclass(frozen=True, slots=True)
class Armed:
    """Everything is watched from now on; earlier changes are for a scan to find."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Changes may have gone unreported. `Armed` follows when they are reported again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Degraded:
    """Changes of these top-level folders (b"": of all) go unreported until `Armed`; the reason has the fix."""

    reason: str
    folders: frozenset[bytes] = WHOLE_ROOT


WatchEvent = Hint | Armed | Lost | Degraded


class WatchEvents:
    """The events of one root: told from any thread, iterated on the event loop. The context ends them."""

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
