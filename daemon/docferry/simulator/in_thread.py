"""Ways to keep a simulator running: in a thread of its own for synchronous callers, or until interrupted."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType

import anyio
from anyio.from_thread import start_blocking_portal

from docferry.errors import ConfigError
from docferry.simulator.faults import Fault
from docferry.simulator.options import SimulatorOptions
from docferry.simulator.recorder import Event
from docferry.simulator.server import Simulator


class SimulatorThread:
    """A simulator in a thread with an event loop of its own; leave the context, or `stop()`, to end it."""

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
        """The same as the class itself, said with a verb: `with SimulatorThread.start(simulator) as running: …`"""
        return cls(simulator, host=host, port=port, ssl_context=ssl_context)

    @property
    def url(self) -> str:
        return self.simulator.url

    def stop(self) -> None:
        """End it and free its sockets; again is fine."""
        self._stack.close()

    def __enter__(self) -> SimulatorThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


async def run_simulator(
    port: int = 0,
    faults: Sequence[Fault] = (),
    options: SimulatorOptions | None = None,
    on_event: Callable[[Event], None] | None = None,
    *,
    on_ready: Callable[[Simulator], None] | None = None,
    host: str = "127.0.0.1",
    seed: int = 0,
    keep_bytes: bool = True,
    ssl_context: ssl.SSLContext | None = None,
) -> None:
    """Serve until cancelled; `on_ready` is told once the port is open. ConfigError when it cannot be had."""
    simulator = Simulator(options, faults, seed, keep_bytes=keep_bytes, on_event=on_event)
    ready = _Ready(lambda: on_ready(simulator) if on_ready is not None else None)
    try:
        await simulator.serve(host, port, ssl_context=ssl_context, task_status=ready)
    except OSError as error:
        raise ConfigError([f"port {port} on {host} cannot be had: {error.strerror}; choose another port"]) from None


class _Ready:
    """A task status for who needs no task."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def started(self, value: int | None = None) -> None:  # noqa: ARG002 - anyio's signature; the port is in the URL
        self._then()
