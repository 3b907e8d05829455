"""Read a mapping's folders from the disk. A scan alone decides which files exist; the watcher only hurries it."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from msgspec import Struct, field

from docferry.errors import SourceUnreadable
from docferry.files.safe_open import (
    FOLDER,
    LONGEST_PATH,
    MISSING,
    OpenRoot,
    Root,
    errno_of,
    folder_error,
    reason,
    subfolder_problem,
)
from docferry.model import SeenFile, Stamp, clamped, escaped, joined, parted

#: name, size, mtime_ns, ctime_ns: a million such tuples cost a quarter of a million SeenFile objects.
FileEntry = tuple[bytes, int, int, int]

#: Times within these limits need no clamping; no user can set a ctime outside them.
_USUAL_NS: Final = 2**62

#: The start of a walk through the whole root.
WHOLE: Final = (b"",)


class Listing(Struct):
    """Hold the content of one folder. With a `problem` the content is incomplete: a missing entry may still exist."""

    folder: bytes  # relative to the root; b"" is the root
    files: list[FileEntry] = field(default_factory=list)
    folders: int = 0  # subfolders, visited or not
    links: int = 0  # links to files and folders, which are not followed
    too_long: int = 0  # names whose path exceeds the kernel's limit
    hidden: list[bytes] = field(default_factory=list)  # names of subfolders that begin with a dot
    problem: str | None = None

    def seen_file(self, entry: FileEntry) -> SeenFile:
        """Return one of `files` as a SeenFile."""
        name, size, mtime_ns, ctime_ns = entry
        return SeenFile(self.folder, name, Stamp(size, mtime_ns, ctime_ns))


class FolderFilter(Protocol):
    """Choose the folders of a root that are read and watched, by the rules of a mapping."""

    def enters(self, folder: bytes) -> bool:
        """Return whether a folder is read. The path is relative to the root; parent folders are checked separately."""


class _EveryFolder:
    def enters(self, _folder: bytes) -> bool:
        return True


EVERY_FOLDER: Final = _EveryFolder()


def walk(
    root: Root, folders: FolderFilter = EVERY_FOLDER, *, starts: Iterable[bytes] = WHOLE, chunk: int = 1000
) -> Iterator[list[Listing]]:
    """Yield a listing of every chosen folder from each of `starts` down, in lists of about `chunk` files.

    Top-level folders take turns, so that a huge one does not delay the others. Links are not followed. Raises
    FolderError if the root cannot be read; no folder below the root raises.
    """
    ahead = _Ahead(start for start in starts if _is_entered(start, folders))
    gathered: list[Listing] = []
    weight = 0
    if not ahead:
        return
    with OpenRoot(root) as opened:
        while ahead:
            folder = ahead.pop()
            listing, subfolders = _list(root, opened, folder)
            ahead.extend(path for path in subfolders if folders.enters(path))
            gathered.append(listing)
            weight += 1 + len(listing.files)
            del listing  # the consumer decides how long the list stays in memory
            if weight >= chunk:
                yield gathered
                gathered, weight = [], 0
    if gathered:
        yield gathered


def top_level(path: bytes) -> bytes:
    """Return the top-level folder of a path below a root, b"" for a file in the root itself."""
    first, slash, _ = path.partition(b"/")
    return first if slash else b""


def is_empty(root: Root) -> bool:
    """Return whether the root has only hidden names, like the mount point of an unmounted share. Raises FolderError."""
    with OpenRoot(root) as opened:
        try:
            with opened.opened(b"", FOLDER) as descriptor, os.scandir(descriptor) as names:
                return all(name.name.startswith(".") for name in names)
        except OSError as error:
            raise folder_error(root, error) from error


def stat_file(opened: OpenRoot, path: bytes) -> SeenFile | None:
    """Return the present state of a file, or None without a regular file that is reachable without a link.

    Raises SourceUnreadable if the disk does not answer.
    """
    try:
        found = opened.stat(path)
    except Exception as error:
        if errno_of(error) in MISSING:
            return None
        raise SourceUnreadable(f"{escaped(path)} cannot be examined: {reason(error)}") from error
    return SeenFile(*parted(path), Stamp.of(found)) if stat.S_ISREG(found.st_mode) else None


class _Ahead:
    """Hold the unread folders of a walk. Top-level folders take turns; within each, the walk is depth first."""

    def __init__(self, starts: Iterable[bytes]) -> None:
        self._by_top: dict[bytes, list[bytes]] = {}
        self._turns: deque[bytes] = deque()
        self.extend(starts)

    def __bool__(self) -> bool:
        return bool(self._turns)

    def extend(self, folders: Iterable[bytes]) -> None:
        for folder in folders:
            top = folder.partition(b"/")[0]
            if top not in self._by_top:
                self._by_top[top] = []
                self._turns.append(top)
            self._by_top[top].append(folder)

    def pop(self) -> bytes:
        top = self._turns[0]
        self._turns.rotate(-1)
        folders = self._by_top[top]
        folder = folders.pop()
        if not folders:
            del self._by_top[top]
            self._turns.pop()
        return folder


def _is_entered(start: bytes, folders: FolderFilter) -> bool:
    parts = start.split(b"/") if start else []
    return all(folders.enters(b"/".join(parts[: depth + 1])) for depth in range(len(parts)))


def _list(root: Root, opened: OpenRoot, folder: bytes) -> tuple[Listing, list[bytes]]:
    """Return the listing of a folder and the paths of its subfolders."""
    listing = Listing(folder)
    try:
        with opened.opened(folder, FOLDER) as descriptor:
            subfolders = _read(descriptor, listing)
    except Exception as error:  # every error concerns only this folder
        if not folder:
            raise folder_error(root, error) from error
        listing.problem = subfolder_problem(folder, error)
        return listing, []
    listing.folders = len(subfolders)
    listing.hidden = [name for name in subfolders if name.startswith(b".")]
    room = LONGEST_PATH - len(folder) - 1
    if room < 255:  # the longest possible name
        _leave_out_too_long(listing, subfolders, room)
    return listing, [joined(folder, name) for name in subfolders]


def _read(descriptor: int, listing: Listing) -> list[bytes]:
    """Fill in the files of a listing and return the names of its subfolders.

    Uses a descriptor, so that replacing the folder by a link has no effect. This is as fast as scandir on a path.
    """
    below: list[bytes] = []
    keep, encode = listing.files.append, os.fsencode
    with os.scandir(descriptor) as found:
        for each in found:
            try:
                if each.is_file(follow_symlinks=False):
                    seen = each.stat(follow_symlinks=False)
                    mtime_ns = seen.st_mtime_ns
                    # a function call for each file would take a tenth of the time
                    if not -_USUAL_NS < mtime_ns < _USUAL_NS:
                        mtime_ns = clamped(mtime_ns)
                    keep((encode(each.name), seen.st_size, mtime_ns, seen.st_ctime_ns))
                elif each.is_dir(follow_symlinks=False):
                    below.append(encode(each.name))
                elif each.is_symlink():
                    listing.links += 1
            except FileNotFoundError:  # removed since it was listed
                continue
    return below


def _leave_out_too_long(listing: Listing, subfolders: list[bytes], room: int) -> None:
    before = len(listing.files) + len(subfolders)
    listing.files = [entry for entry in listing.files if len(entry[0]) <= room]
    subfolders[:] = [name for name in subfolders if len(name) <= room]
    listing.too_long = before - len(listing.files) - len(subfolders)
