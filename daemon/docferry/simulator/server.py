"""Serve Codat, Wootiv and S3 on one port, and apply faults."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from datetime import datetime
from email.utils import formatdate
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

import anyio
from anyio.abc import TaskStatus

from docferry.clock import Clock, SystemClock, iso
from docferry.simulator.codat import Codat
from docferry.simulator.connection import Connection, Disconnected, Reset
from docferry.simulator.control import Control
from docferry.simulator.fault_effects import FaultContext, apply_fault
from docferry.simulator.faults import Fault, Rules
from docferry.simulator.http import Malformed, Request, Response, deliver, next_request
from docferry.simulator.listener import Listener, listen
from docferry.simulator.options import SimulatorOptions
from docferry.simulator.recorder import EventLog, Recorder, RequestSeen, S3Object, Stored
from docferry.simulator.s3 import S3
from docferry.simulator.sigv4 import Credentials
from docferry.simulator.wootiv import Wootiv

if TYPE_CHECKING:
    from collections import Counter, deque

_log = logging.getLogger(__name__)
_KEEP_ALL = 1 << 62
Content = Literal["keep", "digest", "count"]
_Service = Codat | Wootiv | S3 | Control
#: S3's error codes by status, for rules without a code.
_S3_CODES = {400: "InvalidRequest", 401: "AccessDenied", 403: "AccessDenied", 404: "NoSuchKey", 409: "OperationAborted"}
_S3_CODES |= {413: "EntityTooLarge", 429: "SlowDown", 500: "InternalError", 503: "SlowDown"}


class Simulator:
    """Simulate Codat, Wootiv and S3 locally, with a record that any thread can read at any time.

    `content` selects the stored content of each file: its bytes and digests ("keep"), its digests ("digest"), or its
    size ("count"). Without bytes no ZIP and no GET has content. Without digests no ETag is an MD5, and an
    Idempotency-Key compares only the heads of parts.
    """

    def __init__(
        self,
        options: SimulatorOptions | None = None,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        clock: Clock | None = None,
        content: Content = "keep",
        events: EventLog | None = None,
    ) -> None:
        self.options = options if options is not None else SimulatorOptions()
        self.clock: Clock = clock if clock is not None else SystemClock()
        jitter = random.Random(seed)  # noqa: S311 - faults must be repeatable by their seed, not secret
        keep, digests = _KEEP_ALL if content == "keep" else 0, content != "count"
        self.recorder = Recorder(self.clock, events)
        self.rules = Rules(faults, random.Random(seed + 1))  # noqa: S311 - repeatable by the seed, not secret
        self.codat = Codat(self.options, self.clock, self.recorder, jitter, keep, digest=digests)
        self.s3 = S3(self.options, self.clock, self.recorder, jitter, keep, digest=digests)
        self.wootiv = Wootiv(self.options, self.recorder, self.s3, jitter)
        self._control = Control(self)
        self._connections: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Listener | None = None
        self._ssl: ssl.SSLContext | None = None
        self._address = ("", 0)
        self._date = (0, "")

    # the record

    @property
    def url(self) -> str:
        """Return the base URL."""
        host, port = self._address
        return f"{'https' if self._ssl is not None else 'http'}://{host}:{port}"

    @property
    def stored(self) -> list[Stored]:
        """Return every file stored by now, in order. For S3 each PUT counts; `objects` has the current ones."""
        return list(self.recorder.stored)

    @property
    def objects(self) -> dict[tuple[str, str], S3Object]:
        """Return the present objects in S3, by bucket and key."""
        return dict(self.recorder.objects)

    @property
    def requests(self) -> Counter[str]:
        """Return the number of requests by route."""
        return self.recorder.requests

    @property
    def log(self) -> deque[RequestSeen]:
        """Return the latest requests."""
        return self.recorder.log

    @property
    def peak_concurrency(self) -> Counter[str]:
        """Return the largest number of concurrent requests by company."""
        return self.codat.limits.peak_concurrency

    @property
    def credentials(self) -> Credentials:
        """Return the credentials that the simulated S3 accepts."""
        return self.s3.credentials

    # changes

    def put_company_file(
        self,
        company: str,
        name: str,
        content: bytes,
        source_type: str | None = None,
        uploaded: datetime | str | None = None,
        integration: str | None = None,
    ) -> Stored:
        """Store a file like a customer on Codat's page. A string as `uploaded` is listed unchanged."""
        at = self.clock.now()
        if isinstance(uploaded, datetime):
            at = uploaded.timestamp()
            uploaded = iso(at) if uploaded.tzinfo else uploaded.isoformat()
        stored = Stored(
            "codat", company, None, name, content, sha256(content).hexdigest(), len(content), at, via="page"
        )
        self.codat.put(stored, uploaded=uploaded, source_type=source_type, integration=integration)
        return stored

    def remove_company_file(self, company: str, name: str) -> None:
        """Remove a file of Codat, which no request can do."""
        self.codat.remove(company, name)

    def remove_object(self, key: str, bucket: str = "wootiv-documents") -> None:
        """Remove an object from the bucket."""
        self.recorder.objects.pop((bucket, key), None)

    def put_object(self, key: str, content: bytes, bucket: str = "wootiv-documents") -> S3Object:
        """Store an object like another program."""
        sink = self.s3.sink()
        sink.write(content)
        return self.s3.keep(bucket, key, sink, "binary/octet-stream")

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Replace the fault rules."""
        self.rules.replace(faults)

    def refuse(self, seconds: float, mode: str = "refuse", close_open: bool = True) -> None:
        """Refuse connections for some seconds: by a closed port, or ("reset") by an RST after accepting.

        `close_open` also resets open connections. Any thread may call it; it returns once connections are refused.
        """
        if self._loop is None:
            raise RuntimeError("the simulator does not serve yet")
        if _running_loop() is self._loop:
            self._refuse(seconds, mode, close_open)
            return
        done: Future[None] = Future()

        def refuse_connections() -> None:
            self._refuse(seconds, mode, close_open)
            done.set_result(None)

        self._loop.call_soon_threadsafe(refuse_connections)
        done.result()

    def reset(self) -> None:
        """Remove all requests, files and faults, and restore the default options."""
        self.recorder.reset()
        self.codat.reset()
        self.rules.replace(())
        self.options.reset()

    # serving

    async def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        ssl_context: ssl.SSLContext | None = None,
        task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled. `task_status` gets the port."""
        with listen(host, port) as listener:
            self._loop, self._ssl = asyncio.get_running_loop(), ssl_context
            self._address = (f"[{host}]" if ":" in host else host, listener.getsockname()[1])
            async with anyio.create_task_group() as group:

                def on_accept(client: socket.socket) -> None:
                    connection = Connection(client, self.clock)
                    self._connections.add(connection)  # before any await, so that `refuse` can reset the connection
                    group.start_soon(self._serve_connection, connection)

                with Listener(listener, on_accept) as self._listener:
                    task_status.started(self._address[1])
                    await anyio.sleep_forever()

    def _refuse(self, seconds: float, mode: str, close_open: bool) -> None:
        if self._listener is not None:
            self._listener.close(seconds, resetting=mode == "reset")
        for connection in self._connections if close_open else ():
            connection.reset()

    async def _serve_connection(self, connection: Connection) -> None:
        try:
            await connection.open(self._ssl)
            reused = False
            while await self._handle_request(connection, reused=reused):
                reused = True
            connection.close()
        except Reset:
            connection.reset()
        except (Disconnected, OSError):  # also a failed TLS handshake
            connection.close()
        finally:
            self._connections.discard(connection)
            connection.dispose()

    async def _handle_request(self, connection: Connection, *, reused: bool) -> bool:
        """Serve one request. Return whether another may follow on the connection."""
        try:
            request = await next_request(connection, secure=self._ssl is not None)
        except Malformed as malformed:
            await deliver(connection, Response(400, f"{malformed}\n".encode(), then="close"), self._date_header())
            return False
        if request is None:
            return False
        name, service, handler = self._route(request)
        line = f"{request.method} {request.path}"
        fault = None if service is self._control else self.rules.select(name, line, reused=reused)
        first_byte = self.clock.now() if connection.first_byte is None else connection.first_byte
        seen = RequestSeen(name, request.method, request.path, fault.kind if fault else None, first_byte)
        if service is not self._control:
            self.recorder.requests[name] += 1
            self.recorder.log.append(seen)
        try:
            response = await self._respond(request, name, service, handler, fault)
            await self._drain_body(request, response)
            seen.status, seen.at = response.status, self.clock.now()
            await deliver(connection, response, self._date_header(), to_head=request.method == "HEAD")
        finally:
            self.codat.release(request)
            seen.at = self.clock.now()
        if response.then == "reset":
            raise Reset
        connection.between_requests()
        return response.then == "keep"

    async def _respond(
        self,
        request: Request,
        name: str,
        service: _Service,
        handler: Callable[[Request], Awaitable[Response]],
        fault: Fault | None,
    ) -> Response:
        async def run() -> Response:
            request.latency = self.options.latency
            try:
                response = await service.serve(request, handler)
            except (Disconnected, Reset):
                raise
            except Exception:  # noqa: BLE001 - a defect of the simulator becomes a 500 and a log entry
                _log.exception("the simulator failed at %s", name)
                response = (
                    service.error(500, "InternalError", "the simulator failed")
                    if isinstance(service, S3)
                    else service.error(500, "the simulator failed")
                )
            await request.pause()
            return response

        if fault is None:
            return await run()
        self.recorder.record_fault(name, fault.kind)
        return await apply_fault(
            FaultContext(
                fault, request, self.s3.now(), run, lambda status, code: _error(service, status, code), self.refuse
            )
        )

    @staticmethod
    async def _drain_body(request: Request, response: Response) -> None:
        """Read the rest of the body, so that the client sees the response."""
        if not request.keep_alive and response.then == "keep":
            response.then = "close"
        if response.then == "reset" or request.body.done:
            return
        if request.body.awaits_continue:
            response.then = "close"
        else:
            await request.body.drain()

    def _route(self, request: Request) -> tuple[str, _Service, Callable[[Request], Awaitable[Response]]]:
        segments = request.segments
        for service in (self.codat, self.s3, self.wootiv, self._control):
            if (found := service.route(request.method, segments)) is not None:
                return found[0], service, found[1]
        return "unknown", self.wootiv, self._not_found

    async def _not_found(self, request: Request) -> Response:
        return request.forced or self.wootiv.error(404, f"There is nothing at {request.path}")

    def _date_header(self) -> str:
        """Return the server's time as its Date header, formatted once a second."""
        now = int(self.s3.now())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True))
        return self._date[1]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _error(service: _Service, status: int, code: str | None) -> Response:
    """Return an error in the shape of this service, for a fault."""
    if isinstance(service, S3):
        return service.error(status, code or _S3_CODES.get(status, "InternalError"), "The response of a fault rule")
    return service.error(status, code or "The response of a fault rule")
