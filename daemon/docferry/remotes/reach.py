"""A connection to whoever a name stands for; whatever goes wrong is an OSError, and nothing has been said yet."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from typing import Any

import anyio


async def reach(host: str, port: int) -> socket.socket:
    """A connection to the first address that takes one."""
    failed: OSError | None = None
    for family, kind, protocol, _, address in await _addresses(host, port):
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await _reached(opened, address)
        except OSError as error:
            opened.close()
            failed = error
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise failed or OSError(f"{host} has no address")


async def _addresses(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await _looked_up(host.encode("ascii"), port)


async def _looked_up(host: bytes, port: int) -> list[Any]:
    """A resolver may hang for half a minute. The thread that asks it is nobody's to wait for: the event loop's own
    would keep a stopped program from ending."""
    loop = asyncio.get_running_loop()
    addresses: asyncio.Future[list[Any]] = loop.create_future()

    def told(found: list[Any] | OSError) -> None:
        if addresses.done():
            return  # nobody waits any more
        if isinstance(found, OSError):
            addresses.set_exception(found)
        else:
            addresses.set_result(found)

    def look_up() -> None:
        found: list[Any] | OSError
        try:
            found = [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except OSError as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(told, found)

    try:
        threading.Thread(target=look_up, name="name lookup", daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no thread is left to look up its name") from error
    return await addresses


async def _reached(opened: socket.socket, address: Any) -> None:
    error = opened.connect_ex(address)
    if error == errno.EINPROGRESS:
        await anyio.wait_writable(opened)
        error = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
