"""The simulator itself: one port on which Codat, Wootiv and S3 answer, and on which faults strike."""

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
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskStatus

from docferry.clock import Clock, SystemClock, iso
from docferry.simulator.codat import Codat
from docferry.simulator.control import Control
from docferry.simulator.fault_effects import Case, suffer
from docferry.simulator.faults import Fault, Rules
from docferry.simulator.http import Answer, Malformed, Request, deliver, next_request
from docferry.simulator.listener import Listener, listen
from docferry.simulator.options import SimulatorOptions
from docferry.simulator.recorder import Event, Recorder, RequestSeen, S3Object, Stored
from docferry.simulator.s3 import S3
from docferry.simulator.sigv4 import Credentials
from docferry.simulator.wire import Gone, Reset, Wire
from docferry.simulator.wootiv import Wootiv

if TYPE_CHECKING:
    from collections import Counter, deque

_log = logging.getLogger(__name__)
_KEEP_ALL = 1 << 62
_Shore = Codat | Wootiv | S3 | Control
#: Names of errors that S3 gives with a status, where a rule does not say.
_S3_CODES = {400: "InvalidRequest", 401: "AccessDenied", 403: "AccessDenied", 404: "NoSuchKey", 409: "OperationAborted"}
_S3_CODES |= {413: "EntityTooLarge", 429: "SlowDown", 500: "InternalError", 503: "SlowDown"}


class Simulator:
    """A local Codat, Wootiv and S3. What they have got and seen can be asked at any time, from any thread. Without
    `keep_bytes` no ZIP and no GET has content; without `digests` too, for big loads, nothing is hashed: no ETag is an
    MD5, and an Idempotency-Key is held against heads alone."""

    def __init__(
        self,
        options: SimulatorOptions | None = None,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        clock: Clock | None = None,
        keep_bytes: bool = True,
        on_event: Callable[[Event], None] | None = None,
        digests: bool = True,
    ) -> None:
        self.options = options if options is not None else SimulatorOptions()
        self.clock: Clock = clock if clock is not None else SystemClock()
        jitter = random.Random(seed)  # noqa: S311 - faults must be repeatable by their seed, not secret
        keep = _KEEP_ALL if keep_bytes else 0
        self.recorder = Recorder(self.clock, on_event)
        self.rules = Rules(faults, random.Random(seed + 1))  # noqa: S311 - as above
        self.codat = Codat(self.options, self.clock, self.recorder, jitter, keep, digest=digests)
        self.s3 = S3(self.options, self.clock, self.recorder, jitter, keep, digest=digests)
        self.wootiv = Wootiv(self.options, self.recorder, self.s3, jitter)
        self._control = Control(self)
        self._wires: set[Wire] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._door: Listener | None = None
        self._ssl: ssl.SSLContext | None = None
        self._address = ("", 0)
        self._date = (0, "")

    # what it has got and seen

    @property
    def url(self) -> str:
        host, port = self._address
        return f"{'https' if self._ssl is not None else 'http'}://{host}:{port}"

    @property
    def stored(self) -> list[Stored]:
        """Every file stored by now, in order; for S3 each PUT counts, `objects` has what stands."""
        return list(self.recorder.stored)

    @property
    def objects(self) -> dict[tuple[str, str], S3Object]:
        return dict(self.recorder.objects)

    @property
    def requests(self) -> Counter[str]:
        """How often each route was asked for."""
        return self.recorder.requests

    @property
    def log(self) -> deque[RequestSeen]:
        """The latest requests, one by one."""
        return self.recorder.log

    @property
    def most_at_once(self) -> Counter[str]:
        """The most requests at once that each company has had."""
        return self.codat.limits.most_at_once

    @property
    def credentials(self) -> Credentials:
        """Whose signatures the simulated S3 believes."""
        return self.s3.credentials

    # what can be done to it

    def put_company_file(
        self,
        company: str,
        name: str,
        content: bytes,
        source_type: str | None = None,
        uploaded: datetime | str | None = None,
        integration: str | None = None,
    ) -> Stored:
        """What a customer uploads on Codat's own page. `uploaded` as a string is listed as it is."""
        at = self.clock.now()
        if isinstance(uploaded, datetime):
            at = uploaded.timestamp()
            uploaded = iso(at) if uploaded.tzinfo else uploaded.isoformat()
        stored = Stored(
            "codat", company, None, name, content, sha256(content).hexdigest(), len(content), at, via="page"
        )
        self.codat.put(stored, uploaded=uploaded, source_type=source_type, integration=integration)
        return stored

    def lose_company_file(self, company: str, name: str) -> None:
        """Lose a file of Codat, which no request can remove."""
        self.codat.lose(company, name)

    def lose_object(self, key: str, bucket: str = "wootiv-documents") -> None:
        """Remove an object from the bucket."""
        self.recorder.objects.pop((bucket, key), None)

    def put_object(self, key: str, content: bytes, bucket: str = "wootiv-documents") -> S3Object:
        """What somebody else puts into the bucket."""
        catch = self.s3.catch()
        catch.write(content)
        return self.s3.keep(bucket, key, catch, "binary/octet-stream")

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Other rules from now on."""
        self.rules.replace(faults)

    def refuse(self, seconds: float, mode: str = "refuse", everyone: bool = True) -> None:
        """Refuse connections for some seconds, by a closed port or ("reset") by an RST after accepting; `everyone`
        who is connected is thrown out too. From any thread, and done when it returns."""
        if self._loop is None:
            raise RuntimeError("the simulator does not serve yet")
        if _running_loop() is self._loop:
            self._shut(seconds, mode, everyone)
            return
        done: Future[None] = Future()

        def shut() -> None:
            self._shut(seconds, mode, everyone)
            done.set_result(None)

        self._loop.call_soon_threadsafe(shut)
        done.result()

    def reset(self) -> None:
        """Forget everything that came; no faults, switches as they come."""
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
        """Answer until cancelled. The port is told by `task_status`."""
        with listen(host, port) as listener:
            self._loop, self._ssl = asyncio.get_running_loop(), ssl_context
            self._address = (f"[{host}]" if ":" in host else host, listener.getsockname()[1])
            async with anyio.create_task_group() as connections:

                def welcome(client: socket.socket) -> None:
                    wire = Wire(client, self.clock.now)
                    self._wires.add(wire)  # at once: whoever is let in can be thrown out
                    connections.start_soon(self._connection, wire)

                with Listener(listener, welcome) as self._door:
                    task_status.started(self._address[1])
                    await anyio.sleep_forever()

    def _shut(self, seconds: float, mode: str, everyone: bool) -> None:
        if self._door is not None:
            self._door.close(seconds, resetting=mode == "reset")
        for wire in self._wires if everyone else ():
            wire.reset()

    async def _connection(self, wire: Wire) -> None:
        try:
            await wire.open(self._ssl)
            reused = False
            while await self._exchange(wire, reused=reused):
                reused = True
            wire.close()
        except Reset:
            wire.reset()
        except (Gone, OSError):  # a broken TLS handshake too
            wire.close()
        finally:
            self._wires.discard(wire)
            wire.free()

    async def _exchange(self, wire: Wire, *, reused: bool) -> bool:
        """One request and its answer; True when another may come."""
        try:
            request = await next_request(wire, secure=self._ssl is not None)
        except Malformed as malformed:
            await deliver(wire, Answer(400, f"{malformed}\n".encode(), then="close"), self._dated())
            return False
        if request is None:
            return False
        name, shore, handler = self._route(request)
        line = f"{request.method} {request.path}"
        fault = None if shore is self._control else self.rules.draw(name, line, reused=reused)
        first_byte = self.clock.now() if wire.first_byte is None else wire.first_byte
        seen = RequestSeen(name, request.method, request.path, fault.kind if fault else None, first_byte)
        if shore is not self._control:
            self.recorder.requests[name] += 1
            self.recorder.log.append(seen)
        try:
            answer = await self._answer(request, name, shore, handler, fault)
            await self._settle_body(request, answer)
            seen.status, seen.at = answer.status, self.clock.now()
            await deliver(wire, answer, self._dated(), to_head=request.method == "HEAD")
        finally:
            self.codat.leave(request)
            seen.at = self.clock.now()
        if answer.then == "reset":
            raise Reset
        wire.between_requests()
        return answer.then == "keep"

    async def _answer(
        self,
        request: Request,
        name: str,
        shore: _Shore,
        handler: Callable[[Request], Awaitable[Answer]],
        fault: Fault | None,
    ) -> Answer:
        async def run() -> Answer:
            request.latency = self.options.latency
            try:
                answer = await shore.serve(request, handler)
            except (Gone, Reset):
                raise
            except Exception:  # noqa: BLE001 - a fault of the simulator's own is told as a 500, and in the log
                _log.exception("the simulator failed at %s", name)
                answer = (
                    shore.error(500, "InternalError", "the simulator failed")
                    if isinstance(shore, S3)
                    else shore.error(500, "the simulator failed")
                )
            await request.pause()
            return answer

        if fault is None:
            return await run()
        self.recorder.struck(name, fault.kind)
        return await suffer(
            Case(fault, request, self.s3.now(), run, lambda status, code: _error(shore, status, code), self.refuse)
        )

    @staticmethod
    async def _settle_body(request: Request, answer: Answer) -> None:
        """What of the body nobody read is read now, so that the client sees the answer."""
        if not request.keep_alive and answer.then == "keep":
            answer.then = "close"
        if answer.then == "reset" or request.body.done:
            return
        if request.body.unwanted:
            answer.then = "close"
        else:
            await request.body.drain()

    def _route(self, request: Request) -> tuple[str, _Shore, Callable[[Request], Awaitable[Answer]]]:
        segments = request.segments
        for shore in (self.codat, self.s3, self.wootiv, self._control):
            if (found := shore.route(request.method, segments)) is not None:
                return found[0], shore, found[1]
        return "unknown", self.wootiv, self._nowhere

    async def _nowhere(self, request: Request) -> Answer:
        return request.forced or self.wootiv.error(404, f"There is nothing at {request.path}")

    def _dated(self) -> str:
        """The server's time as its Date header; written once a second."""
        now = int(self.s3.now())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True))
        return self._date[1]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _error(shore: _Shore, status: int, code: str | None) -> Answer:
    """An error as this service would give it, though a rule wants it."""
    if isinstance(shore, S3):
        return shore.error(status, code or _S3_CODES.get(status, "InternalError"), "A fault was asked for")
    return shore.error(status, code or "A fault was asked for")
