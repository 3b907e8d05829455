"""Provide a mount that never answers, like a network share whose server is gone."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_DETACH = 2  # MNT_DETACH of umount2(2)
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def hung_share(folder: Path) -> Iterator[None]:
    """Mount a FUSE file system whose server reads no request. Every access waits, and fails after the end."""
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"needs /dev/fuse: {error.strerror}")
    try:
        options = f"fd={server},rootmode=40755,user_id={os.geteuid()},group_id={os.getegid()},allow_other"
        if _libc.mount(b"hung-share", bytes(folder), b"fuse", 0, options.encode()) != 0:
            pytest.skip(f"needs the right to mount: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            _libc.umount2(bytes(folder), _DETACH)
    finally:
        os.close(server)  # ends every access that waits
