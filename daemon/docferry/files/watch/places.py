"""Index the folders of a watch, and choose among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct, field

from docferry.files.watch.events import Hint
from docferry.files.watch.folder_watch import FolderWatch
from docferry.files.watch.tree import WatchedRoot, top_of

#: A folder of a root.
Place = tuple[WatchedRoot, bytes]
#: A top-level folder of a root; b"" for the root's own files.
Group = tuple[WatchedRoot, bytes]


class Purpose(Struct):
    """Describe the reason for starting a FolderWatch."""

    places: list[Place]
    announced: list[Place] = field(default_factory=list)  # new folders, hinted at once the watch is armed
    armed_roots: list[WatchedRoot] = field(default_factory=list)  # roots that get `Armed` once the watch is armed
    replaces: list[FolderWatch] = field(default_factory=list)  # watches to stop once this one is armed
    is_apart: bool = False  # never merged with other watches
    tries: int = 0
    armed_at: float = 0.0


class FolderIndex:
    """Index the watched folders by absolute path. One path may belong to several roots."""

    def __init__(self) -> None:
        self._places: dict[str, list[Place]] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._places

    def at(self, path: str) -> Sequence[Place]:
        """Return the places of a path: its folder in each root that contains it."""
        return self._places.get(path, ())

    def add(self, root: WatchedRoot, folder: bytes) -> None:
        """Record that a folder is watched, or soon will be."""
        root.folders.add(folder)
        places = self._places.setdefault(root.path(folder), [])
        if (root, folder) not in places:
            places.append((root, folder))

    def count_changes(self, paths: Iterable[str]) -> Counter[Group]:
        """Return the number of changes by top-level folder for these changed paths."""
        counts: Counter[Group] = Counter()
        for path in paths:
            for root, folder in self.at(path.rpartition("/")[0] or "/"):
                counts[root, top_of(folder)] += 1
        return counts

    def drop(self, root: WatchedRoot, folders: Iterable[bytes]) -> None:
        """Remove folders of a root."""
        for folder in folders:
            root.folders.discard(folder)
            path = root.path(folder)
            places = [place for place in self.at(path) if place != (root, folder)]
            if places:
                self._places[path] = places
            else:
                self._places.pop(path, None)


def by_root(places: Iterable[Place]) -> dict[WatchedRoot, set[bytes]]:
    """Return the folders of places, grouped by root."""
    found: dict[WatchedRoot, set[bytes]] = {}
    for root, folder in places:
        found.setdefault(root, set()).add(folder)
    return found


def topmost(folders: Iterable[bytes]) -> list[bytes]:
    """Return the folders that are below no other folder of the collection."""
    found: list[bytes] = []
    for folder in sorted(folders, key=lambda each: each.split(b"/")):
        if not found or not folder.startswith(found[-1] + b"/"):
            found.append(folder)
    return found


def tell_hints(places: Iterable[Place]) -> None:
    """Report to each root that its folders among the places may have changed."""
    for root, folders in by_root(places).items():
        root.tell(Hint(folders))


def existing(places: Iterable[Place]) -> list[Place]:
    """Return the places that are still folders."""
    return [(root, folder) for root, all_of in by_root(places).items() for folder in root.are_folders(all_of)]


def named_in(error: str, places: Iterable[Place]) -> set[Group]:
    """Return the top-level folders of the place in a watcher's error; the longest matching path counts."""
    named = [place for place in places if f'"{place[0].path(place[1])}/' in error]
    longest = max((len(root.path(folder)) for root, folder in named), default=0)
    return {(root, top_of(folder)) for root, folder in named if len(root.path(folder)) == longest}


def is_left_to_scans(root: WatchedRoot, folder: bytes) -> bool:
    """Return whether only scans read a folder."""
    return b"" in root.unwatched or (folder != b"" and top_of(folder) in root.unwatched)


def largest(places: Iterable[Place]) -> dict[WatchedRoot, set[bytes]]:
    """Return the largest top-level folders that together contain a quarter of all folders."""
    sizes = Counter((root, top_of(folder)) for root, folder in places)
    enough = sum(sizes.values()) / 4
    chosen: dict[WatchedRoot, set[bytes]] = {}
    for (root, top), size in sorted(sizes.items(), key=lambda pair: (pair[0][1] == b"", -pair[1])):
        if enough <= 0:
            break
        chosen.setdefault(root, set()).add(top)
        enough -= size
    return chosen
