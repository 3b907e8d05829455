"""What the watcher tells about a mapping's folder. Hints hurry the scan; a scan alone is the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Stands for all of a root where top-level folders are named.
EVERYTHING: Final = frozenset({b""})


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
    folders: frozenset[bytes] = EVERYTHING


WatchEvent = Hint | Armed | Lost | Degraded
