"""Addresses at which nobody answers: a connection to them is begun and never made."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest


@contextmanager
def full_house() -> Iterator[str]:
    """A host that takes no more connections: the kernel leaves them unanswered."""
    with ExitStack() as stack:
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            visitor = stack.enter_context(socket.socket())
            visitor.setblocking(False)
            visitor.connect_ex(door.getsockname())
        yield f"127.0.0.1:{door.getsockname()[1]}"


@contextmanager
def mute() -> Iterator[str]:
    """A host that takes a connection and never says a word: no TLS, no proxy greeting."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        yield f"127.0.0.1:{door.getsockname()[1]}"


@contextmanager
def nameless(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A host whose name is looked up until the end of the test."""
    asked, end = socket.getaddrinfo, threading.Event()

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        if host in ("codat.test", b"codat.test") and not more.get("flags"):
            end.wait(20)
        return asked(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        yield "codat.test:80"
    finally:
        end.set()
