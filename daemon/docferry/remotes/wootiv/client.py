"""Wootiv: it signs a URL, and S3 behind it takes and gives the bytes."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

from docferry.clock import Clock
from docferry.errors import NotNow, RemoteError
from docferry.model import Finding, Found, KnownUploads, Receipt, Target, Transfer, UploadItem
from docferry.remotes import download
from docferry.remotes.download import Fetched
from docferry.remotes.http import (
    Form,
    HttpClient,
    PlainBody,
    Response,
    content_type,
    parse_json,
    require_body_complete,
    retry_after,
    safe_text,
    should_retry,
)
from docferry.remotes.protocol import NOTHING, Checked, Health, MayGo, Rules, Since, always, clocks, failed
from docferry.remotes.wootiv import s3

RULES: Final = Rules("Wootiv", max_size=5 * 1024**3, needs_md5=True)
_GATES: Final = {
    401: "Wootiv does not accept the API key: set a valid one",
    402: "Wootiv's account is at its limit or has expired: settle it with Wootiv",
    403: "Wootiv denies this API key what it was asked: use another key",
    429: "Wootiv asks for a pause",
}
#: S3 believes a signature for minutes around its own time.
_CLOCK_TOLERANCE: Final = 300.0
#: Headers that a request sets by itself.
_OURS: Final = frozenset({"host", "content-length"})
_DIGEST: Final = "content-md5"


class Wootiv:
    """The shore. `key` is asked before each request, so that a renewed key counts at once."""

    name: Final = "wootiv"
    rules: Final = RULES
    find_after: Final = 0.0
    confirm_after: Final = 0.0

    def __init__(
        self,
        http: HttpClient,
        storage: HttpClient,
        *,
        base_url: str,
        key: Callable[[], str | None],
        clock: Clock,
    ) -> None:
        self._http, self._s3 = http, storage
        self._base = base_url.rstrip("/")
        self._key = key
        self._clock = clock

    @property
    def health(self) -> Health:
        http = self._http
        requests = http.requests + self._s3.requests
        return Health(clock_offset=http.clock_offset, last_answer=http.last_response, requests=requests)

    async def send(
        self,
        items: Sequence[UploadItem],
        key: str,  # noqa: ARG002 - a PUT needs none
        may_go: MayGo = always,
    ) -> Receipt:
        """A signed URL, then the bytes to it. S3's 2xx with a fitting ETag is the receipt."""
        (item,) = items
        signed = await self._sign(item.transfer.remote_name)
        if not may_go():
            raise NotNow
        answer = await self._deliver(signed, item)
        if not answer.ok:
            raise s3.refusal(answer, self._clock.now())
        return s3.receipt(require_body_complete(answer, "S3"), item.source.md5)

    def since(self, doubts: Sequence[Transfer]) -> Since:
        """Nothing is counted here."""
        now = min((each.created for each in doubts), default=self._clock.now())
        return Since(now, now)

    async def find(
        self,
        doubts: Sequence[Transfer],
        accounted: KnownUploads,  # noqa: ARG002 - the same for every remote
        unsettled: KnownUploads = NOTHING,  # noqa: ARG002 - as above
    ) -> Mapping[int, Finding]:
        """Nothing needs to be asked: a PUT to the same name leaves one object."""
        return {each.id: Finding(Found.ABSENT, "a PUT may be repeated: it leaves one object", "put") for each in doubts}

    async def fetch(self, object_name: str, to: Path, etag: str | None) -> Fetched:
        """The object into the file `to`, unless it still has this ETag. What an earlier call left there is resumed."""
        signed = await self._ask("GET", f"/aws/buckets/{quote(object_name.strip('/'))}")
        url = self._checked_url(signed.get("signedUrl"))
        return await download.fetch(self._s3, url, to, etag, self._clock.now())

    async def check(self, targets: Sequence[Target]) -> list[Checked]:  # noqa: ARG002 - there is one target
        """A signed URL is asked for, and not used."""
        try:
            signed = await self._sign("docferry-check.txt")
        except RemoteError as error:
            cure = "set WOOTIV_API_KEY" if error.status == 401 else "check base_url, proxy and ca_file in [wootiv]"
            found = failed("wootiv", error, cure)
            return [replace(found, cure="try again later") if found.passes and error.status else found]
        how = "PUT" if signed.is_put else "POST"
        clock = clocks("Wootiv", self._http.clock_offset, _CLOCK_TOLERANCE)
        return [Checked("wootiv", ok=True, detail=f"the key works; documents go up by {how}"), *clock]

    async def aclose(self) -> None:
        await self._http.aclose()
        await self._s3.aclose()

    # uploads

    async def _sign(self, name: str) -> _Signed:
        said = await self._ask("POST", "/aws/get-signed-put-url", {"filename": name})
        fields = said.get("fields")
        pairs = [(str(k), str(v)) for k, v in fields.items()] if isinstance(fields, dict) else []
        signed = _Signed(self._checked_url(said.get("url")), pairs)
        if not signed.is_put and not signed.is_post:
            raise _unusable("Wootiv signed neither a PUT nor a POST")
        return signed

    async def _deliver(self, signed: _Signed, item: UploadItem) -> Response:
        """The bytes, without the Wootiv key: the URL is permission enough."""
        if signed.is_put:
            headers = signed.headers(item.transfer.remote_name, item.source.md5)
            return await self._s3.call("PUT", signed.url, headers=headers, body=PlainBody(item))
        # Nothing is added to a form: its policy says which fields there may be.
        form = Form([item], signed.fields)
        return await self._s3.call("POST", signed.url, headers={"Content-Type": form.content_type}, body=form)

    def _checked_url(self, url: object) -> str:
        parts = urlsplit(url) if isinstance(url, str) and url.isprintable() else urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise _unusable("Wootiv's answer has no URL")
        if parts.scheme == "http" and self._base.startswith("https:"):
            raise _unusable("Wootiv gave a URL without TLS")
        return str(url)

    async def _ask(self, method: str, path: str, question: Mapping[str, str] | None = None) -> Mapping[str, Any]:
        """Wootiv's own answer to a small question; RemoteError when it has none."""
        headers = {"Authorization": f"Bearer {self._secret()}", "Content-Type": "application/json"}
        content = json.dumps(question).encode() if question is not None else None
        answer = await self._http.call(method, self._base + path, headers=headers, body=content)
        if not answer.ok:
            raise self._refusal(answer)
        found = parse_json(answer, "Wootiv")
        return found if isinstance(found, dict) else {}

    def _secret(self) -> str:
        key = (self._key() or "").strip().removeprefix("Bearer ")
        if key:
            return key
        raise RemoteError(
            "there is no API key for Wootiv; set WOOTIV_API_KEY or api_key_file in [wootiv]", status=401, scope="wootiv"
        )

    def _refusal(self, answer: Response) -> RemoteError:
        status, said = answer.status, answer.json_object()
        kind, scope, wish = "answer", "wootiv" if status in _GATES else None, should_retry(answer)
        cure = _GATES.get(status, "Wootiv has a problem of its own" if status >= 500 else "Wootiv refused the request")
        if 300 <= status < 400:
            kind, cure = (
                "redirect",
                "Wootiv's address redirects, without the key: mend base_url in [wootiv]",
            )
        elif (answer.is_html and status in (401, 402, 403, 404)) or status == 413:
            # A question of a few words is too large for nobody: this is about no document.
            kind, scope, cure = "not_ours", None, "something that is not Wootiv answered: check base_url and proxies"
        elif status == 422 and wish is None:
            wish = False  # validation: the same question brings the same answer
        words = safe_text(said.get("message") or said.get("error") or "")
        return RemoteError(
            f"{cure} ({status}){f': {words}' if words else ''}",
            kind=kind,
            status=status,
            retry_after=retry_after(answer, self._clock.now()),
            should_retry=wish,
            scope=scope,
            correlation_id=safe_text(said.get("requestId") or answer.headers.get("x-request-id", ""))[:100] or None,
        )


@dataclass(slots=True)
class _Signed:
    """Permission to put one object; the URL's query is a secret until it expires."""

    url: str
    fields: Sequence[tuple[str, str]]
    query: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.query = dict(parse_qsl(self.url.partition("?")[2].partition("#")[0], keep_blank_values=True))

    @property
    def is_put(self) -> bool:
        return "X-Amz-Signature" in self.query

    @property
    def is_post(self) -> bool:
        return not self.is_put and bool(dict(self.fields).get("Policy"))

    def headers(self, name: str, md5: str | None) -> dict[str, str]:
        """What was signed must be sent as it was signed; nothing else may begin with x-amz-.

        S3 takes a digest that was not signed, and refuses other bytes with BadDigest: where it is known before the
        bytes go, damaged ones never stand under the document's name, not even until their ETag is read. A digest that
        Wootiv names itself goes before ours."""
        given = {field.lower(): value for field, value in self.fields}
        signed = set(self.query.get("X-Amz-SignedHeaders", "").lower().split(";"))
        headers = {each: given[each] for each in sorted(signed & given.keys() - _OURS)}
        if md5 is not None and _DIGEST not in given:
            headers[_DIGEST] = b64encode(bytes.fromhex(md5)).decode("ascii")
        return {"content-type": content_type(name), **headers}


def _unusable(what: str) -> RemoteError:
    return RemoteError(f"{what}; check base_url in [wootiv], and ask Wootiv", kind="not_ours")
