"""Hand out paths to check in turns of top-level folders, so that one busy customer does not delay the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Final

from msgspec import Struct

from docferry.detect.debounce import Group
from docferry.files.scan import top_level

#: The largest number of paths in one batch.
PATHS_IN_BATCH: Final = 1024
#: Batches of one mapping at a time, so that a hanging share leaves capacity for the others.
PER_MAPPING: Final = 4


class PathBatch(Struct, frozen=True):
    """Hold paths of one top-level folder that are checked together."""

    mapping: str
    top: bytes
    paths: list[bytes]


class WorkQueue:
    """Hold distinct paths by top-level folder. A folder in progress gets no second batch at the same time.

    A batch has at most `batch` paths; a mapping has at most `per_mapping` batches at a time.
    """

    def __init__(self, batch: int = PATHS_IN_BATCH, per_mapping: int = PER_MAPPING) -> None:
        self._batch, self._per_mapping = batch, per_mapping
        self._paths: dict[Group, dict[bytes, None]] = {}  # in the order of their next batch
        self._busy: set[Group] = set()
        self._busy_mappings: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._paths)

    def add(self, mapping: str, paths: Iterable[bytes]) -> None:
        """Add paths of a mapping."""
        for path in paths:
            self._paths.setdefault((mapping, top_level(path)), {})[path] = None

    def take(self) -> PathBatch | None:
        """Return the next batch and mark its folder as busy; None if all folders are empty or busy."""
        for group in self._paths:
            if group not in self._busy and self._busy_mappings[group[0]] < self._per_mapping:
                break
        else:
            return None
        paths = self._paths.pop(group)
        batch = PathBatch(*group, list(islice(paths, self._batch)))
        for path in batch.paths:
            del paths[path]
        if paths:
            self._paths[group] = paths  # behind the others
        self._busy.add(group)
        self._busy_mappings[group[0]] += 1
        return batch

    def done(self, batch: PathBatch) -> None:
        """Mark the folder of a batch as free for its next batch."""
        self._busy.remove((batch.mapping, batch.top))
        self._busy_mappings[batch.mapping] -= 1
