"""File locks of the state folder: each process locks its own file, so that a lease ends with its process."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from docferry.errors import AlreadyRunning, StateError

#: Network file systems, on which SQLite's locks and write-ahead log are not reliable.
NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs"}


def prepare_state_dir(folder: Path) -> None:
    """Create the state folder. Raises StateError if other users can read it or it lies on a network share."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
        (folder / "owners").mkdir(mode=0o700, exist_ok=True)
        (folder / "spool").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(f"the state folder {folder} cannot be used: {error.strerror}; set state_dir") from error
    if mode & 0o077:
        raise StateError(f"the state folder {folder} can be read by others: run `chmod 700 {folder}`")
    kind = filesystem_type(folder)
    if kind in NETWORK_FILESYSTEMS:
        raise StateError(
            f"the state folder {folder} is on {kind}, where SQLite is not safe; set state_dir to a local disk"
        )


@contextmanager
def lease_owner(folder: Path) -> Iterator[str]:
    """Yield the name of this process in leases, and lock its file. The kernel frees the lock when the process dies."""
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    path = folder / "owners" / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield name
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def dead_owners(folder: Path, owners: Collection[str], ourselves: str) -> set[str]:
    """Return those of `owners` whose process has ended."""
    return {name for name in owners if name != ourselves and not _is_alive(folder / "owners" / name)}


def remove_files(folder: Path, owners: Collection[str]) -> None:
    """Remove the lock files of dead owners after their leases were reclaimed."""
    for name in owners:
        (folder / "owners" / name).unlink(missing_ok=True)


@contextmanager
def single_instance(folder: Path) -> Iterator[None]:
    """Hold the lock of `docferry run` on this state folder. Raises AlreadyRunning with the pid of another `run`."""
    descriptor = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _try_lock(descriptor):
            text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise AlreadyRunning(int(text) if text.isdigit() else None)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def running(folder: Path) -> int | None:
    """Return the pid of the `docferry run` on this state folder, or None."""
    try:
        descriptor = os.open(folder / "run.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def _try_lock(descriptor: int) -> bool:
    """Take the lock; retry for 0.2 s, because `running` holds it for a moment to test it."""
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)  # flock has no timeout, and only a start waits here
        else:
            return True
    return False


def _is_alive(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def filesystem_type(folder: Path) -> str:
    """Return the type of the file system under `folder`, by the kernel's mount table."""
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
