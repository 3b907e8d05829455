"""Send and receive exact bytes over one socket."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

COMPANY = "8a210b68-6988-11ed-a1eb-0242ac120002"
CONNECTION = "2e9d2c44-f675-40ba-8049-353bfcb5e171"
UPLOAD = f"/companies/{COMPANY}/connections/{CONNECTION}/files"
LIST = f"/companies/{COMPANY}/files"
CODAT = {"Authorization": "Basic " + base64.b64encode(b"codat-demo-key").decode()}
WOOTIV = {"Authorization": "Bearer wootiv-demo-key"}
BOUNDARY = "a-derived-boundary"


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Cut(Exception):
    """Report that the connection ended inside a response without an error."""


class Raw:
    """Access one connection. Resets raise ConnectionResetError or BrokenPipeError, silence raises TimeoutError."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        plain = socket.create_connection((parts.hostname, parts.port), timeout=timeout)
        self.sock = tls.wrap_socket(plain, server_hostname=parts.hostname) if tls else plain
        self._rest = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def head(self, method: str, target: str, headers: dict[str, str], size: int | None) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if size is not None:
            lines.append(f"Content-Length: {size}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> Reply:
        self.send(method, target, headers, body)
        return self.reply(method)

    def send(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> None:
        self.sock.sendall(self.head(method, target, headers or {}, None if body is None else len(body)) + (body or b""))

    def reply(self, method: str = "GET") -> Reply:
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        status = int(head[0].split(" ")[1])
        if method == "HEAD" or status in (204, 304) or status < 200:
            return Reply(status, headers, b"")
        return Reply(status, headers, self._exactly(int(headers["content-length"])))

    def blocks(self) -> Iterator[bytes]:
        """Yield all remaining bytes until the other side ends."""
        if self._rest:
            yield self._rest
        while block := self.sock.recv(65536):
            yield block

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            self._more()
        found, _, self._rest = self._rest.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._more()
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def _more(self) -> None:
        block = self.sock.recv(65536)
        if not block:
            raise Cut
        self._rest += block


def form(*files: tuple[str, bytes], name: str = "file", fields: dict[str, str] | None = None) -> bytes:
    """Return a multipart body; the same files give the same bytes."""
    blocks = []
    for field_name, value in (fields or {}).items():
        blocks.append(f'Content-Disposition: form-data; name="{field_name}"\r\n\r\n{value}\r\n'.encode())
    for filename, content in files:
        quoted = filename.replace('"', "%22")
        head = f'Content-Disposition: form-data; name="{name}"; filename="{quoted}"\r\n'
        blocks.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n")
    mark = f"--{BOUNDARY}".encode()
    return b"".join(mark + b"\r\n" + block for block in blocks) + mark + b"--\r\n"


def form_headers(key: str | None = None) -> dict[str, str]:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return {**CODAT, **headers, **({"Idempotency-Key": key} if key else {})}


def upload(url: str, *files: tuple[str, bytes], key: str | None = None, tls: ssl.SSLContext | None = None) -> Reply:
    """Send one upload on a new connection."""
    with Raw(url, tls=tls) as raw:
        return raw.ask("POST", UPLOAD, form_headers(key), form(*(files or (("a.pdf", b"%PDF-1.4 a"),))))


def ask(url: str, method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> Reply:
    with Raw(url) as raw:
        return raw.ask(method, target, headers, body)


def listed(url: str) -> list[str]:
    """Return the names in Codat's list."""
    return [row["fileName"] for row in ask(url, "GET", LIST, CODAT).json]
