"""Is somebody writing to this file? The kernel's file lease knows, mmaps included, where it can be had."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from contextlib import suppress
from pathlib import Path

#: Here the kernel also says "try again" when the server merely grants no lease: that proves nothing.
_REMOTE_KINDS = ("nfs", "cifs", "smb", "9p", "ceph", "afs", "fuse", "virtiofs", "lustre", "gfs", "ocfs", "beegfs")


def no_writer(descriptor: int) -> bool | None:
    """True: nobody has the file open for writing. False: somebody has. None: the kernel does not tell here
    (somebody else's file without CAP_LEASE, or a filesystem without leases). `descriptor` must be read-only."""
    rest = take(descriptor)
    if rest:
        give_back(descriptor)
    return rest


def take(descriptor: int) -> bool | None:
    """As `at_rest`, and while the lease is held a writer's `open` waits: until `give_back`, or the descriptor is
    closed, or /proc/sys/fs/lease-break-time is over."""
    try:
        # The kernel tells of a writer that waits by SIGIO, which would kill the program. SIGURG is ignored unless
        # somebody asks for it.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN and not _on_a_share(descriptor) else None
    return True


def is_held(descriptor: int) -> bool:
    """Whether no writer has come since `take`."""
    return fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK


def give_back(descriptor: int) -> None:
    """Let writers in again."""
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def guard_signals() -> None:
    """Ignore SIGIO as well, for the main thread to call once: a second net under `at_rest`."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def _on_a_share(descriptor: int) -> bool:
    """Only asked when a lease was refused, so it may cost a read of the mount table."""
    device = os.fstat(descriptor).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            fields = line.split(" ")
            if fields[2] == wanted:
                return fields[fields.index("-") + 1].startswith(_REMOTE_KINDS)
    return False
