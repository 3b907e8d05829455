"""Provide the fixtures of all test packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from app_env import AppEnv
from crash.process_pool import ProcessPool
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread
from postgresql_server import PostgresqlServer, running_server

# A busy machine needs longer for one example than the 200 ms that Hypothesis allows.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of `run` and `sync`."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def app_env(tmp_path: Path) -> Iterator[AppEnv]:
    """Folders, a configuration and a simulator without faults, for the whole program."""
    with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0))) as simulator_thread:
        yield AppEnv(tmp_path, simulator_thread)


@pytest.fixture(scope="session")
def process_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPool]:
    """Run a fork server for all short-lived processes of the program."""
    found = ProcessPool(tmp_path_factory.mktemp("processes"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Run one PostgreSQL server for all tests of this process."""
    with running_server() as server:
        yield server
