"""Upload to Wootiv: Wootiv signs a URL, and its storage (S3) stores and serves the bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from docferry.clock import Clock
from docferry.errors import ErrorDetails, NotNow, RemoteError
from docferry.model import Finding, Found, KnownUploads, Receipt, Target, Transfer, UploadItem
from docferry.remotes import download
from docferry.remotes.download import Fetched
from docferry.remotes.http import (
    Body,
    Destination,
    Form,
    HttpClient,
    PlainBody,
    Response,
    Sink,
    parse_json,
    require_body_complete,
    require_whole,
    retry_after,
    safe_text,
    should_retry,
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
from docferry.remotes.wootiv import direct, listing, s3
from docferry.remotes.wootiv.listing import StoredObject
from docferry.remotes.wootiv.s3 import ObjectStat
from docferry.remotes.wootiv.signed_url import SignedUpload, SignedUrlPolicy, unusable

WOOTIV_RULES: Final = Rules("Wootiv", max_size=5 * 1024**3, needs_md5=True)
_ADVICE: Final = {
    401: "Wootiv does not accept the API key: set a valid one",
    402: "Wootiv's account is at its limit or has expired: settle it with Wootiv",
    403: "Wootiv denies this API key the request: use another key",
    429: "Wootiv requests a pause",
}


class WootivOptions(Struct, frozen=True):
    """Hold the settings of `[wootiv]` that the client needs."""

    base_url: str
    direct: frozenset[str] = frozenset()  # the mappings with via = "direct"


class Wootiv:
    """Call Wootiv and its storage."""

    name: Final = "wootiv"
    rules: Final = WOOTIV_RULES
    lookup_after: Final = 0.0
    absent_after: Final = 0.0

    def __init__(
        self,
        http: HttpClient,
        storage: HttpClient,
        urls: SignedUrlPolicy,
        options: WootivOptions,
        *,
        key: ApiKey,
        clock: Clock,
    ) -> None:
        self._http, self._s3 = http, storage
        self._urls = urls
        self._base = options.base_url.rstrip("/")
        self._direct = options.direct
        self._key = key
        self._clock = clock

    @property
    def health(self) -> Health:
        """Return the state of the connections; Wootiv has no quota."""
        http = self._http
        requests = http.requests + self._s3.requests
        return Health(clock_offset=http.clock_offset, last_answer=http.last_response, requests=requests)

    async def send(
        self,
        items: Sequence[UploadItem],
        key: str,  # noqa: ARG002 - a PUT needs no idempotency key
        permit: SendPermit = ALWAYS_PERMITTED,
    ) -> Receipt:
        """Request a signed URL and send the bytes to it. A 2xx of the storage with a matching ETag is the receipt.

        Documents of mappings with via = "direct" go to Wootiv itself, several in one request. A name that a form cannot
        contain uses a signed URL.
        """
        first = items[0].transfer
        if first.mapping in self._direct and direct.can_name(first.remote_name):
            return await self._send_direct(items)
        (item,) = items
        signed = await self._sign(item.transfer.remote_name)
        if not permit.is_granted:
            raise NotNow
        response = await self._deliver(signed, item)
        if not response.ok:
            raise s3.refusal(response, self._clock.now())
        return s3.receipt(require_body_complete(response, "S3"), item.source.md5)

    def lookback(self, doubts: Sequence[Transfer]) -> Lookback:
        """Return times from which no upload has to be counted."""
        now = min((each.created for each in doubts), default=self._clock.now())
        return Lookback(now, now)

    async def lookup(
        self,
        doubts: Sequence[Transfer],
        accounted: KnownUploads,  # noqa: ARG002 - the signature of every remote
        unsettled: KnownUploads = NOTHING,  # noqa: ARG002 - the signature of every remote
    ) -> Mapping[int, Finding]:
        """Return ABSENT without a request if the PUT can be repeated; read the object of a direct upload."""
        found = {}
        for each in doubts:
            if each.mapping in self._direct:
                found[each.id] = await self._lookup_object(each)
            else:
                found[each.id] = Finding(Found.ABSENT, "a PUT may be repeated: it leaves one object", "put")
        return found

    async def fetch(
        self, object_name: str, to: Path, etag: str | None, limit: int = download.MAX_OBJECT_SIZE
    ) -> Fetched:
        """Download an object into `to`, up to `limit` bytes, unless its ETag is unchanged; resume an earlier part."""
        signed = await self._ask("GET", f"/aws/buckets/{quote(object_name.strip('/'))}")
        url = self._urls.check(signed.get("signedUrl"))
        return await download.fetch(self._s3, url, to, download.Wanted(etag, limit), self._clock.now())

    async def stat(self, object_name: str) -> ObjectStat | None:
        """Return size and ETag of an object, by reading its first byte; None if Wootiv or the storage lacks it."""
        try:
            signed = await self._ask("GET", f"/aws/buckets/{quote(object_name.strip('/'))}")
        except RemoteError as error:
            if error.kind == "answer" and error.status == 404:
                return None  # Wootiv's own structured response about this name
            raise
        return await self._stat_url(signed.get("signedUrl"))

    async def _stat_url(self, signed_url: object) -> ObjectStat | None:
        url = self._urls.check(signed_url)
        # A URL is signed for GET only. If a server sends the whole object, the body is not read to its end.
        response = await self._s3.call("GET", url, headers={"Range": "bytes=0-0"}, to=Destination(limit=4096, raw=True))
        if s3.is_absent(response):
            return None
        if response.status not in (200, 206):
            raise s3.refusal(response, self._clock.now())
        return s3.stat(response)

    async def objects(self) -> list[StoredObject]:
        """Return the objects that Wootiv lists."""
        return listing.objects(await self._ask_any("GET", "/aws/objects"))

    async def buckets(self) -> list[str]:
        """Return the names of the buckets."""
        return listing.buckets(await self._ask_any("GET", "/aws/buckets"))

    async def check_buckets(self) -> Checked:
        """Request the health of Wootiv's buckets."""
        try:
            await self._request("GET", "/aws/buckets/health")
        except RemoteError as error:
            return failed("wootiv buckets", error, "ask Wootiv about its storage")
        return Checked("wootiv buckets", ok=True, detail="healthy")

    async def check(self, targets: Sequence[Target]) -> list[Checked]:  # noqa: ARG002 - there is only one target
        """Request a signed URL without using it, and the health of the buckets."""
        try:
            signed = await self._sign("docferry-check.txt")
        except RemoteError as error:
            cure = "set WOOTIV_API_KEY" if error.status == 401 else "check base_url, proxy and ca_file in [wootiv]"
            found = failed("wootiv", error, cure)
            return [replace(found, cure="try again later") if found.passes and error.status else found]
        how = "PUT" if signed.is_put else "POST"
        key = Checked("wootiv", ok=True, detail=f"the key works; documents are uploaded by {how}")
        return [key, await self.check_buckets()]

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()
        await self._s3.aclose()

    async def _sign(self, name: str) -> SignedUpload:
        said = await self._ask("POST", "/aws/get-signed-put-url", {"filename": name})
        fields = said.get("fields")
        pairs = [(str(k), str(v)) for k, v in fields.items()] if isinstance(fields, dict) else []
        signed = SignedUpload(self._urls.check(said.get("url")), pairs)
        if not signed.is_put and not signed.is_post:
            raise unusable("Wootiv signed neither a PUT nor a POST")
        return signed

    async def _deliver(self, signed: SignedUpload, item: UploadItem) -> Response:
        """Send the bytes without Wootiv's key: the signed URL is the permission."""
        if signed.is_put:
            headers = signed.headers(item.transfer.remote_name, item.source.md5)
            return await self._s3.call("PUT", signed.url, headers=headers, body=PlainBody(item))
        # Add no field to a form: its policy lists the allowed fields.
        form = Form([item], signed.fields)
        return await self._s3.call("POST", signed.url, headers={"Content-Type": form.content_type}, body=form)

    async def _send_direct(self, items: Sequence[UploadItem]) -> Receipt:
        """Send the documents to Wootiv itself, and prove each by the ETag behind its signed read URL."""
        path, form = direct.request(items)
        response = await self._request("POST", path, {"Content-Type": form.content_type}, form)
        require_body_complete(response, "Wootiv")
        urls = direct.read_urls(response, items)
        etags = [await self._prove(item, url) for item, url in zip(items, urls, strict=True)]
        return Receipt(response.status, etag=etags[0] if len(etags) == 1 else None, proof="etag")

    async def _prove(self, item: UploadItem, signed_url: object) -> str:
        """Return the ETag of a newly uploaded object. Raises a doubt or a repetition if it cannot be proved."""
        transfer = replace(item.transfer, md5=item.source.md5)
        try:
            stat = await (self._stat_url(signed_url) if signed_url else self.stat(transfer.remote_name))
            finding = direct.confirmed(transfer, stat) or await self._compare(transfer)
        except RemoteError as error:
            raise RemoteError(
                f"Wootiv confirmed the document, but its object cannot be read as proof: {error}",
                kind="cut",
                status=error.status,
                body_complete=True,
                details=replace(error.details, about_document=False),
            ) from error
        if finding.found is Found.PRESENT:
            return stat.etag if stat is not None else ""
        kind = "cut" if stat is None else "redo"  # the storage may show it later
        raise RemoteError(f"Wootiv confirmed the document, but {finding.detail}", kind=kind, body_complete=True)

    async def _lookup_object(self, transfer: Transfer) -> Finding:
        return direct.confirmed(transfer, await self.stat(transfer.remote_name)) or await self._compare(transfer)

    async def _compare(self, transfer: Transfer) -> Finding:
        """Read a whole object whose ETag is no MD5, and compare its SHA-256 with that of the document."""
        digest = hashlib.sha256()

        @asynccontextmanager
        async def hashing(_status: int, _headers: Mapping[str, str]) -> AsyncIterator[Sink]:
            async def take(block: bytes) -> None:
                digest.update(block)

            yield take

        signed = await self._ask("GET", f"/aws/buckets/{quote(transfer.remote_name.strip('/'))}")
        url = self._urls.check(signed.get("signedUrl"))
        response = await self._s3.call("GET", url, to=Destination(hashing, WOOTIV_RULES.max_size, raw=True))
        if response.status != 200:
            raise s3.refusal(response, self._clock.now())
        require_whole(response, "S3")
        if digest.hexdigest() == transfer.sha256:
            return Finding(Found.PRESENT, "the object has the bytes of the document", "etag")
        return Finding(Found.ABSENT, "the object has other bytes", "etag")

    async def _ask(self, method: str, path: str, question: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        """Return the JSON object of Wootiv's response to a small request. Raises RemoteError otherwise."""
        found = await self._ask_any(method, path, question)
        return found if isinstance(found, dict) else {}

    async def _ask_any(self, method: str, path: str, question: Mapping[str, str] | None = None) -> object:
        content = json.dumps(question).encode() if question is not None else None
        return parse_json(await self._request(method, path, {"Content-Type": "application/json"}, content), "Wootiv")

    async def _request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Body | bytes | None = None
    ) -> Response:
        """Return a 2xx response of Wootiv's API. Raises RemoteError for any other."""
        headers = {"Authorization": f"Bearer {self._secret()}", **(headers or {})}
        response = await self._http.call(method, self._base + path, headers=headers, body=body)
        if not response.ok:
            if response.status == 401:
                self._key.reload()
            raise self._refusal(response, has_document=isinstance(body, Form))
        return response

    def _secret(self) -> str:
        key = (self._key.value or "").strip().removeprefix("Bearer ")
        if key:
            return key
        raise RemoteError(
            "there is no API key for Wootiv; set WOOTIV_API_KEY or api_key_file in [wootiv]", status=401, scope="wootiv"
        )

    def _refusal(self, response: Response, *, has_document: bool) -> RemoteError:
        """Return the error for a response of Wootiv's API other than 2xx."""
        maybe_stored = response.maybe_complete
        status, said, wish = response.status, response.json_object(), should_retry(response)
        pause = retry_after(response, self._clock.now())
        if 300 <= status < 400:
            message = f"Wootiv's address redirects, without the key: correct base_url in [wootiv] ({status})"
            return RemoteError(message, kind="redirect", status=status)
        is_stranger = not said and bool(response.content.strip()) and response.body_error is None and status != 429
        if is_stranger or (status == 413 and not has_document):
            # A 413 for a request of a few words cannot come from Wootiv.
            return RemoteError(
                f"another server than Wootiv answered: check base_url and proxies ({status})",
                kind="not_ours",
                status=status,
                body_complete=maybe_stored,
                details=ErrorDetails(retry_after=pause),
            )
        scope = "wootiv" if status in _ADVICE else None
        default = "Wootiv reports an internal error" if status >= 500 else "Wootiv refused the request"
        words = safe_text(said.get("message") or said.get("error") or "")
        # Validation refuses this name; any other 4xx concerns the request.
        about_document = status in {400, 413, 422} and wish is not True and bool(words)
        details = ErrorDetails(
            retry_after=pause,
            should_retry=wish,
            correlation_id=safe_text(said.get("requestId") or response.headers.get("x-request-id", ""))[:100] or None,
            about_document=about_document,
        )
        message = f"{_ADVICE.get(status, default)} ({status}){f': {words}' if words else ''}"
        return RemoteError(message, status=status, body_complete=maybe_stored, scope=scope, details=details)
