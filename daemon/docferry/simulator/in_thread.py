"""Keep a simulator running: in its own thread for synchronous callers, or until cancelled."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from types import TracebackType

import anyio
from anyio.from_thread import start_blocking_portal

from docferry.errors import ConfigError
from docferry.simulator.server import Simulator


class SimulatorThread:
    """Run a simulator in a thread with its own event loop. Leave the context or call `stop` to end it."""

    def __init__(
        self, simulator: Simulator, *, host: str = "127.0.0.1", port: int = 0, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.simulator = simulator
        self._stack = ExitStack()
        portal = self._stack.enter_context(start_blocking_portal("asyncio"))

        async def serve(*, task_status: anyio.abc.TaskStatus[int]) -> None:
            await simulator.serve(host, port, ssl_context=ssl_context, task_status=task_status)

        try:
            future, self.port = portal.start_task(serve)
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(future.cancel)

    @classmethod
    def start(
        cls, simulator: Simulator, *, host: str = "127.0.0.1", port: int = 0, ssl_context: ssl.SSLContext | None = None
    ) -> SimulatorThread:
        """Return a running simulator: `with SimulatorThread.start(simulator) as running: …`."""
        return cls(simulator, host=host, port=port, ssl_context=ssl_context)

    @property
    def url(self) -> str:
        """Return the base URL."""
        return self.simulator.url

    def stop(self) -> None:
        """Stop the simulator and free its sockets. A second call does nothing."""
        self._stack.close()

    def __enter__(self) -> SimulatorThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


async def run_simulator(
    simulator: Simulator,
    port: int = 0,
    host: str = "127.0.0.1",
    *,
    task_status: anyio.abc.TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. `task_status` gets the port. Raises ConfigError if the port cannot be opened."""
    try:
        await simulator.serve(host, port, task_status=task_status)
    except OSError as error:
        raise ConfigError([f"cannot listen on {host} port {port}: {error.strerror}; choose another port"]) from None
