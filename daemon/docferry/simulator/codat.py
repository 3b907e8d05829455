"""Simulate Codat's Files API as it is documented: access, uploads, lists and ZIPs."""

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
from docferry.simulator.company_files import CompanyFile, build_zip, read_blocks
from docferry.simulator.filerules import MAX_FILE_SIZE, MAX_FILES, apply_rename, validate
from docferry.simulator.http import Malformed, Request, Response
from docferry.simulator.idempotency import IdempotencyKeys, KeyReused
from docferry.simulator.limits import Limits
from docferry.simulator.multipart import ContentSink, Part, read_form
from docferry.simulator.options import SimulatorOptions
from docferry.simulator.recorder import Recorder, Stored

_MAX_BODY_SIZE = MAX_FILES * MAX_FILE_SIZE + 1024 * 1024

Handler = Callable[[Request], Awaitable[Response]]


class RequestRefused(Exception):
    """Report that a request gets an error response."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class Codat:
    """Serve the Files API. `route` finds the handler of a request; `serve` checks access and calls it."""

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
        self._options = options
        self._clock = clock
        self._recorder = recorder
        self._random = jitter
        self._keep = keep
        self._digest = digest
        self._files: dict[str, list[CompanyFile]] = {}
        self.limits = Limits(options, clock)
        self.keys = IdempotencyKeys(clock)

    def route(self, method: str, segments: list[str]) -> tuple[str, Handler] | None:
        """Return the route's name and its handler, or None for a path of another service."""
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

    async def serve(self, request: Request, handler: Handler) -> Response:
        """Return the response of a request; every response has the rate headers."""
        try:
            self._admit(request)
            response = await handler(request)
        except RequestRefused as refused:
            response = refused.response
        except Malformed as malformed:
            response = self.error(400, str(malformed))
        response.headers = self.limits.headers() | response.headers  # a fault may set its own
        return response

    def release(self, request: Request) -> None:
        """Count the end of a request, with or without a response."""
        if request.admitted is not None:
            self.limits.release(request.admitted)
            request.admitted = None

    def error(
        self, status: int, error: str, *problems: tuple[str, str, str], headers: dict[str, str] | None = None
    ) -> Response:
        """Return an error in Codat's shape; a problem is (itemId, message, validatorName)."""
        names = ("itemId", "message", "validatorName")
        return Response.of_json(
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
        """Store a file. It is listed after `late` and `list_lag` seconds."""
        self._recorder.store(stored, late=late)
        company_file = CompanyFile(
            stored,
            uploaded or iso(stored.at + self._options.date_skew) or "",
            source_type or self._options.source_type,
            integration or self._options.platform,
            self._clock.steady() + late,
        )
        self._files.setdefault(stored.company or "", []).append(company_file)

    def remove(self, company: str, name: str) -> None:
        """Remove every file of this name, which no request can do."""
        files = self._files.get(company, [])
        files[:] = [company_file for company_file in files if company_file.stored.name != name]
        self._recorder.stored[:] = [
            each for each in self._recorder.stored if (each.remote, each.company, each.name) != ("codat", company, name)
        ]

    def reset(self) -> None:
        """Remove all files, counts and idempotency keys."""
        self._files.clear()
        self.limits.reset()
        self.keys.reset()

    # access

    def _admit(self, request: Request) -> None:
        if (wait := self.limits.minute(request.connection.peer)) is not None:
            raise RequestRefused(self._too_many("too many requests a minute from this address", wait))
        if request.headers.get("authorization") != _authorization(self._options.codat_key):
            raise RequestRefused(self.error(401, "Unauthorized"))
        if (wait := self.limits.day()) is not None:
            raise RequestRefused(self._too_many("the daily quota is used up", wait))
        if len(request.segments) < 2:
            return  # the path contains no company
        company = request.segments[1]
        if not self.limits.acquire(company):
            raise RequestRefused(self._too_many("too many requests at once for this company", 1.0))
        request.admitted = company
        if not self._has_company(company):
            raise RequestRefused(self.error(404, f"Company {company} was not found"))

    def _too_many(self, error: str, wait: float) -> Response:
        return self.error(429, error, headers={"Retry-After": str(max(1, int(wait + 0.999)))})

    def _has_company(self, company: str) -> bool:
        if self._options.companies is None:
            return _is_uuid(company)
        return company in self._options.companies

    def _has_connection(self, company: str, connection: str) -> bool:
        if self._options.companies is None:
            return _is_uuid(connection)
        return connection in self._options.companies[company]

    # upload

    async def _upload(self, request: Request, company: str, connection: str) -> Response:
        key = request.headers.get("idempotency-key") if self._options.idempotency else None
        if key and self.keys.is_running(key):
            return self.error(409, "A request with this Idempotency-Key is still running")
        with self.keys.running(key) if key else nullcontext():
            parts = await self._parts(request)
            fingerprint = (request.headers["content-type"], *((part.head, part.sink.sha256) for part in parts))
            try:
                response = self.keys.response(key, fingerprint) if key else None
            except KeyReused:
                return self.error(422, "This Idempotency-Key was used before with another body")
            if response is None:
                await request.pause()
                response = self._store_parts(
                    request, company, connection, [part for part in parts if part.name == "file"], key
                )
                if key:
                    self.keys.keep(key, fingerprint, response)
            return response

    async def _parts(self, request: Request) -> list[Part]:
        if (request.body.length or 0) > _MAX_BODY_SIZE:
            raise RequestRefused(
                self.error(413, f"The body has {request.body.length} bytes, more than {_MAX_BODY_SIZE}")
            )
        keep = min(self._keep, MAX_FILE_SIZE)
        return await read_form(request, lambda _name, _filename: ContentSink(keep=keep, digest=self._digest))

    def _store_parts(
        self, request: Request, company: str, connection: str, parts: list[Part], key: str | None
    ) -> Response:
        if request.forced is not None and not request.stores:
            return request.forced
        if (refusal := self._refusal(company, connection, parts)) is not None:
            return refusal
        taken = parts[:1] if self._options.keeps_only_first_of_batch else parts
        late = self._options.store_lag + request.late
        for part in taken:
            if not any(fnmatch.fnmatchcase(part.filename or "", each) for each in self._options.swallow):
                self.put(self._stored(part, company, connection, key, late), late=late)
        return request.forced or Response(200)

    def _refusal(self, company: str, connection: str, parts: list[Part]) -> Response | None:
        if not self._has_connection(company, connection):
            return self.error(404, f"Connection {connection} was not found")
        status = self._options.connection_status.get(connection, "Linked")
        if status != "Linked":
            return self.error(
                self._options.unlinked_status,
                f"The connection is {status}",
                (connection, f"The connection is {status}", "ConnectionStatus"),
            )
        problems = validate(parts)
        return self.error(400, "Validation failed", *problems) if problems else None

    def _stored(self, part: Part, company: str, connection: str, key: str | None, late: float) -> Stored:
        name = apply_rename(part.filename or "", self._options.rename)
        sink = part.sink
        at = self._clock.now() + late
        return Stored("codat", company, connection, name, sink.content, sink.sha256, sink.size, at, "api", key)

    # reading

    async def _list(self, request: Request, company: str) -> Response:
        if request.forced is not None:
            return request.forced
        before = self._clock.steady() - self._options.list_lag
        rows = [company_file.row() for company_file in self._files.get(company, ()) if company_file.at <= before]
        return Response(200, f"[{','.join(rows)}]".encode(), {"Content-Type": "application/json; charset=utf-8"})

    async def _download(self, request: Request, company: str) -> Response:
        if request.forced is not None:
            return request.forced
        wanted = request.parameter("date")
        try:
            day = _day(wanted) if wanted else None
        except ValueError:
            return self.error(400, "Validation failed", ("date", f"{wanted!r} is no date", "DateValidator"))
        now = self._clock.steady()
        files = [
            company_file
            for company_file in self._files.get(company, ())
            if company_file.at <= now and (day is None or _is_of(company_file.uploaded, day))
        ]
        spool, length = await build_zip(files)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": 'attachment; filename="files.zip"',
        }
        return Response(200, headers=headers, stream=read_blocks(spool), length=length)

    async def _connection(self, request: Request, company: str, connection: str) -> Response:
        if request.forced is not None:
            return request.forced
        if not self._has_connection(company, connection):
            return self.error(404, f"Connection {connection} was not found")
        now = iso(self._clock.now() + self._options.date_skew)
        return Response.of_json(
            200,
            {
                "id": connection,
                "integrationId": str(uuid.uuid5(uuid.NAMESPACE_DNS, self._options.platform)),
                "sourceId": str(uuid.uuid5(uuid.NAMESPACE_DNS, "docferry-simulator")),
                "platformName": self._options.platform,
                "linkUrl": f"{request.base}/link/{quote(company)}/{quote(connection)}",
                "status": self._options.connection_status.get(connection, "Linked"),
                "lastSync": now,
                "created": now,
                "sourceType": self._options.source_type,
            },
        )

    async def _not_found(self, request: Request) -> Response:
        return request.forced or self.error(404, f"There is nothing at {request.path}")

    async def _not_allowed(self, request: Request) -> Response:
        return request.forced or self.error(405, f"{request.method} is not allowed here")


def _authorization(key: str) -> str:
    return key if key.startswith("Basic ") else "Basic " + base64.b64encode(key.encode()).decode()


def _is_uuid(text: str) -> bool:
    try:
        return len(text) == 36 and bool(uuid.UUID(text))
    except ValueError:
        return False


def _is_of(uploaded: str, day: date) -> bool:
    """Return whether a listed date-time is of a day; a test may list text that is no date."""
    try:
        return _day(uploaded) == day
    except ValueError:
        return False


def _day(text: str) -> date:
    """Return the day of a date or date-time: in UTC if it names a zone, else as written."""
    moment = datetime.fromisoformat(text)
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date()
