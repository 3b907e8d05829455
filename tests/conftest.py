"""What every room's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app_env import AppEnv
from crash.process_pool import ProcessPool
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread
from postgresql_server import PostgresqlServer, running_server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def app_env(tmp_path: Path) -> Iterator[AppEnv]:
    """Folders, a configuration and a far shore without faults, for the whole program."""
    with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0))) as shore:
        yield AppEnv(tmp_path, shore)


@pytest.fixture(scope="session")
def process_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPool]:
    """One warm parent for all short lives of the program."""
    found = ProcessPool(tmp_path_factory.mktemp("lives"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """One PostgreSQL server for all tests of this process."""
    with running_server() as server:
        yield server
