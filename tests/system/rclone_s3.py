"""S3 as others wrote it: `rclone serve s3` takes the bytes, botocore signs the URLs, a small front plays Wootiv."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import botocore.config
import botocore.session

from app_env import until

BUCKET = "documents"
KEY, SECRET = "docferry-access", "docferry-secret"


def rclone() -> str | None:
    """The program, from its package beside this Python, or from the machine."""
    return shutil.which("rclone", path=Path(sys.executable).parent) or shutil.which("rclone")


class Storehouse:
    """rclone as an S3 server of one folder: it checks signature, expiry, signed headers and Content-MD5."""

    def __init__(self, root: Path, *options: str) -> None:
        self.folder = root / "storehouse" / BUCKET
        self.folder.mkdir(parents=True)
        self._log = root / "rclone.log"
        command = [
            *(rclone() or "rclone", "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{KEY},{SECRET}"),
            *("--config", os.devnull, "--cache-dir", str(root / "cache"), *options, str(self.folder.parent)),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
        with self._log.open("wb") as log:
            self._running = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            self.url = until(self._address, what="rclone's port")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._running.terminate()
        self._running.wait(20)

    def holds(self) -> dict[str, bytes]:
        """Everything it has, leftovers of broken uploads included."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def sign(self, verb: str, key: str, *, through: str | None = None, lifetime: int = 60, secret: str = SECRET) -> str:
        """A URL made by botocore; `through` is the address the request will be sent to, if it is another."""
        client = _signer(through or self.url, secret)
        return str(client.generate_presigned_url(verb, Params={"Bucket": BUCKET, "Key": key}, ExpiresIn=lifetime))

    def _address(self) -> str | None:
        said = self._log.read_text()
        assert self._running.poll() is None, said
        found = re.search(r"http://127\.0\.0\.1:\d+", said)
        return found[0] if found else None


class Front:
    """Wootiv before the storehouse. `sign` makes each URL, from the verb and the object's name, and may be replaced."""

    def __init__(self, api_key: str, sign: Callable[[str, str], str]) -> None:
        self.sign = sign
        self.asked: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._conversation(api_key))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def names(self, verb: str = "put_object") -> list[str]:
        return [name for asked, name in self.asked if asked == verb]

    def _url(self, verb: str, name: str) -> str:
        self.asked.append((verb, name))
        return self.sign(verb, name)

    def _conversation(self, api_key: str) -> type[BaseHTTPRequestHandler]:
        front = self

        class Conversation(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/aws/get-signed-put-url":
                    self._answer(404, {"message": "nothing here"})
                elif self._may():
                    url = front._url("put_object", wish["filename"])
                    self._answer(200, {"url": url, "fields": {"bucket": BUCKET, "key": wish["filename"], "Policy": ""}})

            def do_GET(self) -> None:
                if self._may():
                    name = unquote(self.path.removeprefix("/aws/buckets/"))
                    self._answer(200, {"signedUrl": front._url("get_object", name)})

            def log_message(self, *_: object) -> None:
                """Nothing on the tests' own screen."""

            def _may(self) -> bool:
                if self.headers["Authorization"] == f"Bearer {api_key}":
                    return True
                self._answer(401, {"message": "Unauthorized"})
                return False

            def _answer(self, status: int, value: object) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Conversation


class Meddler:
    """A line to the storehouse that damages bodies on their way, or cuts answers short. One request a connection:
    what it hears, `heads` and `statuses`, is theirs in order.
    """

    def __init__(self, url: str) -> None:
        self.damaged = 0  # so many requests' bodies get a wrong first byte
        self.cut_after: int | None = None  # the next answer ends after so many bytes of its body
        self.heads: list[str] = []
        self.statuses: list[int] = []
        self._to = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._welcome)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _welcome(self) -> None:
        lines: list[threading.Thread] = []
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                lines.append(threading.Thread(target=self._line, args=(client,)))
                lines[-1].start()
        for line in lines:
            line.join()

    def _line(self, client: socket.socket) -> None:
        client.settimeout(20)
        with client, socket.create_connection(self._to, timeout=20) as server, suppress(OSError):
            head, body = _head(client)
            if not head:
                return
            self.heads.append(head.decode("latin-1"))
            size = _length(head)
            server.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            damaged = bool(size and self.damaged)
            self.damaged -= damaged
            while size and (body := body or client.recv(65536)):
                server.sendall(bytes([body[0] ^ 1]) + body[1:] if damaged else body)
                damaged, size, body = False, size - len(body), b""
            self._answer(client, server)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        head, body = _head(server)
        self.statuses.append(int(head.split(b" ")[1]))
        cut, self.cut_after = self.cut_after, None
        client.sendall(head)
        given = 0
        while body or (body := server.recv(65536)):
            if cut is not None and given + len(body) > cut:
                client.sendall(body[: cut - given])
                return
            client.sendall(body)
            given, body = given + len(body), b""


@cache
def _signer(url: str, secret: str) -> Any:
    return botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id=KEY,
        aws_secret_access_key=secret,
        config=botocore.config.Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


def _head(line: socket.socket) -> tuple[bytes, bytes]:
    """A message's head, and what of its body came along."""
    got = b""
    while b"\r\n\r\n" not in got:
        more = line.recv(65536)
        if not more:
            return b"", b""
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", body


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0
