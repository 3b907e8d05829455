"""Take leases on files of other users in a process of its own, which alone has CAP_LEASE.

A client sends a command and a descriptor of its file over a Unix socket. The lease belongs to the open file that both
processes share, so that the client keeps it, and closing the client's descriptor ends it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Final

#: The socket of `docferry-lease.socket`; the environment variable names another one.
SOCKET: Final = "/run/docferry-lease.sock"
VARIABLE: Final = "LEASE_SOCKET"
#: The time limit to connect and for each answer, and the time for which a silent service counts as absent, seconds.
TIMEOUT_S: Final = 5.0
PASSED_OVER_S: Final = 60.0
#: The largest number of connections; a further one closes the oldest, whose client connects again.
MOST_CLIENTS: Final = 256
#: Two commands, and three answers. The answer to RELEASE is not used.
TAKE, RELEASE, TAKEN, WRITER, REFUSED = b"T", b"R", b"1", b"0", b"?"
#: The first descriptor that systemd passes to an activated service.
_LISTENER: Final = 3

_connections = threading.local()
_passed_over_until = float("-inf")  # monotonic seconds, for all threads


def is_reachable() -> bool:
    """Return whether the socket exists and this user may connect to it."""
    return os.access(os.environ.get(VARIABLE, SOCKET), os.W_OK)


def take(descriptor: int) -> bool | None:
    """Take a read lease on an open file.

    Returns False if a program has the file open for writing, None without a service or if the kernel refuses it.
    """
    return {TAKEN: True, WRITER: False}.get(_ask(TAKE, descriptor))


def release(descriptor: int) -> None:
    """Release the lease; without a service it ends when the descriptor is closed."""
    _ask(RELEASE, descriptor)


def _ask(command: bytes, descriptor: int) -> bytes:
    """Return the answer of the service, b"" if there is none."""
    global _passed_over_until
    if time.monotonic() < _passed_over_until:
        return b""
    try:
        for _ in range(2):  # the service may have been restarted
            if answer := _exchange(command, descriptor):
                return answer
    except TimeoutError:  # otherwise every file would wait, and with it all customers and a stop
        _passed_over_until = time.monotonic() + PASSED_OVER_S
    except OSError:
        pass
    return b""


def _exchange(command: bytes, descriptor: int) -> bytes:
    """Return the answer over the connection of this thread, b"" if the service closed it. Raises OSError."""
    connection: socket.socket = getattr(_connections, "open", None) or _connect()
    _connections.open, answer = None, b""
    try:
        socket.send_fds(connection, [command], [descriptor])
        answer = connection.recv(1)
    except ConnectionError:
        pass
    finally:
        if answer:
            _connections.open = connection
        else:
            connection.close()
    return answer


def _connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(TIMEOUT_S)
    try:
        connection.connect(os.environ.get(VARIABLE, SOCKET))
    except OSError:
        connection.close()
        raise
    return connection


def main() -> int:
    """Serve the socket that systemd opened, until the process is ended."""
    with socket.socket(fileno=_LISTENER) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        connections: list[socket.socket] = []
        while True:
            for key, _ in selector.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket)  # noqa: S101 - only sockets are registered
                ended = None
                if ready is listener:
                    connections.append(listener.accept()[0])
                    selector.register(connections[-1], selectors.EVENT_READ)
                    ended = connections[0] if len(connections) > MOST_CLIENTS else None
                elif ready in connections and not _serve(ready):
                    ended = ready
                if ended is not None:
                    selector.unregister(ended)
                    connections.remove(ended)
                    ended.close()


def _serve(connection: socket.socket) -> bool:
    """Answer one command; return False if the client has disconnected."""
    try:
        command, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        received = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
        try:
            answer = _obey(command, received[0]) if received else REFUSED
        finally:
            for descriptor in received:  # before the answer: the client's descriptor alone keeps the lease
                os.close(descriptor)
        if not command:
            return False
        connection.send(answer, socket.MSG_DONTWAIT)  # others do not wait for a client that reads nothing
    except OSError:
        return False
    return True


def _obey(command: bytes, descriptor: int) -> bytes:
    if command == RELEASE:
        with suppress(OSError):  # it was broken, and ended after lease-break-time
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return TAKEN
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return WRITER if error.errno == errno.EAGAIN else REFUSED
    return TAKEN
