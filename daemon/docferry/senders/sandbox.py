"""Restrict a sender process: it ends with its parent, and can read only files of the system.

Landlock (landlock(7)) has no function in libc. Without it in the kernel, nothing is restricted.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
#: The system call numbers, equal on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH: Final = 1
_ASK_VERSION: Final = 1
#: Rights of files that each version of Landlock supports.
_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST_RIGHTS: Final = 16
_EXECUTE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
#: Files that libc reads for name lookups: its configuration and its plug-ins.
_SYSTEM: Final = ("/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager")

_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends; exit if the parent has ended already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)


def restrict_files(also: Iterable[Path]) -> bool:
    """Allow reading the files of the system and Python, and those below `also`; forbid all other file access.

    Open descriptors, and those received later, are not affected. Returns whether the kernel supports it. Must be called
    before the first thread starts.
    """
    version = _libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    if version < 1:
        return False
    handled = struct.pack("Q", (1 << _RIGHTS.get(version, _NEWEST_RIGHTS)) - 1)
    ruleset = _libc.syscall(_CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        return False
    try:
        for folder in {*_SYSTEM, sys.prefix, sys.base_prefix, *sys.path, *map(str, also)}:
            _allow_reading(ruleset, folder)
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return bool(_libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow_reading(ruleset: int, folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # the path does not exist
    try:
        rule = struct.pack("=Qi", _EXECUTE | _READ_FILE | _READ_FOLDER, descriptor)
        _libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
