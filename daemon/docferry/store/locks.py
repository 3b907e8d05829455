"""Lock files of the state folder: each process locks its own file, so that leases end with their process."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from docferry.errors import AlreadyRunning
from docferry.store.state_dir import usable

#: Flags of every lock file: do not follow a link, and do not wait for a FIFO in its place.
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextmanager
def lease_owner(folder: Path) -> Iterator[str]:
    """Yield the name of this process in leases, and lock its file.

    The kernel frees the lock at the end of the process.
    """
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    path = folder / "owners" / name
    with usable(folder):
        descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with usable(folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield name
        with suppress(OSError):  # the lock counts, not its file
            path.unlink()
    finally:
        os.close(descriptor)


def dead_owners(folder: Path, owners: Collection[str], ourselves: str) -> set[str]:
    """Return the owners whose process has ended."""
    return {name for name in owners if name != ourselves and not _is_alive(folder / "owners" / name)}


def remove_files(folder: Path, owners: Collection[str]) -> None:
    """Remove the lock files of dead owners after their leases were reclaimed."""
    for name in owners:
        with suppress(OSError):  # the lock counts, not its file
            (folder / "owners" / name).unlink()


@contextmanager
def single_instance(folder: Path) -> Iterator[None]:
    """Hold the lock of `docferry run` on this state folder. Raises AlreadyRunning with the pid of another `run`."""
    with usable(folder):
        descriptor = os.open(folder / "run.lock", _FLAGS | os.O_CREAT, 0o600)
    try:
        with usable(folder):
            if not _try_lock(descriptor):
                raise AlreadyRunning(_pid(descriptor))
        _write_pid(descriptor, f"{os.getpid()}\n")
        yield
        _write_pid(descriptor, "")
    finally:
        os.close(descriptor)


def running(folder: Path) -> int | None:
    """Return the pid of the `docferry run` on this state folder, or None."""
    try:
        descriptor = os.open(folder / "run.lock", _FLAGS)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(descriptor) or 0
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return None


def _pid(descriptor: int) -> int | None:
    """Return the pid in an open lock file, or None."""
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None


def _write_pid(descriptor: int, text: str) -> None:
    """Write the pid for people. The lock is valid without it, also on a full disk."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _try_lock(descriptor: int) -> bool:
    """Take the lock; retry for 0.2 s, because `running` takes it briefly as a test."""
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)  # flock has no timeout, and only a start waits here
        else:
            return True
    return False


def _is_alive(path: Path) -> bool:
    """Return whether a process holds its lock. A file that cannot be opened counts as held, to send nothing twice."""
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
