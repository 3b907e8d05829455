"""Serve every measurement: a process that reads everything and responds at once, as Codat, Wootiv and S3.

`python -m benchmarks.sink --help`; the first line of its output is its address.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import resource
import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

#: All connections read into this memory, one after the other.
_SPACE = memoryview(bytearray(256 * 1024))
_NAME = re.compile(rb'filename="([^"]*)"')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
#: The number of first requests whose names are recorded: the list is read only while a batch is proved.
_PROVING = 64
#: The largest body whose names are recorded, bytes: a batch of small documents is smaller, one of W2 larger.
_PROVED_BYTES = 2 * 1024 * 1024


@dataclass(slots=True)
class ServerState:
    """Count the requests of all connections."""

    delay: float
    md5: bool
    log: bool
    base: str = ""  # the base of signed URLs: this process, or a proxy before it
    requests: int = 0  # with one or more documents
    received: int = 0  # bytes of their bodies
    first: float = 0.0  # monotonic seconds: when the first such request began
    last: float = 0.0  # when the last one was answered
    uploaded: list[dict[str, str]] = field(default_factory=list)
    arrivals: list[tuple[float, str]] = field(default_factory=list)

    def figures(self) -> bytes:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return json.dumps(
            {
                "requests": self.requests,
                "received": self.received,
                "first": self.first,
                "last": self.last,
                "cpu": used.ru_utime + used.ru_stime,
                "arrivals": self.arrivals,
            }
        ).encode()

    def forget(self) -> None:
        self.requests = self.received = 0
        self.first = self.last = 0.0
        self.uploaded.clear()
        self.arrivals.clear()


class Connection(asyncio.BufferedProtocol):
    """Serve one connection. Bodies are counted, and not kept."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._head = b""
        self._began = 0.0
        self._left = 0
        self._method = self._target = b""
        self._body = bytearray()
        self._keeps = False
        self._digest: hashlib._Hash | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        opened = transport.get_extra_info("socket")
        if opened.family == socket.AF_INET:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's word; the buffer is always the same
        return _SPACE

    def buffer_updated(self, nbytes: int) -> None:
        start = 0
        while start < nbytes:
            if not self._left:
                start = self._begin(start, nbytes)
                continue
            taken = min(self._left, nbytes - start)
            if self._keeps:
                self._body += _SPACE[start : start + taken]
            if self._digest is not None:
                self._digest.update(_SPACE[start : start + taken])
            self._left -= taken
            start += taken
            if not self._left:
                self._end()

    def _begin(self, start: int, end: int) -> int:
        """Read a head, or as much of it as is here; where its body begins."""
        if not self._head:
            self._began = time.monotonic()
        before = len(self._head)
        self._head += bytes(_SPACE[start : min(end, start + 16 * 1024)])
        found = self._head.find(b"\r\n\r\n")
        if found < 0:
            return end
        head, self._head = self._head[: found + 2], b""
        self._method, self._target, _ = head.split(b" ", 2)
        length = _LENGTH.search(head)
        self._left = int(length[1]) if length else 0
        body = start + found + 4 - before
        brings = self._method in (b"POST", b"PUT") and b"get-signed" not in self._target and self._left > 0
        if brings:
            self._note(bytes(_SPACE[body : min(end, body + 1024)]))
        proves = self._state.requests <= _PROVING and self._left <= _PROVED_BYTES
        self._keeps = brings and proves and self._target.endswith(b"/files")
        self._digest = hashlib.md5(usedforsecurity=False) if self._state.md5 and self._method == b"PUT" else None
        if b"100-continue" in head:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._left:
            self._end()
        return body

    def _note(self, opening: bytes) -> None:
        state = self._state
        state.first = state.first or self._began
        state.requests += 1
        state.received += self._left
        if state.log and (name := _NAME.search(opening)):
            state.arrivals.append((self._began, name[1].decode("utf-8", "replace")))

    def _end(self) -> None:
        if self._keeps:
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            names = [name.decode("utf-8", "replace") for name in _NAME.findall(self._body)]
            self._state.uploaded += [
                {"fileName": name, "displayName": name, "sourceType": "Api", "uploaded": now} for name in names
            ]
            self._body.clear()
            self._keeps = False
        answer = self._answer()
        if self._state.delay:
            asyncio.get_running_loop().call_later(self._state.delay, self._say, answer)
        else:
            self._say(answer)

    def _say(self, answer: bytes) -> None:
        self._transport.write(answer)
        self._state.last = time.monotonic()

    def _answer(self) -> bytes:
        method, target, state = self._method, self._target, self._state
        if method == b"PUT":
            tag = self._digest.hexdigest() if self._digest else "aa-1"
            return b'HTTP/1.1 200 OK\r\nETag: "%s"\r\nContent-Length: 0\r\n\r\n' % tag.encode()
        if target == b"/_sink":
            if method == b"DELETE":
                state.forget()
            return _json_response(state.figures())
        if method == b"HEAD":
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        if target.endswith(b"/files"):
            return _json_response(b"" if method == b"POST" else json.dumps(state.uploaded).encode())
        if target.endswith(b"/get-signed-put-url"):
            return _json_response(_signed_url(state.base))
        return _json_response(_s3(method, target).encode(), "application/xml")


def _json_response(body: bytes, kind: str = "application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind.encode(), len(body), body)


def _signed_url(base: str) -> bytes:
    query = (
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261121%2Feu-west-2%2Fs3%2Faws4_request"
        f"&X-Amz-Date=20261121T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature={'ab' * 32}"
    )
    return json.dumps({"url": f"{base}/s3/bench/document?{query}", "fields": {}}).encode()


def _s3(method: bytes, target: bytes) -> str:
    """Return empty lists, and the responses of a multipart upload."""
    if method == b"POST" and target.endswith((b"?uploads", b"?uploads=")):
        return _part("InitiateMultipartUploadResult", "<UploadId>u</UploadId>")
    if method == b"POST":
        return _part("CompleteMultipartUploadResult", '<ETag>"aa-1"</ETag>')
    if b"location" in target:
        return f"{_XML}<LocationConstraint {_NAMESPACE}/>"
    return (
        f"{_XML}<ListBucketResult {_NAMESPACE}><Name>bench</Name><Prefix></Prefix><KeyCount>0</KeyCount>"
        "<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"
    )


def _part(name: str, says: str) -> str:
    return f"{_XML}<{name} {_NAMESPACE}><Bucket>bench</Bucket><Key>k</Key>{says}</{name}>"


async def _serve(state: ServerState, path: str | None) -> None:
    loop = asyncio.get_running_loop()
    if path is not None:
        await loop.create_unix_server(lambda: Connection(state), path, backlog=512)
    server = await loop.create_server(lambda: Connection(state), "127.0.0.1", 0, backlog=512)
    port = server.sockets[0].getsockname()[1]
    state.base = state.base or f"http://127.0.0.1:{port}"
    print(port, flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--md5", action="store_true", help="ETags that are the MD5 of the bytes, as S3 gives them")
    parser.add_argument("--log", action="store_true", help="remember when each document's request began")
    parser.add_argument("--base", default="", help="where signed URLs lead, when something stands in front")
    parser.add_argument("--unix", help="a Unix socket to listen on too, for a proxy")
    asked = parser.parse_args()
    asyncio.run(_serve(ServerState(asked.delay, asked.md5, asked.log, asked.base), asked.unix))


if __name__ == "__main__":
    main()
