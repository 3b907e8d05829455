"""Provide S3 by other software: `rclone serve s3` stores, botocore signs, a small server acts as Wootiv."""

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
    """Return the path of rclone: from its package beside this Python, or from the machine."""
    return shutil.which("rclone", path=Path(sys.executable).parent) or shutil.which("rclone")


class RcloneServer:
    """rclone as an S3 server of one folder: it checks signature, expiry, signed headers and Content-MD5."""

    def __init__(self, root: Path, *options: str) -> None:
        self.folder = root / "rclone" / BUCKET
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

    def objects(self) -> dict[str, bytes]:
        """Return everything it has, with leftovers of broken uploads."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def sign(self, verb: str, key: str, *, through: str | None = None, lifetime: int = 60, secret: str = SECRET) -> str:
        """Return a URL by botocore; `through` is the address of the request if it differs."""
        client = _signer(through or self.url, secret)
        return str(client.generate_presigned_url(verb, Params={"Bucket": BUCKET, "Key": key}, ExpiresIn=lifetime))

    def _address(self) -> str | None:
        log = self._log.read_text()
        assert self._running.poll() is None, log
        found = re.search(r"http://127\.0\.0\.1:\d+", log)
        return found[0] if found else None


class Front:
    """Wootiv in front of the rclone server. `sign` makes each URL from verb and object name; tests may replace it."""

    def __init__(self, api_key: str, sign: Callable[[str, str], str]) -> None:
        self.sign = sign
        self.asked: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler_class(api_key))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def names(self, verb: str = "put_object") -> list[str]:
        return [name for asked, name in self.asked if asked == verb]

    def signed_url(self, verb: str, name: str) -> str:
        self.asked.append((verb, name))
        return self.sign(verb, name)

    def _handler_class(self, api_key: str) -> type[BaseHTTPRequestHandler]:
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/aws/get-signed-put-url":
                    self._answer(404, {"message": "nothing here"})
                elif self._is_authorized():
                    url = front.signed_url("put_object", payload["filename"])
                    self._answer(
                        200, {"url": url, "fields": {"bucket": BUCKET, "key": payload["filename"], "Policy": ""}}
                    )

            def do_GET(self) -> None:
                if self._is_authorized():
                    name = unquote(self.path.removeprefix("/aws/buckets/"))
                    self._answer(200, {"signedUrl": front.signed_url("get_object", name)})

            def log_message(self, *_: object) -> None:
                """Print nothing."""

            def _is_authorized(self) -> bool:
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

        return Handler


class DamagingProxy:
    """Run a proxy before the rclone server that damages bodies or cuts responses.

    The proxy serves one request for each connection; `heads` and `statuses` are in the order of requests.
    """

    def __init__(self, url: str) -> None:
        self.damaged = 0  # number of bodies that get a wrong first byte
        self.cut_after: int | None = None  # bytes of its body after which the next response is cut
        self.heads: list[str] = []
        self.statuses: list[int] = []
        self._to = ("127.0.0.1", int(url.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        threads: list[threading.Thread] = []
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threads.append(threading.Thread(target=self._forward, args=(client,)))
                threads[-1].start()
        for connection in threads:
            connection.join()

    def _forward(self, client: socket.socket) -> None:
        client.settimeout(20)
        with client, socket.create_connection(self._to, timeout=20) as server, suppress(OSError):
            head, body = _head(client)
            if not head:
                return
            self.heads.append(head.decode("latin-1"))
            size = _length(head)
            if b"expect: 100-continue" in head.lower():  # after a refused body docferry asks before it sends
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                head = re.sub(rb"(?i)\r\nexpect: 100-continue", b"", head)
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


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return a message's head, and the part of its body that came with it."""
    got = b""
    while b"\r\n\r\n" not in got:
        more = connection.recv(65536)
        if not more:
            return b"", b""
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", body


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0
