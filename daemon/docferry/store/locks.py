"""Who lives: each process locks a file of its own, so that a lease ends with its owner and never by the clock."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from docferry.errors import AlreadyRunning, StateError

#: Filesystems on which SQLite's locks and WAL cannot be relied on.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs"}


def prepare_state_dir(folder: Path) -> None:
    """Make the state folder, for us alone; StateError with the cure when others can read it or it is on a share."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
        (folder / "owners").mkdir(mode=0o700, exist_ok=True)
        (folder / "spool").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(f"the state folder {folder} cannot be used: {error.strerror}; set state_dir") from error
    if mode & 0o077:
        raise StateError(f"the state folder {folder} can be read by others: run `chmod 700 {folder}`")
    kind = _filesystem(folder)
    if kind in _NETWORK:
        raise StateError(
            f"the state folder {folder} is on {kind}, where SQLite is not safe; set state_dir to a local disk"
        )


@contextmanager
def owner(folder: Path) -> Iterator[str]:
    """A name for this process's leases; whoever can lock its file knows that we are dead."""
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    path = folder / "owners" / name
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield name
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def dead(folder: Path, owners: Collection[str], ourselves: str) -> set[str]:
    """Those of `owners` that no longer live."""
    return {name for name in owners if name != ourselves and not _lives(folder / "owners" / name)}


def forget(folder: Path, owners: Collection[str]) -> None:
    """Remove the lock files of dead owners, once their leases are taken back."""
    for name in owners:
        (folder / "owners" / name).unlink(missing_ok=True)


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """The right to be the only `run` on this state folder; AlreadyRunning with the other's pid."""
    descriptor = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locks(descriptor):
            text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise AlreadyRunning(int(text) if text.isdigit() else None)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def running(folder: Path) -> int | None:
    """The pid of the `run` that holds this state folder now, None when there is none."""
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


def _locks(descriptor: int) -> bool:
    """`running` takes the lock for a moment to see whether it is free: that is no other `run`."""
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)  # flock has no timeout; only a start waits here
        else:
            return True
    return False


def _lives(path: Path) -> bool:
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


def _filesystem(folder: Path) -> str:
    """The type of the filesystem under `folder`, as the kernel's mount table has it."""
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
