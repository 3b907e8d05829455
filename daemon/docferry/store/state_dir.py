"""Create the state folder, keep it private, and write files in it without following links.

Only the owner of the folder may use it. Its names are opened relative to the folder and never through a symbolic link.
So a planted link cannot redirect a write.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from docferry.errors import DatabaseBusy, StateError
from docferry.model import escaped

#: Network file systems, on which SQLite's locks and write-ahead log are not reliable.
NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs"}
_DATABASE: Final = "docferry.db"
_FOLDERS: Final = frozenset({"owners", "spool"})
_FILES: Final = frozenset(
    {
        _DATABASE,
        *(f"{_DATABASE}-{suffix}" for suffix in ("wal", "shm", "journal")),
        "run.lock",
        *("status.json", "status.json.new", "last_sync.json", "last_sync.json.new"),
    }
)
#: Entries of the file system itself: beside these alone, a folder counts as used only by docferry.
_OF_THE_FILESYSTEM: Final = frozenset({"lost+found", ".snapshot"})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def prepare_state_dir(folder: Path) -> None:
    """Create the state folder, and remove the permissions of others from it and from docferry's files in it.

    Raises:
        StateError: The folder belongs to another user, holds foreign files or links, or is on a network share.
        DatabaseBusy: The disk is full or has no inodes.
    """
    with usable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (problem := problem_of(folder)) is not None:
            raise StateError(problem)
        if _is_open_to_others(folder):
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) & 0o7700)
        for name in sorted(_FOLDERS):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        for name in _entries(folder):
            _make_private(folder / name)


def problem_of(folder: Path) -> str | None:
    """Return why docferry cannot use an existing state folder, with the fix, without changing anything.

    Permissions that docferry removes by itself are no problem.
    """
    shown, user = escaped(str(folder)), os.geteuid()
    status = folder.stat()
    if status.st_uid != user:
        whom = _name(status.st_uid)
        return (
            f"the state folder {shown} belongs to {whom}; run docferry as that user (sudo -u {whom} docferry …), "
            f"run: chown -R {_name(user)} {shown}, or set state_dir"
        )
    for name in _entries(folder):
        if (problem := _problem_of_entry(folder, name)) is not None:
            return problem
    if _is_open_to_others(folder) and not _is_dedicated(folder):
        return f"the state folder {shown} can be read by others: run `chmod 700 {shown}`"
    kind = filesystem_type(folder)
    if kind in NETWORK_FILESYSTEMS:
        return f"the state folder {shown} is on {kind}, where SQLite is not safe; set state_dir to a local disk"
    return None


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Raise an OSError of the state folder as the StateError with its fix."""
    try:
        yield
    except OSError as error:
        raise unusable(folder, error) from error


def unusable(folder: Path, error: OSError) -> StateError:
    """Return the error for a state folder that the system refuses."""
    shown = escaped(str(folder))
    reason = (error.strerror or str(error)).lower()
    if error.errno in _FULL:
        return DatabaseBusy(
            f"the state folder {shown} cannot be written: {reason}; free disk space or inodes "
            f"(df -h {shown}; df -i {shown}), then run docferry again"
        )
    if error.errno == errno.EROFS:
        return StateError(f"the state folder {shown} is read-only; mount it writable, or set state_dir")
    if error.errno in (errno.EACCES, errno.EPERM):
        advice = f"run: chown -R {_name(os.geteuid())} {shown}; or set state_dir"
        return StateError(f"the state folder {shown} cannot be used: {reason}; {advice}")
    return StateError(f"the state folder {shown} cannot be used: {reason}; set state_dir")


def create_file(path: Path) -> None:
    """Create an empty file with mode 0600 if there is none. A link in its place is not followed.

    An existing file is not opened: closing it would end SQLite's locks of this process.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def replace_file(path: Path, text: str) -> None:
    """Replace a small file completely, with mode 0600. Raises OSError, also for another user's folder."""
    if path.parent.stat().st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path.parent))
    fresh = path.with_name(f"{path.name}.new")
    _write(fresh, text, os.O_CREAT)
    fresh.replace(path)


def overwrite_file(path: Path, text: str) -> None:
    """Overwrite a file within its allocated blocks. Raises OSError."""
    _write(path, text, 0)


def _write(path: Path, text: str, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flags, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.truncate()


def _entries(folder: Path) -> list[str]:
    """Return the names of docferry's files and folders that exist."""
    found = [name for name in sorted(_FILES | _FOLDERS) if os.path.lexists(folder / name)]
    with suppress(OSError):  # not a folder, or of another user: the check of the entry itself reports this
        if "owners" in found and not (folder / "owners").is_symlink():
            found += [f"owners/{path.name}" for path in (folder / "owners").iterdir()]
    return found


def _problem_of_entry(folder: Path, name: str) -> str | None:
    path, shown = folder / name, escaped(str(folder / name))
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None  # another process has just ended
    wanted = stat.S_ISDIR if name in _FOLDERS else stat.S_ISREG
    if not wanted(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else f"no {'folder' if name in _FOLDERS else 'file'}"
        return f"{shown} is {what}; docferry does not write there: remove it"
    if status.st_uid != os.geteuid():
        user = _name(os.geteuid())
        return (
            f"{shown} belongs to {_name(status.st_uid)}, as after a run of docferry as that user; "
            f"run: chown -R {user} {escaped(str(folder))}"
        )
    return None


def _make_private(path: Path) -> None:
    """Remove the permissions of others from a file or folder.

    The descriptor is opened with O_PATH, because closing a normal one would end SQLite's locks of this process.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            os.chmod(f"/proc/self/fd/{descriptor}", mode & 0o7700)  # noqa: PTH101 - the path of a descriptor
    finally:
        os.close(descriptor)


def _is_open_to_others(folder: Path) -> bool:
    return bool(folder.stat().st_mode & 0o077)


def _is_dedicated(folder: Path) -> bool:
    """Return whether only docferry uses the folder, so that removed permissions affect no other program."""
    names = {path.name for path in folder.iterdir()} - _OF_THE_FILESYSTEM
    return not names or _DATABASE in names or "owners" in names


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def filesystem_type(folder: Path) -> str:
    """Return the type of the file system under `folder`, from the kernel's mount table."""
    best, kind = "", ""
    try:
        table = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    resolved = str(folder.resolve())
    for line in table.splitlines():
        _, point, found, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind
