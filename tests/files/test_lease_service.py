"""Test the process that takes leases on files of other users for a docferry without privileges."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from app_env import until
from docferry.files import lease_service
from docferry.files.hashing import hash_file
from docferry.files.safe_open import Root
from docferry.files.write_lease import is_held, no_writer, release, take

Unprivileged = Callable[[], AbstractContextManager[None]]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has files of other users, and CAP_LEASE")


@contextmanager
def running(listener: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service as systemd starts it: the socket is descriptor 3."""
    code = f"import os; os.dup2({listener.fileno()}, 3); os.execv({sys.executable!r}, {[sys.executable, *_WORDS]!r})"
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[listener.fileno()]) as process:
        try:
            yield process
        finally:
            process.kill()


_WORDS = ["-m", "docferry", "lease-service"]


@pytest.fixture
def listener(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = root / "lease.sock"
    monkeypatch.setenv(lease_service.VARIABLE, str(path))
    monkeypatch.setattr(lease_service, "TIMEOUT_S", 60.0)  # a busy machine starts the service slowly
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0o666)
        yield listening


def test_writers_of_files_of_other_users_are_seen(
    root: Path, listener: socket.socket, unprivileged: Unprivileged
) -> None:
    path = root / "a.pdf"
    path.write_bytes(b"content")
    path.chmod(0o644)
    with running(listener) as service, path.open("rb") as reader:
        with unprivileged():
            assert no_writer(reader.fileno()) is True
        with path.open("ab"), unprivileged():
            assert no_writer(reader.fileno()) is False
            assert hash_file(Root(root), b"a.pdf").no_writer is False
        with unprivileged():
            found = hash_file(Root(root), b"a.pdf")
            assert (found.no_writer, found.digests is None) == (True, False)
        service.kill()
        service.wait()
    with running(listener), path.open("rb") as reader, unprivileged():
        assert no_writer(reader.fileno()) is True  # the service was started again


def test_a_writer_waits_for_the_lease_and_ends_it(
    root: Path, listener: socket.socket, unprivileged: Unprivileged
) -> None:
    path = root / "a.pdf"
    path.write_bytes(b"content")
    path.chmod(0o644)
    with running(listener), path.open("rb") as reader:
        with unprivileged():
            assert take(reader.fileno()) is True
            assert is_held(reader.fileno())
        code = "import sys; open(sys.argv[1], 'ab').write(b'more'); print('done', flush=True)"
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as writer:
            with unprivileged():
                until(lambda: not is_held(reader.fileno()), what="the writer's wish")
            assert path.read_bytes() == b"content"  # it waits
            with unprivileged():
                release(reader.fileno())
            assert writer.wait(30) == 0
        assert path.read_bytes() == b"contentmore"


def test_a_lease_ends_with_its_client(root: Path, listener: socket.socket, unprivileged: Unprivileged) -> None:
    path = root / "a.pdf"
    path.write_bytes(b"content")
    path.chmod(0o644)
    with running(listener):
        with path.open("rb") as reader, unprivileged():
            assert take(reader.fileno()) is True
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # EWOULDBLOCK where a lease is left
        os.close(descriptor)


def test_without_the_service_the_kernel_tells_nothing(
    root: Path, listener: socket.socket, unprivileged: Unprivileged
) -> None:
    path = root / "a.pdf"
    path.write_bytes(b"content")
    path.chmod(0o644)
    listener.close()
    with path.open("rb") as reader, unprivileged():
        assert no_writer(reader.fileno()) is None


def test_a_service_that_does_not_answer_delays_one_file(
    root: Path, listener: socket.socket, unprivileged: Unprivileged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are hashed in few threads, which serve all customers and cannot be stopped."""
    monkeypatch.setattr(lease_service, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(lease_service, "PASSED_OVER_S", 3.0)
    path = root / "a.pdf"
    path.write_bytes(b"content")
    path.chmod(0o644)
    with path.open("rb") as reader:
        with unprivileged():
            assert [no_writer(reader.fileno()) for _ in range(100)] == [None] * 100
        waiting = 0
        listener.setblocking(False)
        while _is_accepted(listener):
            waiting += 1
        assert waiting == 1
        listener.setblocking(True)
        with running(listener), unprivileged():
            until(lambda: no_writer(reader.fileno()), what="the service, asked again")


def _is_accepted(listener: socket.socket) -> bool:
    with suppress(BlockingIOError):
        listener.accept()[0].close()
        return True
    return False


def test_a_false_service_proves_nothing(root: Path, listener: socket.socket, unprivileged: Unprivileged) -> None:
    path = root / "a.pdf"
    path.write_bytes(b"content")
    path.chmod(0o644)
    code = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])).accept()[0]\nwhile s.recv(1): s.send(b'1')"
    words = [sys.executable, "-c", code, str(listener.fileno())]
    with path.open("ab"), path.open("rb") as reader, subprocess.Popen(words, pass_fds=[listener.fileno()]) as service:
        with unprivileged():
            assert no_writer(reader.fileno()) is False
        service.kill()


def test_clients_that_never_read_or_never_ask_delay_no_other(root: Path, listener: socket.socket) -> None:
    path = root / "a.pdf"
    path.write_bytes(b"content")
    address = str(root / "lease.sock")
    with running(listener) as service, path.open("rb") as reader, ExitStack() as stack:
        deaf = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        deaf.connect(address)
        deaf.settimeout(10)
        with suppress(OSError):  # the service closed the connection
            for _ in range(5_000):  # its receive buffer holds some hundred answers
                deaf.send(b"T")
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (lease_service.MOST_CLIENTS + 20,) * 2)
        for _ in range(lease_service.MOST_CLIENTS + 50):
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)).connect(address)
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        client.settimeout(60)
        client.connect(address)
        socket.send_fds(client, [b"T"], [reader.fileno()])
        assert client.recv(1) == lease_service.TAKEN
        assert service.poll() is None


def test_a_client_that_sends_nonsense_ends_nothing(root: Path, listener: socket.socket) -> None:
    path = root / "a.pdf"
    path.write_bytes(b"content")
    with running(listener) as service:
        for message in (b"T", b"", b"x" * 100_000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(str(root / "lease.sock"))
                client.send(message)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client, path.open("rb") as reader:
            client.connect(str(root / "lease.sock"))
            socket.send_fds(client, [b"T"], [reader.fileno()] * 5)
            assert client.recv(1) in (lease_service.TAKEN, lease_service.REFUSED)
            left, right = os.pipe()
            socket.send_fds(client, [b"T"], [left])
            assert client.recv(1) == lease_service.REFUSED
            os.close(left)
            os.close(right)
        assert service.poll() is None
