"""Ask the kernel whether a program has a file open for writing, with file leases (fcntl(2), F_SETLEASE)."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from contextlib import suppress
from pathlib import Path

from docferry.files import lease_service

#: File systems on which the kernel also returns EAGAIN if the server grants no lease, which proves nothing.
_REMOTE_TYPES = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "ceph",
    "afs",
    "fuse",
    "virtiofs",
    "lustre",
    "gfs",
    "ocfs",
    "beegfs",
)


def no_writer(descriptor: int) -> bool | None:
    """Return False if a program has the file open for writing, mmaps included, and True if none has.

    Return None if the kernel cannot tell. The file then belongs to another user and the process lacks CAP_LEASE, or the
    file system has no leases. `descriptor` must be read-only.
    """
    free = take(descriptor)
    if free:
        release(descriptor)
    return free


def take(descriptor: int) -> bool | None:
    """Take a read lease; the result is that of `no_writer`.

    While the lease is held, a writer's `open` waits. The wait ends at `release`, at the close of the descriptor, or
    after /proc/sys/fs/lease-break-time.
    """
    try:
        # The kernel announces a waiting writer by SIGIO, which ends the program by default. SIGURG is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        free = False if error.errno == errno.EAGAIN else None
        if error.errno == errno.EACCES:  # a file of another user
            free = lease_service.take(descriptor)
            free = is_held(descriptor) if free else free  # whoever answered: the kernel knows
        return None if free is False and _is_remote(descriptor) else free
    return True


def is_held(descriptor: int) -> bool:
    """Return whether no writer has appeared since `take`."""
    return fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def release(descriptor: int) -> None:
    """Release the lease, so that writers no longer wait."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except PermissionError:  # a file of another user: the service took it
        lease_service.release(descriptor)


def guard_signals() -> None:
    """Ignore SIGIO as well, in case a lease is taken without F_SETSIG. Call it once, in the main thread."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def _is_remote(descriptor: int) -> bool:
    """Return whether the file is on a network share.

    Called only for a refused lease, because it reads the mount table.
    """
    device = os.fstat(descriptor).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            fields = line.split(" ")
            if fields[2] == wanted:
                return fields[fields.index("-") + 1].startswith(_REMOTE_TYPES)
    return False
