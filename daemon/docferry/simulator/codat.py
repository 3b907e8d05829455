"""Codat's Files API as it is documented: who may ask, what is taken, what is listed and what a ZIP holds."""

from __future__ import annotations

import base64
import fnmatch
import random
import uuid
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import UTC, date, datetime
from urllib.parse import quote

from docferry.clock import Clock, iso
from docferry.simulator.archive import Filed, blocks_of, zip_of
from docferry.simulator.filerules import LARGEST_FILE, MOST_FILES, problems_of, renamed
from docferry.simulator.http import Answer, Malformed, Request
from docferry.simulator.keys import Keys, OtherBody
from docferry.simulator.limits import Limits
from docferry.simulator.multipart import Catch, Part, read_form
from docferry.simulator.options import SimulatorOptions
from docferry.simulator.recorder import Recorder, Stored

_LARGEST_BODY = MOST_FILES * LARGEST_FILE + 1024 * 1024

Handler = Callable[[Request], Awaitable[Answer]]


class Refused(Exception):
    """The request is answered with an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Codat:
    """The shore. `route` names what a request wants; `serve` lets it in and answers it."""

    def __init__(
        self,
        options: SimulatorOptions,
        clock: Clock,
        recorder: Recorder,
        jitter: random.Random,
        keep: int,
        *,
        digest: bool,
    ) -> None:
        self._switches = options
        self._clock = clock
        self._recorder = recorder
        self._random = jitter
        self._keep = keep
        self._digest = digest
        self._files: dict[str, list[Filed]] = {}
        self.limits = Limits(options, clock)
        self.keys = Keys(clock)

    def route(self, method: str, segments: list[str]) -> tuple[str, Handler] | None:
        match method, segments:
            case "POST", ["companies", company, "connections", connection, "files"]:
                return "codat.upload", lambda request: self._upload(request, company, connection)
            case "GET", ["companies", company, "files"]:
                return "codat.list", lambda request: self._list(request, company)
            case "GET", ["companies", company, "files", "download"]:
                return "codat.download", lambda request: self._download(request, company)
            case "GET", ["companies", company, "connections", connection]:
                return "codat.connection", lambda request: self._connection(request, company, connection)
            case _, ["companies", _, "files"] | ["companies", _, "files", "download"]:
                return "codat.other", self._not_allowed
            case _, ["companies", _, "connections", _] | ["companies", _, "connections", _, "files"]:
                return "codat.other", self._not_allowed
            case _, ["companies", *_]:
                return "codat.other", self._not_found
        return None

    async def serve(self, request: Request, handler: Handler) -> Answer:
        """Let the request in, or say why not; every answer carries the rate headers."""
        try:
            self._admit(request)
            answer = await handler(request)
        except Refused as refused:
            answer = refused.answer
        except Malformed as malformed:
            answer = self.error(400, str(malformed))
        answer.headers = self.limits.headers() | answer.headers  # a fault may name its own
        return answer

    def leave(self, request: Request) -> None:
        """The request is over, answered or not."""
        if request.admitted is not None:
            self.limits.leave(request.admitted)
            request.admitted = None

    def error(
        self, status: int, error: str, *problems: tuple[str, str, str], headers: dict[str, str] | None = None
    ) -> Answer:
        """Codat's error shape; a problem is (itemId, message, validatorName)."""
        names = ("itemId", "message", "validatorName")
        return Answer.of_json(
            status,
            {
                "statusCode": status,
                "service": "FilesApi",
                "error": error,
                "correlationId": f"{self._random.getrandbits(128):032x}",
                "validation": {"errors": [dict(zip(names, each, strict=True)) for each in problems], "warnings": []},
                "canBeRetried": "Yes" if status in (429, 500, 503) else "No",
                "detailedErrorCode": 0,
            },
            headers,
        )

    def put(
        self,
        stored: Stored,
        *,
        uploaded: str | None = None,
        source_type: str | None = None,
        integration: str | None = None,
        late: float = 0.0,
    ) -> None:
        """Store a file; it is listed once `list_lag` has passed too."""
        self._recorder.store(stored, late=late)
        filed = Filed(
            stored,
            uploaded or iso(stored.at + self._switches.date_skew) or "",
            source_type or self._switches.source_type,
            integration or self._switches.platform,
            self._clock.steady() + late,
        )
        self._files.setdefault(stored.company or "", []).append(filed)

    def lose(self, company: str, name: str) -> None:
        """Forget every file of this name, as no request can."""
        files = self._files.get(company, [])
        files[:] = [filed for filed in files if filed.stored.name != name]
        self._recorder.stored[:] = [
            each for each in self._recorder.stored if (each.remote, each.company, each.name) != ("codat", company, name)
        ]

    def reset(self) -> None:
        self._files.clear()
        self.limits.reset()
        self.keys.reset()

    # who may ask

    def _admit(self, request: Request) -> None:
        if (wait := self.limits.minute(request.wire.peer)) is not None:
            raise Refused(self._too_many("too many requests a minute from this address", wait))
        if request.headers.get("authorization") != _authorization(self._switches.codat_key):
            raise Refused(self.error(401, "Unauthorized"))
        if (wait := self.limits.day()) is not None:
            raise Refused(self._too_many("the daily quota is used up", wait))
        if len(request.segments) < 2:
            return  # asked of no company
        company = request.segments[1]
        if not self.limits.enter(company):
            raise Refused(self._too_many("too many requests at once for this company", 1.0))
        request.admitted = company
        if not self._knows_company(company):
            raise Refused(self.error(404, f"Company {company} was not found"))

    def _too_many(self, error: str, wait: float) -> Answer:
        return self.error(429, error, headers={"Retry-After": str(max(1, int(wait + 0.999)))})

    def _knows_company(self, company: str) -> bool:
        if self._switches.companies is None:
            return _is_uuid(company)
        return company in self._switches.companies

    def _knows_connection(self, company: str, connection: str) -> bool:
        if self._switches.companies is None:
            return _is_uuid(connection)
        return connection in self._switches.companies[company]

    # upload

    async def _upload(self, request: Request, company: str, connection: str) -> Answer:
        key = request.headers.get("idempotency-key") if self._switches.idempotency else None
        if key and self.keys.is_running(key):
            return self.error(409, "A request with this Idempotency-Key is still running")
        with self.keys.running(key) if key else nullcontext():
            parts = await self._parts(request)
            fingerprint = (request.headers["content-type"], *((part.head, part.catch.sha256) for part in parts))
            try:
                answer = self.keys.answer(key, fingerprint) if key else None
            except OtherBody:
                return self.error(422, "This Idempotency-Key came before with another body")
            if answer is None:
                await request.pause()
                answer = self._take(request, company, connection, [part for part in parts if part.name == "file"], key)
                if key:
                    self.keys.keep(key, fingerprint, answer)
            return answer

    async def _parts(self, request: Request) -> list[Part]:
        if (request.body.length or 0) > _LARGEST_BODY:
            raise Refused(self.error(413, f"The body has {request.body.length} bytes, more than {_LARGEST_BODY}"))
        keep = min(self._keep, LARGEST_FILE)
        return await read_form(request, lambda _name, _filename: Catch(keep=keep, digest=self._digest))

    def _take(self, request: Request, company: str, connection: str, parts: list[Part], key: str | None) -> Answer:
        if request.forced is not None and not request.stores:
            return request.forced
        if (refusal := self._refusal(company, connection, parts)) is not None:
            return refusal
        taken = parts[:1] if self._switches.keeps_only_first_of_batch else parts
        late = self._switches.store_lag + request.late
        for part in taken:
            if not any(fnmatch.fnmatchcase(part.filename or "", each) for each in self._switches.swallow):
                self.put(self._stored(part, company, connection, key, late), late=late)
        return request.forced or Answer(200)

    def _refusal(self, company: str, connection: str, parts: list[Part]) -> Answer | None:
        if not self._knows_connection(company, connection):
            return self.error(404, f"Connection {connection} was not found")
        status = self._switches.connection_status.get(connection, "Linked")
        if status != "Linked":
            return self.error(
                self._switches.unlinked_status,
                f"The connection is {status}",
                (connection, f"The connection is {status}", "ConnectionStatus"),
            )
        problems = problems_of(parts)
        return self.error(400, "Validation failed", *problems) if problems else None

    def _stored(self, part: Part, company: str, connection: str, key: str | None, late: float) -> Stored:
        name = renamed(part.filename or "", self._switches.rename)
        catch = part.catch
        at = self._clock.now() + late
        return Stored("codat", company, connection, name, catch.content, catch.sha256, catch.size, at, "api", key)

    # reading

    async def _list(self, request: Request, company: str) -> Answer:
        if request.forced is not None:
            return request.forced
        before = self._clock.steady() - self._switches.list_lag
        rows = [filed.row() for filed in self._files.get(company, ()) if filed.at <= before]
        return Answer(200, f"[{','.join(rows)}]".encode(), {"Content-Type": "application/json; charset=utf-8"})

    async def _download(self, request: Request, company: str) -> Answer:
        if request.forced is not None:
            return request.forced
        wanted = request.parameter("date")
        try:
            day = _day(wanted) if wanted else None
        except ValueError:
            return self.error(400, "Validation failed", ("date", f"{wanted!r} is no date", "DateValidator"))
        now = self._clock.steady()
        files = [
            filed
            for filed in self._files.get(company, ())
            if filed.at <= now and (day is None or _is_of(filed.uploaded, day))
        ]
        spool, length = await zip_of(files)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": 'attachment; filename="files.zip"',
        }
        return Answer(200, headers=headers, stream=blocks_of(spool), length=length)

    async def _connection(self, request: Request, company: str, connection: str) -> Answer:
        if request.forced is not None:
            return request.forced
        if not self._knows_connection(company, connection):
            return self.error(404, f"Connection {connection} was not found")
        now = iso(self._clock.now() + self._switches.date_skew)
        return Answer.of_json(
            200,
            {
                "id": connection,
                "integrationId": str(uuid.uuid5(uuid.NAMESPACE_DNS, self._switches.platform)),
                "sourceId": str(uuid.uuid5(uuid.NAMESPACE_DNS, "docferry-simulator")),
                "platformName": self._switches.platform,
                "linkUrl": f"{request.base}/link/{quote(company)}/{quote(connection)}",
                "status": self._switches.connection_status.get(connection, "Linked"),
                "lastSync": now,
                "created": now,
                "sourceType": self._switches.source_type,
            },
        )

    async def _not_found(self, request: Request) -> Answer:
        return request.forced or self.error(404, f"There is nothing at {request.path}")

    async def _not_allowed(self, request: Request) -> Answer:
        return request.forced or self.error(405, f"{request.method} is not allowed here")


def _authorization(key: str) -> str:
    return key if key.startswith("Basic ") else "Basic " + base64.b64encode(key.encode()).decode()


def _is_uuid(text: str) -> bool:
    try:
        return len(text) == 36 and bool(uuid.UUID(text))
    except ValueError:
        return False


def _is_of(uploaded: str, day: date) -> bool:
    """Return whether a listed date-time is of a day; a test may list what is no date."""
    try:
        return _day(uploaded) == day
    except ValueError:
        return False


def _day(text: str) -> date:
    """The day of a date or date-time; in UTC when it names a zone, else as it stands."""
    moment = datetime.fromisoformat(text)
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date()
