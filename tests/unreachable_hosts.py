"""Provide hosts that never respond: connections are started and never made."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest


@contextmanager
def full_backlog() -> Iterator[str]:
    """Yield a host with a full backlog: the kernel ignores connection requests."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def silent_host() -> Iterator[str]:
    """Yield a host that accepts connections and sends nothing: no TLS, no proxy greeting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def slow_lookup_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield a host whose name lookup lasts until the end of the test."""
    getaddrinfo, end = socket.getaddrinfo, threading.Event()

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        if host in ("codat.test", b"codat.test") and not more.get("flags"):
            end.wait(20)
        return getaddrinfo(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        yield "codat.test:80"
    finally:
        end.set()
