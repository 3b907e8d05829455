"""The listening socket: it lets clients in, and can refuse them for a while without losing its port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextvars import copy_context

from docferry.simulator.wire import LINGER_ZERO

_BACKLOG = 1024
#: How long nobody is accepted when there are no descriptors left.
_BREATH = 0.05


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 stands for any that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Linux gives up a port that it chose itself when the door is closed, one that was named it keeps.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return socket.create_server(probe.getsockname()[:2], family=family, backlog=_BACKLOG)


class Listener:
    """Inside its context clients are accepted and handed to `welcome`."""

    def __init__(self, listener: socket.socket, welcome: Callable[[socket.socket], object]) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._welcome = welcome
        self._loop = asyncio.get_running_loop()
        # anyio starts tasks only in a context that knows it; whoever closes the door may come from elsewhere.
        self._context = copy_context()
        self._resetting = False
        self._shut = False
        self._opening: asyncio.TimerHandle | None = None

    def __enter__(self) -> Listener:
        self._loop.add_reader(self._listener, self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        if self._opening is not None:
            self._opening.cancel()
        self._loop.remove_reader(self._listener)

    def close(self, seconds: float, *, resetting: bool) -> None:
        """Refuse for some seconds: by a closed port, or by an RST after accepting."""
        if self._opening is not None:
            self._opening.cancel()
        self._resetting = resetting
        if not resetting and not self._shut:
            self._shut = True  # a socket that no longer listens can't be shut down once more
            self._loop.remove_reader(self._listener)
            # On Linux a listening socket that is shut down refuses, keeps its port, and may listen again.
            self._listener.shutdown(socket.SHUT_RD)
        self._opening = self._loop.call_later(seconds, self._open, context=self._context)

    def _open(self) -> None:
        self._opening = None
        self._resetting = self._shut = False
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
                self._opening = self._loop.call_later(_BREATH, self._open, context=self._context)
                return
            if self._resetting:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
                client.close()
            else:
                # An answer that follows others (TLS has its tickets) must not wait for their receipt: a reset behind
                # it would take it along.
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._welcome(client)
