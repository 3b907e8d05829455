"""Decides which files of a folder are documents: built-in excludes, and gitignore-style patterns by pathspec."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

#: Hidden files (with them `.~lock.*` and `.DS_Store`), office locks, and what is still being written.
_NEVER: Final = re.compile(
    rb"\.|~\$|.*(?:\.tmp|\.part|\.partial|\.filepart|\.crdownload|\.swp|~)\Z|thumbs\.db\Z", re.IGNORECASE | re.DOTALL
)
EVERYTHING: Final = ("*",)


class Patterns:
    """The include and exclude patterns of one mapping, compiled once."""

    __slots__ = ("_exclude", "_include", "_prunes")

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = None if tuple(include) == EVERYTHING else compiled(include)
        self._exclude = compiled(exclude) if exclude else None
        # a "!" pattern may bring back a file of an excluded folder: such folders must be entered
        self._prunes = not any(pattern.startswith("!") for pattern in exclude)

    def wanted(self, path: bytes) -> bool:
        """Return whether a file is a document, by its path below the mapping's folder."""
        if b"/." in path or _NEVER.match(path, path.rfind(b"/") + 1) or path.startswith(b"."):
            return False
        if self._include is None and self._exclude is None:
            return True
        text = path.decode("utf-8", "surrogateescape")
        if self._exclude is not None and self._exclude.match_file(text):
            return False
        return self._include is None or self._include.match_file(text)

    def enters(self, folder: bytes) -> bool:
        """Return whether documents can lie in a folder: False where it is hidden, or excluded as a whole."""
        if folder.startswith(b".") or b"/." in folder:
            return False
        if self._exclude is None or not self._prunes or not folder:
            return True
        return not self._exclude.match_file(folder.decode("utf-8", "surrogateescape") + "/")


def compiled(patterns: Sequence[str]) -> GitIgnoreSpec:
    """Return patterns ready for matching. Raises ValueError that names the wrong one."""
    from pathspec import GitIgnoreSpec  # most mappings have no patterns: they don't pay for the import

    for pattern in patterns:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError as error:
            raise ValueError(f'has "{pattern}", which is not a gitignore-style pattern') from error
    return GitIgnoreSpec.from_lines(patterns)
