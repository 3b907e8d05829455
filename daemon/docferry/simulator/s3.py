"""S3 as a signed URL meets it: PUT, POST with a policy, GET and HEAD, with nothing believed that is not signed."""

from __future__ import annotations

import base64
import binascii
import random
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from urllib.parse import quote
from xml.sax.saxutils import escape

from docferry.clock import Clock
from docferry.simulator.http import Answer, Malformed, Request
from docferry.simulator.multipart import Catch, read_form
from docferry.simulator.options import SimulatorOptions
from docferry.simulator.postpolicy import check_policy
from docferry.simulator.ranges import ranged
from docferry.simulator.recorder import Recorder, S3Object, Stored
from docferry.simulator.sigv4 import Credentials, S3Error, Signable, presign, verify

#: An object larger than this is hashed and counted, its bytes are not kept.
LARGEST_KEPT = 64 * 1024 * 1024
_LARGEST_PUT = 5 * 1024**3

Handler = Callable[[Request], Awaitable[Answer]]


class S3:
    """The object store; `sign` makes URLs for it."""

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
        self._keep = min(keep, LARGEST_KEPT)
        self._digest = digest
        self.credentials = Credentials()

    def route(self, method: str, segments: list[str]) -> tuple[str, Handler] | None:
        if len(segments) < 2 or segments[0] != "s3":
            return None
        bucket, key = segments[1], "/".join(segments[2:])
        if method == "PUT" and key:
            return "s3.put", lambda request: self._put(request, bucket, key)
        if method == "POST" and not key:
            return "s3.post", lambda request: self._post(request, bucket)
        if method in ("GET", "HEAD") and key:
            return f"s3.{method.lower()}", lambda request: self._get(request, bucket, key)
        return "s3.other", self._not_allowed

    async def serve(self, request: Request, handler: Handler) -> Answer:
        try:
            return await handler(request)
        except S3Error as error:
            return self.error(error.status, error.code, error.message, **error.extra)
        except Malformed as malformed:
            return self.error(400, "MalformedPOSTRequest", str(malformed))

    def sign(self, method: str, base: str, bucket: str, key: str, headers: dict[str, str] | None = None) -> str:
        """A URL under `base` that is good for `url_lifetime`."""
        path = f"/s3/{bucket}/{quote(key, safe='/-_.~')}"
        signed = {"host": base.partition("://")[2], **(headers or {})}
        query = presign(self.credentials, method, path, signed, now=self.now(), lifetime=self._switches.url_lifetime)
        return f"{base}{path}?{query}"

    def now(self) -> float:
        """This server's clock."""
        return self._clock.now() + self._switches.date_skew

    def keep(self, bucket: str, key: str, catch: Catch, content_type: str, late: float = 0.0) -> S3Object:
        """One object under one key, whatever stood there before."""
        etag = f'"{catch.md5.hex() or f"{self._random.getrandbits(128):032x}-1"}"'
        content = catch.content
        stands = S3Object(bucket, key, content, catch.size, catch.sha256, etag, self._clock.now() + late, content_type)
        stored = Stored("wootiv", None, None, key, content, catch.sha256, catch.size, stands.modified)
        self._recorder.store(stored, stands, late)
        return stands

    def catch(self) -> Catch:
        return Catch(keep=self._keep, md5=True, digest=self._digest)

    def error(self, status: int, code: str, message: str, **extra: str) -> Answer:
        fields = {"Code": code, "Message": message, **extra, "RequestId": f"{self._random.getrandbits(64):016X}"}
        inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'
        return Answer(status, body.encode(), {"Content-Type": "application/xml"})

    # PUT

    async def _put(self, request: Request, bucket: str, key: str) -> Answer:
        if request.body.length is None:
            raise S3Error(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        self._verify(request)
        if "content-length" not in request.headers:
            raise S3Error(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        if request.body.length > _LARGEST_PUT:
            raise S3Error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
        catch = self.catch()
        while block := await request.body.block():
            catch.write(block)
        _check_md5(request, catch)
        if request.forced is not None and not request.stores:
            return request.forced
        content_type = request.headers.get("content-type", "binary/octet-stream")
        stands = self.keep(bucket, key, catch, content_type, self._switches.store_lag + request.late)
        return request.forced or Answer(200, headers={"ETag": stands.etag})

    # POST

    async def _post(self, request: Request, bucket: str) -> Answer:
        def opener(_name: str, filename: str | None) -> Catch:
            return Catch(keep=64 * 1024) if filename is None else self.catch()

        fields: dict[str, str] = {}
        file = None
        for part in await read_form(request, opener):
            if part.name.lower() == "file":
                file = part
                break  # what follows the file is not looked at
            fields[part.name.lower()] = part.text
        if file is None:
            raise S3Error(400, "InvalidArgument", "POST requires exactly one file upload per request.")
        fields.setdefault("bucket", bucket)
        if fields["bucket"] != bucket:
            raise S3Error(403, "AccessDenied", "Invalid according to Policy: the bucket is another one")
        fields["key"] = fields.get("key", "").replace("${filename}", file.filename or "")
        check_policy(self.credentials, fields, file.catch.size, self.now())
        if request.forced is not None and not request.stores:
            return request.forced
        content_type = fields.get("content-type", "binary/octet-stream")
        stands = self.keep(bucket, fields["key"], file.catch, content_type, self._switches.store_lag + request.late)
        return request.forced or _posted(fields, stands)

    # GET and HEAD

    async def _get(self, request: Request, bucket: str, key: str) -> Answer:
        self._verify(request)
        if request.forced is not None:
            return request.forced
        stands = self._recorder.objects.get((bucket, key))
        if stands is None:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.", Key=key)
        if stands.content is None and request.method == "GET":
            raise S3Error(500, "InternalError", "The simulator did not keep this object's bytes")
        return ranged(request, stands, formatdate(stands.modified, usegmt=True))

    def _verify(self, request: Request) -> None:
        verify(
            self.credentials, Signable(request.method, request.path, request.parameters, request.headers), self.now()
        )

    async def _not_allowed(self, request: Request) -> Answer:
        return request.forced or self.error(
            405, "MethodNotAllowed", "The specified method is not allowed against this resource."
        )


def _check_md5(request: Request, catch: Catch) -> None:
    wanted = request.headers.get("content-md5")
    if wanted is None or not catch.md5:
        return
    try:
        digest = base64.b64decode(wanted, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 16:
        raise S3Error(400, "InvalidDigest", "The Content-MD5 you specified is not valid.")
    if digest != catch.md5:
        raise S3Error(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")


def _posted(fields: dict[str, str], stands: S3Object) -> Answer:
    status = fields.get("success_action_status", "204")
    headers = {"ETag": stands.etag, "Location": f"/s3/{stands.bucket}/{quote(stands.key)}"}
    if status != "201":
        return Answer(200 if status == "200" else 204, headers=headers)
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<PostResponse>'
        f"<Location>{escape(headers['Location'])}</Location><Bucket>{escape(stands.bucket)}</Bucket>"
        f"<Key>{escape(stands.key)}</Key><ETag>{escape(stands.etag)}</ETag></PostResponse>"
    )
    return Answer(201, body.encode(), {**headers, "Content-Type": "application/xml"})
