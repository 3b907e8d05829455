"""What every room's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from docferry.simulator import Running, Simulator, Switches
from ground import Ground


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Folders, a configuration and a far shore without faults, for the whole program."""
    with Running(Simulator(Switches(requests_per_minute=0))) as shore:
        yield Ground(tmp_path, shore)
