"""Decide which files of a folder are documents: built-in excludes, and gitignore-style patterns by pathspec."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

#: Office locks, editors' copies, files being written by other programs, and system files in folders. A name in lower
#: case matches by its start, its end, a part, or as a whole.
_FILE_PREFIX: Final = b"~$"
_FILE_SUFFIXES: Final = (
    *(b"~", b".tmp", b".temp", b".part", b".partial", b".filepart", b".crdownload", b".opdownload", b".uploading"),
    *(b".aria2", b".swp", b".swo"),
)
_FILE_PART: Final = b".sync-conflict-"
_FILES: Final = frozenset([b"thumbs.db", b"ehthumbs.db", b"desktop.ini"])
#: Folders of recycle bins, snapshots, indexes and Safari's unfinished downloads.
_BUILTIN_FOLDERS: Final = re.compile(
    rb"(?:\A|/)(?:@eadir|@recycle|#recycle|@recently-snapshot|#snapshot|~snapshot|\$recycle\.bin|recycler"
    rb"|system volume information|lost\+found|[^/]*\.download)(?:/|\Z)",
    re.IGNORECASE | re.DOTALL,
)
#: Names of docferry's own files in customers' folders: never documents, in any configuration.
_OWN: Final = b".docferry-"
EVERYTHING: Final = ("*",)

#: The reasons to leave out a file: the built-in list, `exclude`, `include`, or `include` in other letter case.
LeftOut = Literal["builtin", "exclude", "include", "case"]


class Patterns:
    """Match the include and exclude patterns of one mapping, compiled once."""

    __slots__ = ("_builtin", "_exclude", "_include", "_include_folded", "_prunes", "_singly", "_written")

    def __init__(self, include: Sequence[str], exclude: Sequence[str], *, builtin: bool = True) -> None:
        self._builtin = builtin
        self._include = None if tuple(include) == EVERYTHING else compiled(include)
        self._include_folded: GitIgnoreSpec | None = None
        self._written = include
        self._singly: list[GitIgnoreSpec] = []
        self._exclude = compiled(exclude) if exclude else None
        # a "!" pattern may include a file of an excluded folder again: such folders must be entered
        self._prunes = not any(pattern.startswith("!") for pattern in exclude)

    def wanted(self, path: bytes) -> bool:
        """Return whether a file is a document, by its path below the mapping's folder."""
        return self.left_out(path) is None

    def left_out(self, path: bytes) -> LeftOut | None:
        """Return why a file is not a document, None if it is one."""
        if path.startswith(_OWN) or b"/" + _OWN in path:
            return "builtin"
        if self._builtin and _is_builtin(path):
            return "builtin"
        if self._include is None and self._exclude is None:
            return None
        text = path.decode("utf-8", "surrogateescape")
        if self._exclude is not None and self._exclude.match_file(text):
            return "exclude"
        if self._include is None or self._include.match_file(text):
            return None
        if self._include_folded is None:
            self._include_folded = compiled([pattern.casefold() for pattern in self._written])
        return "case" if self._include_folded.match_file(text.casefold()) else "include"

    def enters(self, folder: bytes) -> bool:
        """Return whether a folder can contain documents: False if it is hidden, or excluded as a whole."""
        if folder.startswith(_OWN) or b"/" + _OWN in folder:
            return False
        if self._builtin and folder and _is_builtin_folder(folder):
            return False
        if self._exclude is None or not self._prunes or not folder:
            return True
        return not self._exclude.match_file(folder.decode("utf-8", "surrogateescape") + "/")

    def matches(self, path: bytes) -> list[bool]:
        """Return for each pattern of `include` whether it alone matches the path; a "!" pattern counts as matching."""
        text = path.decode("utf-8", "surrogateescape")
        if not self._singly:
            self._singly = [compiled([pattern]) for pattern in self._written]
        pairs = zip(self._written, self._singly, strict=True)
        return [pattern.startswith("!") or alone.match_file(text) for pattern, alone in pairs]


def _is_builtin(path: bytes) -> bool:
    """Return whether the built-in excludes leave a file out, without a regex: called several times for each file."""
    folder, _, name = path.rpartition(b"/")
    if name.startswith(b".") or (folder and _is_builtin_folder(folder)):
        return True
    name = name.lower()
    return name.startswith(_FILE_PREFIX) or name.endswith(_FILE_SUFFIXES) or _FILE_PART in name or name in _FILES


@lru_cache(maxsize=1024)  # files come folder by folder
def _is_builtin_folder(folder: bytes) -> bool:
    """Return whether the built-in excludes leave out all files of a folder: it or a parent is hidden or listed."""
    return folder.startswith(b".") or b"/." in folder or _BUILTIN_FOLDERS.search(folder) is not None


def compiled(patterns: Sequence[str]) -> GitIgnoreSpec:
    """Return compiled patterns. Raises ValueError that names the wrong one."""
    from pathspec import GitIgnoreSpec  # most mappings have no patterns: these skip the cost of the import

    for pattern in patterns:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError as error:
            raise ValueError(f'has "{pattern}", which is not a gitignore-style pattern') from error
    return GitIgnoreSpec.from_lines(patterns)
