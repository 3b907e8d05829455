"""Simulate Wootiv: sign S3 URLs, and accept files directly."""

from __future__ import annotations

import mimetypes
import random
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from docferry.simulator.http import Malformed, Request, Response
from docferry.simulator.multipart import ContentSink, Part, read_form
from docferry.simulator.options import SimulatorOptions
from docferry.simulator.postpolicy import sign_policy
from docferry.simulator.recorder import Recorder
from docferry.simulator.s3 import S3

BUCKET = "wootiv-documents"
#: An unknown field of presigned POSTs. Clients must send all fields as given.
UNKNOWN_FIELD = ("x-amz-meta-origin", "wootiv")
_MAX_OBJECT_SIZE = 5 * 1024**3

Handler = Callable[[Request], Awaitable[Response]]


class Wootiv:
    """Serve Wootiv's API; its objects are in the simulated S3."""

    def __init__(self, options: SimulatorOptions, recorder: Recorder, s3: S3, jitter: random.Random) -> None:
        self._options = options
        self._recorder = recorder
        self._s3 = s3
        self._random = jitter

    def route(self, method: str, segments: list[str]) -> tuple[str, Handler] | None:
        """Return the route's name and its handler, or None for a path of another service."""
        match method, segments:
            case "POST", ["aws", "get-signed-put-url"]:
                return "wootiv.sign", self._sign
            case "POST", ["aws", "buckets", "upload"]:
                return "wootiv.upload", self._upload
            case "POST", ["aws", "buckets", "bulk_upload"]:
                return "wootiv.bulk", self._bulk
            case "GET", ["aws", "buckets", "health"]:
                return "wootiv.health", self._health
            case "GET", ["aws", "buckets"]:
                return "wootiv.buckets", self._buckets
            case "GET", ["aws", "objects"]:
                return "wootiv.objects", self._objects
            case "GET", ["aws", "buckets", *path] if path:
                return "wootiv.fetch", lambda request: self._fetch(request, "/".join(path))
            case _, ["aws", *_]:
                return "wootiv.other", self._not_found
        return None

    async def serve(self, request: Request, handler: Handler) -> Response:
        """Return the response of a request."""
        if request.headers.get("authorization") != f"Bearer {self._options.wootiv_key}":
            return self.error(401, "Unauthorized")
        try:
            if request.forced is not None and not request.stores:
                await request.body.drain()
                return request.forced
            response = await handler(request)
        except Malformed as malformed:
            return self.error(422, str(malformed))
        return request.forced or response

    def error(self, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
        """Return an error in Wootiv's shape."""
        value = {"statusCode": status, "message": message, "requestId": f"{self._random.getrandbits(64):016x}"}
        return Response.of_json(status, value, headers)

    # signing

    async def _sign(self, request: Request) -> Response:
        payload = await request.json()
        name = payload.get("filename") if isinstance(payload, dict) else None
        if not isinstance(name, str) or not name.strip("/"):
            return self.error(422, "filename must be a string that is not empty")
        signed = self.put_url if self._options.signed == "put" else self._post_form
        return Response.of_json(200, signed(request.base, name))

    def put_url(self, base: str, name: str) -> dict[str, Any]:
        """Return the response with a signed URL for a PUT."""
        content_type = {"content-type": _media_type(name)} if self._options.sign_content_type else {}
        url = self._s3.sign("PUT", base, BUCKET, name, content_type)
        fields = {"bucket": BUCKET, "key": name, "Policy": ""}
        return {"url": url, "fields": fields | ({"Content-Type": _media_type(name)} if content_type else {})}

    def _post_form(self, base: str, name: str) -> dict[str, Any]:
        fields = {"bucket": BUCKET, "key": name, UNKNOWN_FIELD[0]: UNKNOWN_FIELD[1]}
        if self._options.sign_content_type:
            fields["Content-Type"] = _media_type(name)
        conditions: list[object] = [["content-length-range", 0, _MAX_OBJECT_SIZE]]
        lifetime = self._options.url_lifetime
        signed = sign_policy(self._s3.credentials, fields, conditions, now=self._s3.now(), lifetime=lifetime)
        return {"url": f"{base}/s3/{BUCKET}", "fields": signed}

    # uploads without S3

    async def _upload(self, request: Request) -> Response:
        path, files = await self._form(request, "file")
        if len(files) != 1:
            return self.error(422, "one part named file is required")
        return Response.of_json(200, self._store_part(request, path, files[0]))

    async def _bulk(self, request: Request) -> Response:
        path, files = await self._form(request, "bulk[]")
        if not files:
            return self.error(422, "parts named bulk[] are required")
        return Response.of_json(200, [self._store_part(request, path, part) for part in files])

    async def _form(self, request: Request, name: str) -> tuple[str, list[Part]]:
        def opener(_name: str, filename: str | None) -> ContentSink:
            return ContentSink(keep=64 * 1024) if filename is None else self._s3.sink()

        parts = await read_form(request, opener)
        path = next((part.text for part in parts if part.name == "path"), "")
        return path.strip("/"), [part for part in parts if part.name == name and part.filename]

    def _store_part(self, request: Request, path: str, part: Part) -> dict[str, str]:
        name = part.filename or ""
        key = f"{path}/{name}" if path else name
        self._s3.keep(BUCKET, key, part.sink, _media_type(name), self._options.store_lag + request.late)
        return {
            "baseUrl": f"{request.base}/s3/{BUCKET}",
            "filename": name,
            "mime": _media_type(name),
            "path": path,
            "pathWithFilename": key,
            "signedUrl": self._s3.sign("GET", request.base, BUCKET, key),
        }

    # reading

    async def _fetch(self, request: Request, key: str) -> Response:
        if (BUCKET, key) not in self._recorder.objects:
            return self.error(404, f"There is no object {quote(key)}")
        return Response.of_json(200, {"signedUrl": self._s3.sign("GET", request.base, BUCKET, key)})

    async def _health(self, _request: Request) -> Response:
        return Response.of_json(200, {"status": "ok"})

    async def _buckets(self, _request: Request) -> Response:
        return Response.of_json(200, {"buckets": sorted({BUCKET, *(bucket for bucket, _ in self._recorder.objects)})})

    async def _objects(self, _request: Request) -> Response:
        objects = [s3_object for (bucket, _), s3_object in self._recorder.objects.items() if bucket == BUCKET]
        return Response.of_json(
            200, {"objects": [{"key": each.key, "size": each.size, "etag": each.etag} for each in objects]}
        )

    async def _not_found(self, request: Request) -> Response:
        return self.error(404, f"There is nothing at {request.path}")


def _media_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
