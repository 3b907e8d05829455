"""Ground to run the whole program on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from docferry.simulator import Running, Simulator, Switches
from ground import Ground


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Folders, a configuration and a far shore without faults."""
    with Running(Simulator(Switches(requests_per_minute=0))) as shore:
        yield Ground(tmp_path, shore)
