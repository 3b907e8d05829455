"""Run clamd for tests: Debian's own with a database of one signature, or one that fails on purpose."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app_env import until
from debian_tools import FOLDER

VIRUS = b"docferry-test-signature"
SIGNATURE = "Docferry.Test.Signature.UNOFFICIAL"
#: With the libraries that a slim image lacks, in Debian 12 and 13; `python tests/debian_tools.py` unpacks them.
PACKAGES = ("clamav-daemon", "libclamav12", "libmspack0", "libmspack0t64", "libjson-c5")


def _program() -> tuple[str, dict[str, str]]:
    """Return clamd's path and environment; skip the test where it cannot be started."""
    libraries = [str(folder) for package in PACKAGES for folder in (FOLDER / package).glob("usr/lib/*-linux-gnu")]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else dict(os.environ)
    unpacked = FOLDER / "clamav-daemon" / "usr" / "sbin" / "clamd"
    found = shutil.which("clamd", path="/usr/sbin:/usr/bin") or (str(unpacked) if unpacked.is_file() else None)
    if found is None:
        pytest.skip(f"clamd is missing; get it with: python tests/debian_tools.py {' '.join(PACKAGES)}")
    started = subprocess.run([found, "--help"], env=environment, capture_output=True, text=True, check=False)
    if started.returncode:
        pytest.skip(f"clamd cannot be started: {started.stderr.strip()}")
    return found, environment


@contextmanager
def clamd(folder: Path, limit: str = "1M") -> Iterator[str]:
    """Run Debian's clamd on a socket in `folder`; yields its line of [antivirus]."""
    program, environment = _program()
    database = folder / "database"
    database.mkdir(parents=True)
    (database / "test.ndb").write_text(f"Docferry.Test.Signature:0:*:{VIRUS.hex()}\n")
    path = folder / "clamd.ctl"
    lines = ["Foreground yes", f"LocalSocket {path}", f"DatabaseDirectory {database}", f"StreamMaxLength {limit}"]
    (folder / "clamd.conf").write_text("\n".join([*lines, ""]))
    with (folder / "clamd.log").open("wb") as log:
        running = subprocess.Popen([program, "-c", str(folder / "clamd.conf")], env=environment, stdout=log, stderr=log)
    try:
        until(path.exists, 60, "clamd's socket")
        yield f'clamd = "unix:{path}"'
    finally:
        running.terminate()
        running.wait(30)


class FakeClamd:
    """Read INSTREAM to its end and send `reply`; with None, send nothing and keep the connection.

    `pings` selects whether PING is answered, `takes` the number of bytes before an early reply.
    """

    def __init__(self, *, reply: bytes | None, pings: bool = True, takes: int | None = None) -> None:
        self.reply, self.pings, self.takes = reply, pings, takes
        self.scanned: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.setting = f'clamd = "127.0.0.1:{self._listener.getsockname()[1]}"'
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        source = connection.makefile("rb")
        try:
            command = _until_nul(source.read)
            if command == b"zPING":
                if self.pings:
                    connection.sendall(b"PONG\0")
                    connection.close()
                return
            content = b""
            while size := int.from_bytes(source.read(4), "big"):
                content += source.read(size)
                if self.takes is not None and len(content) > self.takes:
                    break
            self.scanned.append(content)
            if self.reply is not None:
                connection.sendall(self.reply)
                source.close()
                connection.close()
        except OSError:
            return


def _until_nul(read: object) -> bytes:
    found = b""
    while (byte := read(1)) not in (b"\0", b""):  # type: ignore[operator]  # a file's read
        found += byte
    return found
