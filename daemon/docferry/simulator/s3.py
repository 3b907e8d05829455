"""Simulate S3 behind signed URLs: PUT, POST with a policy, GET and HEAD. Every signature is verified."""

from __future__ import annotations

import base64
import binascii
import random
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from urllib.parse import quote
from xml.sax.saxutils import escape

from docferry.clock import Clock
from docferry.simulator.http import Malformed, Request, Response
from docferry.simulator.multipart import ContentSink, read_form
from docferry.simulator.options import SimulatorOptions
from docferry.simulator.postpolicy import check_policy
from docferry.simulator.ranges import conditional_response
from docferry.simulator.recorder import Recorder, S3Object, Stored
from docferry.simulator.sigv4 import Credentials, S3Error, Signable, presign, verify

#: The bytes of a larger object are hashed and counted, but not stored.
MAX_KEPT_SIZE = 64 * 1024 * 1024
_MAX_PUT_SIZE = 5 * 1024**3

Handler = Callable[[Request], Awaitable[Response]]


class S3:
    """Simulate the object store; `sign` creates its URLs."""

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
        self._keep = min(keep, MAX_KEPT_SIZE)
        self._digest = digest
        self.credentials = Credentials(secret_key=options.storage_secret)

    def route(self, method: str, segments: list[str]) -> tuple[str, Handler] | None:
        """Return the route's name and its handler, or None for a path of another service."""
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

    async def serve(self, request: Request, handler: Handler) -> Response:
        """Return the response of a request; errors become S3's XML."""
        try:
            return await handler(request)
        except S3Error as error:
            return self.error(error.status, error.code, error.message, **error.extra)
        except Malformed as malformed:
            return self.error(400, "MalformedPOSTRequest", str(malformed))

    def sign(self, method: str, base: str, bucket: str, key: str, headers: dict[str, str] | None = None) -> str:
        """Return a URL under `base` that is valid for `url_lifetime`."""
        path = f"/s3/{bucket}/{quote(key, safe='/-_.~')}"
        signed = {"host": base.partition("://")[2], **(headers or {})}
        query = presign(self.credentials, method, path, signed, now=self.now(), lifetime=self._options.url_lifetime)
        return f"{base}{path}?{query}"

    def now(self) -> float:
        """Return the time of this server's clock."""
        return self._clock.now() + self._options.date_skew

    def keep(self, bucket: str, key: str, sink: ContentSink, content_type: str, late: float = 0.0) -> S3Object:
        """Store an object under a key, in place of the earlier one."""
        etag = f'"{sink.md5.hex() or f"{self._random.getrandbits(128):032x}-1"}"'
        content = sink.content
        s3_object = S3Object(bucket, key, content, sink.size, sink.sha256, etag, self._clock.now() + late, content_type)
        stored = Stored("wootiv", None, None, key, content, sink.sha256, sink.size, s3_object.modified)
        self._recorder.store(stored, s3_object, late)
        return s3_object

    def sink(self) -> ContentSink:
        """Return a sink for the content of one object."""
        return ContentSink(keep=self._keep, md5=True, digest=self._digest)

    def error(self, status: int, code: str, message: str, **extra: str) -> Response:
        """Return an error in S3's XML."""
        fields = {"Code": code, "Message": message, **extra, "RequestId": f"{self._random.getrandbits(64):016X}"}
        inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'
        return Response(status, body.encode(), {"Content-Type": "application/xml"})

    # PUT

    async def _put(self, request: Request, bucket: str, key: str) -> Response:
        if request.body.length is None:
            raise S3Error(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        self._verify(request)
        if "content-length" not in request.headers:
            raise S3Error(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        if request.body.length > _MAX_PUT_SIZE:
            raise S3Error(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
        sink = self.sink()
        while block := await request.body.block():
            sink.write(block)
        _check_md5(request, sink)
        if request.forced is not None and not request.stores:
            return request.forced
        content_type = request.headers.get("content-type", "binary/octet-stream")
        s3_object = self.keep(bucket, key, sink, content_type, self._options.store_lag + request.late)
        return request.forced or Response(200, headers={"ETag": s3_object.etag})

    # POST

    async def _post(self, request: Request, bucket: str) -> Response:
        def opener(_name: str, filename: str | None) -> ContentSink:
            return ContentSink(keep=64 * 1024) if filename is None else self.sink()

        fields: dict[str, str] = {}
        file = None
        for part in await read_form(request, opener):
            if part.name.lower() == "file":
                file = part
                break  # S3 ignores fields after the file
            fields[part.name.lower()] = part.text
        if file is None:
            raise S3Error(400, "InvalidArgument", "POST requires exactly one file upload per request.")
        fields.setdefault("bucket", bucket)
        if fields["bucket"] != bucket:
            raise S3Error(403, "AccessDenied", "Invalid according to Policy: the bucket is another one")
        fields["key"] = fields.get("key", "").replace("${filename}", file.filename or "")
        check_policy(self.credentials, fields, file.sink.size, self.now())
        if request.forced is not None and not request.stores:
            return request.forced
        content_type = fields.get("content-type", "binary/octet-stream")
        s3_object = self.keep(bucket, fields["key"], file.sink, content_type, self._options.store_lag + request.late)
        return request.forced or _post_response(fields, s3_object)

    # GET and HEAD

    async def _get(self, request: Request, bucket: str, key: str) -> Response:
        self._verify(request)
        if request.forced is not None:
            return request.forced
        s3_object = self._recorder.objects.get((bucket, key))
        if s3_object is None:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.", Key=key)
        if s3_object.content is None and request.method == "GET":
            raise S3Error(500, "InternalError", "The simulator did not keep this object's bytes")
        return conditional_response(request, s3_object, formatdate(s3_object.modified, usegmt=True))

    def _verify(self, request: Request) -> None:
        verify(
            self.credentials, Signable(request.method, request.path, request.parameters, request.headers), self.now()
        )

    async def _not_allowed(self, request: Request) -> Response:
        return request.forced or self.error(
            405, "MethodNotAllowed", "The specified method is not allowed against this resource."
        )


def _check_md5(request: Request, sink: ContentSink) -> None:
    wanted = request.headers.get("content-md5")
    if wanted is None or not sink.md5:
        return
    try:
        digest = base64.b64decode(wanted, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 16:
        raise S3Error(400, "InvalidDigest", "The Content-MD5 you specified is not valid.")
    if digest != sink.md5:
        raise S3Error(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")


def _post_response(fields: dict[str, str], s3_object: S3Object) -> Response:
    status = fields.get("success_action_status", "204")
    headers = {"ETag": s3_object.etag, "Location": f"/s3/{s3_object.bucket}/{quote(s3_object.key)}"}
    if status != "201":
        return Response(200 if status == "200" else 204, headers=headers)
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<PostResponse>'
        f"<Location>{escape(headers['Location'])}</Location><Bucket>{escape(s3_object.bucket)}</Bucket>"
        f"<Key>{escape(s3_object.key)}</Key><ETag>{escape(s3_object.etag)}</ETag></PostResponse>"
    )
    return Response(201, body.encode(), {**headers, "Content-Type": "application/xml"})
