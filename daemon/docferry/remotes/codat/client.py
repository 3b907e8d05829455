"""Upload to Codat's Files API, read its list and its dated ZIPs, and check keys and connections."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

from anyio import CancelScope
from anyio.to_thread import run_sync
from msgspec import Struct

from docferry.clock import Clock
from docferry.errors import RemoteError
from docferry.model import Finding, KnownUploads, Receipt, Target, Transfer, UploadItem
from docferry.remotes.codat.company_list import MAX_LIST_BYTES, ListedFile, ListReader
from docferry.remotes.codat.errors import correlation, is_receipt, not_codat, quota, refusal
from docferry.remotes.codat.reconcile import ListedUpload, Members, Reconciliation, lookback
from docferry.remotes.codat.zip_digests import ZipCache, count
from docferry.remotes.http import (
    Destination,
    Form,
    HttpClient,
    Response,
    Sink,
    file_sink,
    parse_json,
    require_body_complete,
    require_whole,
    safe_text,
)
from docferry.remotes.protocol import (
    ALWAYS_PERMITTED,
    NOTHING,
    ApiKey,
    Checked,
    Health,
    Lookback,
    Rules,
    SendPermit,
    failed,
)
from docferry.remotes.rate_limits import CompanyLimiter, MinuteLimiter

EXTENSIONS: Final = frozenset(["pdf", "xls", "xlsx", "xlsb", "csv", "doc", "docx", "ppt", "pptx", "jpeg", "jpg", "png"])
CODAT_RULES: Final = Rules("Codat", max_size=10 * 1024 * 1024, extensions=EXTENSIONS)
_LARGEST_ARCHIVE: Final = 8 * 1024**3
#: The first bytes of every ZIP, including an empty one.
_ZIP: Final = b"PK"


class CodatOptions(Struct, frozen=True):
    """Hold the settings of `[codat]` that the client needs."""

    base_url: str
    requests_per_minute: int = 1000
    concurrent_per_company: int = 10
    list_lag: float = 30.0  # seconds


class Codat:
    """Call Codat's Files API."""

    name: Final = "codat"
    rules: Final = CODAT_RULES

    def __init__(self, http: HttpClient, options: CodatOptions, *, key: ApiKey, clock: Clock, spool: Path) -> None:
        self._http = http
        self._base = options.base_url.rstrip("/")
        self._key = key
        self._clock = clock
        self._spool = spool
        self.lookup_after = options.list_lag
        self.absent_after = 2.5 * options.list_lag
        self._minute = MinuteLimiter(options.requests_per_minute, clock)
        self._companies = CompanyLimiter(options.concurrent_per_company)
        self._quota = Health()
        self._zips = ZipCache("", ())

    @property
    def health(self) -> Health:
        """Return the latest quota, and the state of the connection."""
        quota, http = self._quota, self._http
        return Health(
            quota.limit, quota.remaining, quota.reset, http.clock_offset, http.last_response, requests=http.requests
        )

    async def send(self, items: Sequence[UploadItem], key: str, permit: SendPermit = ALWAYS_PERMITTED) -> Receipt:
        """Upload all items in one request to the connection of the first; status 200 is the receipt."""
        target = items[0].transfer.target
        form = Form(items)
        headers = {"Content-Type": form.content_type, "Idempotency-Key": key}
        path = f"{_connection_path(target)}/files"
        response = await self._ask("POST", path, target, headers=headers, body=form, permit=permit)
        if not is_receipt(response):
            raise not_codat(response)
        require_body_complete(response, "Codat")
        return Receipt(response.status, correlation_id=correlation(response, response.json_object()))

    def lookback(self, doubts: Sequence[Transfer]) -> Lookback:
        """Return the times from which a lookup of these doubts needs the known uploads."""
        return lookback(doubts)

    async def lookup(
        self, doubts: Sequence[Transfer], accounted: KnownUploads, unsettled: KnownUploads = NOTHING
    ) -> Mapping[int, Finding]:
        """Read the list once for all doubts, then the ZIPs of the dates that remain open."""
        if not doubts:
            return {}
        company = doubts[0].target.company_id or ""
        listed = await self.listing(company)
        offset = self._http.clock_offset or 0.0

        def reconcile() -> tuple[Reconciliation, dict[int, Finding]]:
            rows = [ListedUpload.read(each.file_name, each.uploaded, offset) for each in listed]
            reconciliation = Reconciliation(doubts, accounted, unsettled, rows, self._clock.now())
            return reconciliation, reconciliation.by_list()

        reconciliation, found = await run_sync(reconcile)
        if len(found) == len(doubts):
            return found
        days = [None] if reconciliation.needs_everything else [day.isoformat() for day in sorted(reconciliation.days)]
        if not self._zips.is_for(company, listed):
            self._zips = ZipCache(company, listed)
        # An older ZIP proves no absence: the document may have been stored after it was read.
        sent = max(each.last_sent or each.created for each in doubts)
        return found | reconciliation.by_archive(await self._members(company, days, sent + self.absent_after))

    async def listing(self, company: str) -> list[ListedFile]:
        """Return the files of a company, uploaded through the API or on Codat's own upload page."""
        reader = ListReader()
        path, to = f"{_company_path(company)}/files", Destination(lambda *_: reader.sink(), MAX_LIST_BYTES)
        response = await self._ask("GET", path, Target("codat", company), to=to)
        require_whole(response, "Codat")
        return reader.rows()

    async def fetch(self, company: str, day: str | None, to: Path, limit: int = _LARGEST_ARCHIVE) -> None:
        """Download the ZIP with the files of a day (YYYY-MM-DD), or of all days, into `to`, up to `limit` bytes."""
        query = f"?date={quote(day)}" if day else ""
        path = f"{_company_path(company)}/files/download{query}"
        response = await self._ask(
            "GET",
            path,
            Target("codat", company),
            to=Destination(lambda status, _: _zip_sink(to, status), min(limit, _LARGEST_ARCHIVE)),
        )
        require_whole(response, "Codat")

    async def connection(self, company: str, connection: str) -> Mapping[str, Any]:
        """Return Codat's data about a connection: its `status` must be `Linked` for uploads."""
        target = Target("codat", company, connection)
        found = parse_json(await self._ask("GET", _connection_path(target), target), "Codat")
        return found if isinstance(found, dict) else {}

    async def check(self, targets: Sequence[Target]) -> list[Checked]:
        """Check the key with the list of each company, and the status of each connection."""
        found: list[Checked] = []
        for company in dict.fromkeys(target.company_id for target in targets if target.company_id):
            found.append(await self._check_company(company))
            if not found[-1].ok:
                continue
            connections = dict.fromkeys(each.connection_id for each in targets if each.company_id == company)
            found += [await self._check_connection(company, each) for each in connections if each]
        return found

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _members(self, company: str, days: Sequence[str | None], read_since: float) -> Members:
        """Return the members of the ZIPs of these days (None: all days), read at `read_since` or later."""
        members, zips = Members(), self._zips  # the lookup of another company may replace it meanwhile
        for day in days:
            found = zips.get(day, read_since)
            if found is None:
                now = self._clock.now()
                found = await self.read_zip(company, day)
                zips.put(day, now, found)
            members.update(found)
        return members

    async def read_zip(self, company: str, day: str | None) -> Members:
        """Return the members of one ZIP, which is not stored."""
        members = Members()
        await run_sync(lambda: self._spool.mkdir(mode=0o700, parents=True, exist_ok=True))
        archive = self._spool / f"doubt-{uuid4().hex}.zip"
        try:
            await self.fetch(company, day, archive)
            await run_sync(count, archive, members)
        finally:
            with CancelScope(shield=True):
                await run_sync(lambda: archive.unlink(missing_ok=True))
        return members

    # one request

    async def _ask(
        self, method: str, path: str, target: Target, *, permit: SendPermit = ALWAYS_PERMITTED, **more: Any
    ) -> Response:
        """Return a 2xx response about a company, within the limits. Raises RemoteError for any other."""
        headers = {"Authorization": _authorization(self._key.value), **more.pop("headers", {})}
        async with self._companies.slot(target.company_id or ""):
            await self._minute.acquire(permit)
            response = await self._http.call(method, self._base + path, headers=headers, **more)
        self._quota = quota(response, self._clock.now()) or self._quota
        if not response.ok:
            if response.status == 401:
                self._key.reload()
            raise refusal(response, target, self._clock.now())
        return response

    # checks

    async def _check_company(self, company: str) -> Checked:
        try:
            count = len(await self.listing(company))
        except RemoteError as error:
            return failed(f"codat company {company}", error, _cure(error))
        return Checked(f"codat company {company}", ok=True, detail=f"the key works; {count} files are listed")

    async def _check_connection(self, company: str, connection: str) -> Checked:
        subject = f"codat connection {connection}"
        try:
            status = safe_text((await self.connection(company, connection)).get("status"))
        except RemoteError as error:
            return failed(subject, error, _cure(error))
        if status == "Linked":
            return Checked(subject, ok=True, detail="Linked")
        return Checked(subject, ok=False, detail=f"its status is {status}", cure="link it in Codat's portal")


def _authorization(key: str | None) -> str:
    key = (key or "").strip()
    if not key:
        raise RemoteError(
            "there is no API key for Codat; set CODAT_API_KEY or api_key_file in [codat]", status=401, scope="codat"
        )
    return key if key.startswith("Basic ") else "Basic " + base64.b64encode(key.encode()).decode("ascii")


@asynccontextmanager
async def _zip_sink(to: Path, status: int) -> AsyncIterator[Sink]:
    """Open a sink that refuses a body unless it begins like a ZIP: another body may be endless."""
    start = b""
    async with file_sink(to) as sink:

        async def checked(block: bytes) -> None:
            nonlocal start
            start += block[: len(_ZIP) - len(start)]
            if not _ZIP.startswith(start):
                raise not_codat(Response(status, {}, start))
            await sink(block)

        yield checked


@lru_cache(maxsize=512)
def _company_path(company: str) -> str:
    return f"/companies/{quote(company, safe='')}"


@lru_cache(maxsize=512)
def _connection_path(target: Target) -> str:
    return f"{_company_path(target.company_id or '')}/connections/{quote(target.connection_id or '', safe='')}"


def _cure(error: RemoteError) -> str:
    if error.kind in ("unreachable", "timeout"):
        return "check base_url, proxy and ca_file in [codat], and the network"
    return {401: "set CODAT_API_KEY", 403: "use a key with access", 404: "correct company_id and connection_id"}.get(
        error.status or 0, "see the detail; try again later"
    )
