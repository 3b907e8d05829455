"""Connect to a name: look it up, then race its addresses (happy eyeballs, RFC 8305).

anyio.connect_tcp does the same, but its stream reads and buffers. The connection needs the socket itself, to observe
the bytes that the kernel took and any received byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
import time
from itertools import chain, zip_longest
from typing import Any, Final

import anyio
from msgspec import Struct, field

#: The delay before the next address is tried (RFC 8305), seconds.
_ATTEMPT_DELAY_S: Final = 0.25
AddressInfo = tuple[Any, Any, int, str, Any]


class Attempt(Struct):
    """Record the attempt to connect to one address. `error` is None during the attempt, and after success."""

    address: str
    began: float
    seconds: float | None = None
    error: str | None = None


class Connector(Struct):
    """Connect to one host; record the tried addresses for messages."""

    host: str
    port: int
    local_address: str | None = None
    attempts: list[Attempt] = field(default_factory=list)

    async def connect_to(self, addresses: list[AddressInfo]) -> socket.socket:
        """Return a non-blocking socket connected to the first address that answers. Raises OSError if none does.

        Start each address 0.25 s after the previous one, or at once if that has failed.
        """
        addresses = _interleaved(addresses)
        if len(addresses) == 1:
            return await self._connect(addresses[0])
        winners: list[socket.socket] = []
        failures: list[OSError] = []

        async def attempt(address: AddressInfo, failed: anyio.Event) -> None:
            try:
                connected = await self._connect(address)
            except OSError as error:
                failures.append(error)
                failed.set()
                return
            winners.append(connected)
            group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                for address in addresses:
                    failed = anyio.Event()
                    group.start_soon(attempt, address, failed)
                    with anyio.move_on_after(_ATTEMPT_DELAY_S):
                        await failed.wait()
        except BaseException:
            for each in winners:
                each.close()
            raise
        for surplus in winners[1:]:
            surplus.close()
        if winners:
            return winners[0]
        raise failures[0] if len(failures) == 1 else OSError(self.summary() or f"{self.host} has no address")

    def summary(self) -> str:
        """Return the tried addresses, each with its error."""
        return "; ".join(f"{each.address} {each.error or 'did not answer'}" for each in self.attempts)

    async def _connect(self, address: AddressInfo) -> socket.socket:
        family, kind, protocol, _, where = address
        attempt = Attempt(f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}", time.monotonic())
        self.attempts.append(attempt)
        connecting = socket.socket(family, kind, protocol)
        try:
            connecting.setblocking(False)
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.local_address is not None:
                connecting.bind((self.local_address, 0))
            await _connected(connecting, where)
        except BaseException as error:
            connecting.close()
            if isinstance(error, OSError):
                attempt.error = _reason(error, self.local_address)
                raise OSError(error.errno, f"{attempt.address} {attempt.error}") from error
            raise
        attempt.seconds = time.monotonic() - attempt.began
        return connecting


async def resolve(host: str, port: int) -> list[AddressInfo]:
    """Return the addresses of a name. Raises OSError if there are none."""
    try:
        return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)]
    except socket.gaierror:
        return await _looked_up(host.encode("ascii"), port)


async def _looked_up(host: bytes, port: int) -> list[AddressInfo]:
    """Look up the name in a daemon thread, which may hang for half a minute.

    A thread of the event loop's own pool would delay the end of a stopped program.
    """
    loop = asyncio.get_running_loop()
    addresses: asyncio.Future[list[AddressInfo]] = loop.create_future()

    def set_result(found: list[AddressInfo] | Exception) -> None:
        if addresses.done():
            return  # the request was cancelled
        if isinstance(found, Exception):
            addresses.set_exception(found)
        else:
            addresses.set_result(found)

    def look_up() -> None:
        found: list[AddressInfo] | Exception
        try:
            found = [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except Exception as error:  # noqa: BLE001 - raised again by the waiting task
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(set_result, found)

    try:
        threading.Thread(target=look_up, name="name lookup", daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no thread is left to look up its name") from error
    return await addresses


def _interleaved(addresses: list[AddressInfo]) -> list[AddressInfo]:
    """Alternate the address families, beginning with the first one (RFC 8305, section 4)."""
    unique = list(dict.fromkeys(addresses))
    first = [each for each in unique if each[0] == unique[0][0]]
    others = [each for each in unique if each[0] != unique[0][0]]
    return [each for each in chain.from_iterable(zip_longest(first, others)) if each is not None]


async def _connected(connecting: socket.socket, where: Any) -> None:
    error = connecting.connect_ex(where)
    if error == errno.EINPROGRESS:
        await anyio.wait_writable(connecting)
        error = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def _reason(error: OSError, local_address: str | None) -> str:
    if local_address is not None and isinstance(error, socket.gaierror):
        return f"cannot be reached from local_address {local_address}"
    if error.errno == errno.EADDRNOTAVAIL and local_address is not None:
        return f"cannot be reached: this machine has no address {local_address} (local_address)"
    return (error.strerror or str(error)).lower()
