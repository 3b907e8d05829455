"""Puts a file where a person will find it: a safe name, never over other bytes, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from string import Formatter

from docferry.errors import FolderError
from docferry.model import escaped

_BLOCK = 1024 * 1024
_LONGEST = 200  # bytes of a name: room for " (2)" and a temporary suffix below the kernel's 255
_NOT_SAFE = frozenset('/\\:*?"<>|')
#: Names of devices on other systems, with whatever suffix.
_RESERVED = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{port}{number}" for port in ("com", "lpt") for number in "123456789¹²³"
}
#: A name is tried with so many numbers behind it before somebody has to look.
_SIBLINGS = 10_000
#: Why a file can't be linked to where it belongs: another filesystem, or mount, or owner, or none that knows links.
_NOT_LINKED = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def safe_name(name: str) -> str:
    """One path segment that means nothing else on any system: NFC, no separators, control or direction-changing
    characters, no leading dots, no device names, at most 200 bytes with the suffix kept, never empty."""
    text = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
    text = "".join("_" if char in _NOT_SAFE or not char.isprintable() else char for char in text)
    text = text.strip(" .") or "unnamed"
    if text.split(".", 1)[0].strip().casefold() in _RESERVED:
        text = f"_{text}"
    return _shortened(text)


def render_layout(layout: str, *, date: str, source: str, name: str, company_id: str) -> PurePosixPath:
    """The path of a file below its folder, every placeholder made safe: `{date} {source} {name} {company_id}`."""
    words = {"date": date, "source": source or "other", "name": name, "company_id": company_id}
    segments = []
    for template in layout.split("/"):
        parts = [text + (words.get(word, "") if word else "") for text, word, _, _ in Formatter().parse(template)]
        segments.append(safe_name("".join(parts)))
    return PurePosixPath(*segments)


def sha256_of(path: Path) -> str:
    """Hex digest of a file; for a worker thread."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose(root: Path, relative: PurePosixPath, sha256: str) -> Path:
    """Where a file of this digest will lie: `relative` below `root`, with a number behind it where other bytes lie
    already. Nothing is made yet. FolderError when a link stands in the way."""
    parent = root / relative.parent
    _assert_no_links(root, parent)
    stem, suffix = _halves(relative.name)
    for number in range(1, _SIBLINGS):
        candidate = parent / (relative.name if number == 1 else f"{stem} ({number}){suffix}")
        if not os.path.lexists(candidate) or _lies_there(candidate, sha256):
            return candidate
    raise FolderError(f"{_shown(parent)} has {_SIBLINGS:,} files of the name {escaped(relative.name)}")


def put(file: Path, target: Path, root: Path, sha256: str) -> Path:
    """Move `file` to `target` at one stroke, never over other bytes; both folders are synced. Returns where it lies:
    a number is put behind the name when somebody was faster."""
    wanted = PurePosixPath(target.relative_to(root))
    with _opened(root, target.parent) as parent:
        while True:
            try:
                _appear(file, parent, target.name)
                break
            except FileExistsError:
                if _lies_there(target, sha256):
                    break
                target = choose(root, wanted, sha256)
        os.fsync(parent)
    file.unlink()
    return target


def _lies_there(path: Path, sha256: str) -> bool:
    return path.is_file() and not path.is_symlink() and sha256_of(path) == sha256


@contextmanager
def _opened(root: Path, folder: Path) -> Iterator[int]:
    """A descriptor of the folder; what is missing below `root` is made, and no link is followed on the way."""
    root.mkdir(parents=True, exist_ok=True)
    here = os.open(root, _FOLDER & ~os.O_NOFOLLOW)  # the root itself may be a link
    at = root
    try:
        for segment in _segments(root, folder):
            at /= segment
            above, here = here, _step(here, segment, at)
            os.close(above)
        yield here
    finally:
        os.close(here)


def _step(above: int, segment: str, shown: Path) -> int:
    try:
        os.mkdir(segment, dir_fd=above)
        os.fsync(above)
    except FileExistsError:
        pass  # as it should be; whether it is a folder shows when it is opened
    try:
        return os.open(segment, _FOLDER, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise FolderError(f"{_shown(shown)} is a link or a file, where a folder is wanted: move it away") from error
        raise


def _appear(file: Path, parent: int, name: str) -> None:
    """Synced, and then there under its name at once. FileExistsError when something is."""
    _sync(file)
    try:
        os.link(file, name, dst_dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NOT_LINKED:
            raise
        with _copied(file, parent) as copy:
            _link_copy(copy, parent, name)


def _link_copy(copy: str, parent: int, name: str) -> None:
    try:
        os.link(copy, name, dst_dir_fd=parent, follow_symlinks=True)
    except OSError as error:
        if error.errno not in _NOT_LINKED:
            raise
        where = Path(f"/proc/self/fd/{parent}").readlink()
        raise FolderError(
            f"{_shown(where)} is on a filesystem without hard links, so that no file can appear there whole: "
            "choose a folder on another one"
        ) from error


@contextmanager
def _copied(file: Path, parent: int) -> Iterator[str]:
    """A path to a synced copy that has no name yet in `parent`, and is no more when it got none."""
    folder = f"/proc/self/fd/{parent}"
    part = None
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        part = f"{folder}/.docferry-{secrets.token_hex(8)}.part"  # network shares know no files without a name
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as sink, file.open("rb") as source:
            shutil.copyfileobj(source, sink, _BLOCK)
            sink.flush()
            os.fchmod(descriptor, os.fstat(source.fileno()).st_mode & 0o777)
            os.fsync(descriptor)
            yield part or f"/proc/self/fd/{descriptor}"
    finally:
        if part is not None:
            Path(part).unlink(missing_ok=True)


def _assert_no_links(root: Path, folder: Path) -> None:
    here = root
    for segment in _segments(root, folder):
        here /= segment
        if here.is_symlink():
            raise FolderError(f"{_shown(here)} is a link; docferry puts nothing behind links")


def _segments(root: Path, folder: Path) -> tuple[str, ...]:
    segments = folder.relative_to(root).parts
    if ".." in segments:
        raise FolderError(f"{_shown(folder)} leads out of {_shown(root)}")
    return segments


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shown(path: Path) -> str:
    return escaped(os.fsencode(path))


def _halves(name: str) -> tuple[str, str]:
    suffix = PurePosixPath(name).suffix
    return (name[: -len(suffix)], suffix) if suffix else (name, "")


def _shortened(name: str) -> str:
    if len(name.encode()) <= _LONGEST:
        return name
    stem, suffix = _halves(name)
    if len(suffix.encode()) > 20:
        stem, suffix = name, ""
    room = _LONGEST - len(suffix.encode())
    return stem.encode()[:room].decode("utf-8", "ignore").rstrip(" .") + suffix
