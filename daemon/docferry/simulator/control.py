"""Serve the simulator's own paths under /_sim: other programs read the record and set faults there."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from docferry.clock import iso
from docferry.errors import ConfigError
from docferry.simulator.faults import faults_from
from docferry.simulator.http import Malformed, Request, Response
from docferry.simulator.recorder import S3Object, Stored

if TYPE_CHECKING:
    from docferry.simulator.server import Simulator

Handler = Callable[[Request], Awaitable[Response]]
_DONE: dict[str, bool] = {"ok": True}


class Control:
    """Give other programs the methods that a test in the same process calls directly."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._handlers: dict[tuple[str, str], Handler] = {
            ("GET", "stored"): self._get_stored,
            ("GET", "objects"): self._get_objects,
            ("GET", "requests"): self._get_requests,
            ("GET", "switches"): self._get_switches,
            ("POST", "switches"): self._set_switches,
            ("POST", "faults"): self._set_faults,
            ("POST", "files"): self._add_file,
            ("POST", "objects"): self._add_object,
            ("POST", "refuse"): self._refuse,
            ("POST", "reset"): self._reset,
        }

    def route(self, method: str, segments: list[str]) -> tuple[str, Handler] | None:
        """Return the route's name and its handler, or None for a path outside /_sim."""
        if segments[:1] != ["_sim"]:
            return None
        return "control", self._handlers.get((method, "/".join(segments[1:])), self._not_found)

    async def serve(self, request: Request, handler: Handler) -> Response:
        """Return the response of a request; bad input becomes a 400 with its problems."""
        options = self._simulator.options
        if not options.record_is_open:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {options.codat_key}".encode()):
                return self.error(
                    401, "send `Authorization: Bearer KEY`, with the key for Codat that the simulator shows"
                )
        try:
            return await handler(request)
        except ConfigError as error:
            return Response.of_json(400, {"problems": error.problems})
        except Malformed as malformed:
            return self.error(400, str(malformed))

    def error(self, status: int, message: str) -> Response:
        """Return an error with one problem."""
        return Response.of_json(status, {"problems": [message]})

    # reads

    async def _get_stored(self, _request: Request) -> Response:
        return Response.of_json(200, [_as_json(stored) for stored in self._simulator.stored])

    async def _get_objects(self, _request: Request) -> Response:
        return Response.of_json(200, [_as_json(s3_object) for s3_object in self._simulator.objects.values()])

    async def _get_requests(self, _request: Request) -> Response:
        simulator = self._simulator
        return Response.of_json(
            200, {"counts": dict(simulator.requests), "log": [asdict(seen) for seen in simulator.log]}
        )

    async def _get_switches(self, _request: Request) -> Response:
        options = asdict(self._simulator.options)
        if options["companies"] is not None:
            options["companies"] = {name: sorted(found) for name, found in options["companies"].items()}
        return Response.of_json(200, options)

    # changes

    async def _set_switches(self, request: Request) -> Response:
        self._simulator.options.change(_require_object(await request.json()))
        return Response.of_json(200, _DONE)

    async def _set_faults(self, request: Request) -> Response:
        payload = await request.json()
        self._simulator.set_faults(faults_from(payload.get("fault") if isinstance(payload, dict) else payload))
        return Response.of_json(200, _DONE)

    async def _add_file(self, request: Request) -> Response:
        payload = _require_object(await request.json())
        content = _decode_content(payload)
        known = ("source_type", "uploaded", "integration")
        company, name = _require_string(payload, "company"), _require_string(payload, "name")
        more = {each: _require_string(payload, each) for each in known if payload.get(each) is not None}
        return Response.of_json(200, _as_json(self._simulator.put_company_file(company, name, content, **more)))

    async def _add_object(self, request: Request) -> Response:
        payload = _require_object(await request.json())
        return Response.of_json(
            200, _as_json(self._simulator.put_object(_require_string(payload, "key"), _decode_content(payload)))
        )

    async def _refuse(self, request: Request) -> Response:
        payload = _require_object(await request.json())
        seconds = payload.get("seconds", 1.0)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise Malformed("seconds must be a number")
        self._simulator.refuse(seconds, str(payload.get("mode", "refuse")), close_open=False)
        return Response.of_json(200, _DONE)

    async def _reset(self, request: Request) -> Response:
        await request.body.drain()
        self._simulator.reset()
        return Response.of_json(200, _DONE)

    async def _not_found(self, request: Request) -> Response:
        paths = ", ".join(f"{method} /_sim/{path}" for method, path in self._handlers)
        return self.error(404, f"{request.method} {request.path} is none of {paths}")


def _as_json(kept: Stored | S3Object) -> dict[str, Any]:
    """Return all fields except the bytes."""
    names = type(kept).__dataclass_fields__
    shown = {name: getattr(kept, name) for name in names if name != "content"}
    return shown | {name: iso(shown[name]) for name in ("at", "modified") if name in shown}


def _require_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed("the body must be a JSON object")
    return value


def _require_string(payload: dict[str, Any], name: str) -> str:
    if not isinstance(payload.get(name), str):
        raise Malformed(f"{name} must be a string")
    return str(payload[name])


def _decode_content(payload: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(_require_string(payload, "content_base64"), validate=True)
    except binascii.Error:
        raise Malformed("content_base64 is no base64") from None
