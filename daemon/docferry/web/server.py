"""Serve an application on a loopback address or a Unix socket, within limits against hostile local users."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anyio
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from docferry import logs
from docferry.settings.listeners import Address, address

log = logs.get("web")

#: Concurrent connections; a further one is closed at once, because descriptors are needed for documents.
MOST_CONNECTIONS: Final = 64
#: The time limit of a connection to send a request, seconds.
REQUEST_S: Final = 10.0
#: The time limit of responses during a stop, seconds.
STOP_GRACE_S: Final = 0.5
#: The delay before an occupied address, or a missing folder, is tried again, seconds.
LISTEN_RETRY_S: Final = 10.0
_SOCKET_MODE: Final = 0o660

logging.getLogger("uvicorn").setLevel(logging.WARNING)


async def serve_for_ever(name: str, listen: str, app: ASGIApp, listening: dict[str, str]) -> None:
    """Serve until cancelled.

    An unusable address is logged as an error and tried again, because uploads must continue without the page.
    """
    told = ""
    while True:
        try:
            async with bound(listen) as (server_socket, where):
                listening[name] = where
                log.info("listening", service=name, address=where)
                try:
                    await _serve(app, server_socket)
                finally:
                    del listening[name]
        except OSError as error:
            problem = f"{name} cannot listen at {listen}: {error.strerror or error}; correct {name}.listen"
            if problem != told:
                log.error("listen_failed", f"{problem}, tried again every {LISTEN_RETRY_S:g} s")
            told = problem
            await anyio.sleep(LISTEN_RETRY_S)


@asynccontextmanager
async def bound(listen: str) -> AsyncIterator[tuple[socket.socket, str]]:
    """Yield a listening socket and its readable address. Raises OSError if the address is unusable."""
    where = address(listen)
    if where.path is not None:
        path = Path(where.path)
        server_socket = _unix(path)
        try:
            yield server_socket, f"unix:{path}"
        finally:
            server_socket.close()
            _remove(path)
        return
    with _tcp(where) as server_socket:
        host, port = server_socket.getsockname()[:2]
        yield server_socket, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tcp(where: Address) -> socket.socket:
    family, kind, protocol, _, resolved = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(resolved)
    except BaseException:
        found.close()
        raise
    return found


def _unix(path: Path) -> socket.socket:
    """Bind a socket of mode 0660, after removing the socket of a dead process."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode) and not _is_served(path):
                path.unlink()
        os.fchmod(found.fileno(), _SOCKET_MODE)  # limits the mode of the file from its creation
        found.bind(str(path))
        path.chmod(_SOCKET_MODE)  # restores permissions that the umask removed
    except BaseException:
        found.close()
        raise
    return found


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


async def _serve(app: ASGIApp, server_socket: socket.socket) -> None:
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=30,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # `serve` is not used: it replaces signal handlers, wakes ten times a second and delays a stop.
    await server.startup([server_socket])
    try:
        await anyio.sleep_forever()
    finally:
        for each in server.servers:
            each.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        if server.server_state.tasks:  # a cancelled response would be a 500 in the browser
            with anyio.CancelScope(shield=True):
                await asyncio.wait(list(server.server_state.tasks), timeout=STOP_GRACE_S)
        for task in list(server.server_state.tasks):
            task.cancel()


class _Protocol(H11Protocol):
    """Close surplus connections, and those without a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own type
        """Admit a connection, or close it."""
        super().connection_made(transport)
        if len(self.server_state.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._deadline = self.loop.call_later(REQUEST_S, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline."""
        if (deadline := getattr(self, "_deadline", None)) is not None:
            deadline.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        cycle: Any = self.cycle
        if cycle is None:
            self.transport.abort()
