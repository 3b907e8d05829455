"""The roots that are watched, each with whom to tell, and what there is to be told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Hint:
    """These paths, relative to the root, may have changed."""

    paths: set[bytes]


@dataclass(frozen=True, slots=True)
class Armed:
    """Watched from now on; what happened before is for a scan to find."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Changes may have gone unreported. `Armed` follows when they are reported again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Degraded:
    """Changes of these top-level folders (b"": of all) go unreported until `Armed`; the reason has the cure."""

    reason: str
    folders: frozenset[bytes] = frozenset({b""})


WatchEvent = Hint | Armed | Lost | Degraded


@dataclass(slots=True, eq=False)
class WatchedRoot:
    """One root, and whom to tell about it from whatever thread."""

    root: Path
    tell: Callable[[WatchEvent], None]
    place: str = ""  # the root with links resolved: watched under one name, however many lead there
    identity: tuple[int, int] | None = None  # None: it was missing when last looked at
    missing: bool = False  # and that was said
    began: float = 0.0  # when it was last set about
    deaths: int = 0
    failures: int = 0
    retry_at: float = 0.0


def identity(root: Path) -> tuple[int, int] | None:
    """Device and inode of a folder, None when there is none to be reached."""
    try:
        found = os.stat(root / ".")  # noqa: PTH116 - the dot makes the kernel refuse what is not a folder
    except OSError:
        return None
    return found.st_dev, found.st_ino


def by_place(roots: Iterable[WatchedRoot]) -> dict[str, list[WatchedRoot]]:
    places: dict[str, list[WatchedRoot]] = {}
    for root in roots:
        places.setdefault(root.place, []).append(root)
    return places


def report(roots: dict[str, list[WatchedRoot]], changes: set[tuple[Any, str]]) -> None:
    """Hand every path to all posts above it: one mapping's folder may lie inside another's."""
    hints: dict[int, tuple[WatchedRoot, set[bytes]]] = {}
    for _kind, path in changes:
        for place in _above(path):
            for root in roots.get(place, ()):
                inner = path[len(place.rstrip("/")) + 1 :]
                hints.setdefault(id(root), (root, set()))[1].add(os.fsencode(inner))
    for root, paths in hints.values():
        root.tell(Hint(paths))


def _above(path: str) -> Iterator[str]:
    while path and path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path
