"""Provide real folders, and a way to act as another user."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


@contextmanager
def _as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def unprivileged() -> object:
    """Return a context manager in which permissions hold, even when root runs the tests."""
    return _as_nobody


@pytest.fixture
def root() -> Iterator[Path]:
    """Provide a mapping's folder that other users can access, unlike pytest's own temporary folders."""
    folder = Path(tempfile.mkdtemp(prefix="docferry-test-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=False)  # Python's rmtree recurses, and some trees are deep
    subprocess.run(["rm", "-rf", folder], check=True)
