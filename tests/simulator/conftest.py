"""Provide a simulator in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from docferry.simulator import Simulator, SimulatorThread

Start = Callable[..., SimulatorThread]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(switches, faults=…)` runs a simulator until the test ends."""
    with ExitStack() as stack:

        def starting(*args: Any, ssl_context: Any = None, **kwargs: Any) -> SimulatorThread:
            return stack.enter_context(SimulatorThread.start(Simulator(*args, **kwargs), ssl_context=ssl_context))

        yield starting
