"""Accept connections, and refuse them for a while without losing the port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextvars import copy_context

from docferry.simulator.connection import LINGER_ZERO

_BACKLOG = 1024
#: Pause of accepting while no file descriptors are left, seconds.
_ACCEPT_RETRY_S = 0.05


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Linux releases a port that it chose itself when the socket is shut down, but keeps an explicit one.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return socket.create_server(probe.getsockname()[:2], family=family, backlog=_BACKLOG)


class Listener:
    """Accept connections within its context, and pass each socket to `on_accept`."""

    def __init__(self, listener: socket.socket, on_accept: Callable[[socket.socket], object]) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._on_accept = on_accept
        self._loop = asyncio.get_running_loop()
        # anyio starts tasks only in its own context; `close` may be called from another one.
        self._context = copy_context()
        self._resetting = False
        self._is_closed = False
        self._reopen_timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Listener:
        self._loop.add_reader(self._listener, self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        if self._reopen_timer is not None:
            self._reopen_timer.cancel()
        self._loop.remove_reader(self._listener)

    def close(self, seconds: float, *, resetting: bool) -> None:
        """Refuse connections for some seconds: by a closed port, or by an RST after accepting."""
        if self._reopen_timer is not None:
            self._reopen_timer.cancel()
        self._resetting = resetting
        if not resetting and not self._is_closed:
            self._is_closed = True  # a socket that no longer listens cannot be shut down again
            self._loop.remove_reader(self._listener)
            # On Linux a listening socket that is shut down refuses, keeps its port, and may listen again.
            self._listener.shutdown(socket.SHUT_RD)
        self._reopen_timer = self._loop.call_later(seconds, self._reopen, context=self._context)

    def _reopen(self) -> None:
        self._reopen_timer = None
        self._resetting = self._is_closed = False
        self._listener.listen(_BACKLOG)
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_BACKLOG):
            try:
                client, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self._loop.remove_reader(self._listener)
                self._reopen_timer = self._loop.call_later(_ACCEPT_RETRY_S, self._reopen, context=self._context)
                return
            if self._resetting:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
                client.close()
            else:
                # Nagle's algorithm delays a response until earlier data (TLS tickets) is acknowledged. A reset would
                # then discard it.
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._on_accept(client)
