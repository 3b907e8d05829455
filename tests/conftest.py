"""What every room's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.nursery import Nursery
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


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """One warm parent for all short lives of the program."""
    found = Nursery(tmp_path_factory.mktemp("lives"))
    yield found
    found.close()
