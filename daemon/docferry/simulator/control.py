"""The simulator's own paths under /_sim, for other programs: what has come, and what shall go wrong."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from docferry.clock import iso
from docferry.errors import ConfigError
from docferry.simulator.faults import faults_from
from docferry.simulator.http import Answer, Malformed, Request
from docferry.simulator.recorder import S3Object, Stored

if TYPE_CHECKING:
    from docferry.simulator.server import Simulator

Handler = Callable[[Request], Awaitable[Answer]]
_DONE: dict[str, bool] = {"ok": True}


class Control:
    """Reads and turns what a test in the same program would reach directly."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._verbs: dict[tuple[str, str], Handler] = {
            ("GET", "stored"): self._stored,
            ("GET", "objects"): self._objects,
            ("GET", "requests"): self._requests,
            ("GET", "switches"): self._switches,
            ("POST", "switches"): self._switch,
            ("POST", "faults"): self._faults,
            ("POST", "files"): self._file,
            ("POST", "objects"): self._object,
            ("POST", "refuse"): self._refuse,
            ("POST", "reset"): self._reset,
        }

    def route(self, method: str, segments: list[str]) -> tuple[str, Handler] | None:
        if segments[:1] != ["_sim"]:
            return None
        return "control", self._verbs.get((method, "/".join(segments[1:])), self._unknown)

    async def serve(self, request: Request, handler: Handler) -> Answer:
        try:
            return await handler(request)
        except ConfigError as error:
            return Answer.of_json(400, {"problems": error.problems})
        except Malformed as malformed:
            return self.error(400, str(malformed))

    def error(self, status: int, message: str) -> Answer:
        return Answer.of_json(status, {"problems": [message]})

    # asking

    async def _stored(self, _request: Request) -> Answer:
        return Answer.of_json(200, [_shown(stored) for stored in self._simulator.stored])

    async def _objects(self, _request: Request) -> Answer:
        return Answer.of_json(200, [_shown(stands) for stands in self._simulator.objects.values()])

    async def _requests(self, _request: Request) -> Answer:
        simulator = self._simulator
        return Answer.of_json(
            200, {"counts": dict(simulator.requests), "log": [asdict(seen) for seen in simulator.log]}
        )

    async def _switches(self, _request: Request) -> Answer:
        options = asdict(self._simulator.options)
        if options["companies"] is not None:
            options["companies"] = {name: sorted(found) for name, found in options["companies"].items()}
        return Answer.of_json(200, options)

    # turning

    async def _switch(self, request: Request) -> Answer:
        self._simulator.options.change(_table(await request.json()))
        return Answer.of_json(200, _DONE)

    async def _faults(self, request: Request) -> Answer:
        wish = await request.json()
        self._simulator.set_faults(faults_from(wish.get("fault") if isinstance(wish, dict) else wish))
        return Answer.of_json(200, _DONE)

    async def _file(self, request: Request) -> Answer:
        wish = _table(await request.json())
        content = _content(wish)
        known = ("source_type", "uploaded", "integration")
        company, name = _text(wish, "company"), _text(wish, "name")
        more = {each: _text(wish, each) for each in known if wish.get(each) is not None}
        return Answer.of_json(200, _shown(self._simulator.put_company_file(company, name, content, **more)))

    async def _object(self, request: Request) -> Answer:
        wish = _table(await request.json())
        return Answer.of_json(200, _shown(self._simulator.put_object(_text(wish, "key"), _content(wish))))

    async def _refuse(self, request: Request) -> Answer:
        wish = _table(await request.json())
        seconds = wish.get("seconds", 1.0)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise Malformed("seconds must be a number")
        self._simulator.refuse(seconds, str(wish.get("mode", "refuse")), everyone=False)
        return Answer.of_json(200, _DONE)

    async def _reset(self, request: Request) -> Answer:
        await request.body.drain()
        self._simulator.reset()
        return Answer.of_json(200, _DONE)

    async def _unknown(self, request: Request) -> Answer:
        paths = ", ".join(f"{method} /_sim/{path}" for method, path in self._verbs)
        return self.error(404, f"{request.method} {request.path} is none of {paths}")


def _shown(kept: Stored | S3Object) -> dict[str, Any]:
    """All but the bytes."""
    names = type(kept).__dataclass_fields__
    shown = {name: getattr(kept, name) for name in names if name != "content"}
    return shown | {name: iso(shown[name]) for name in ("at", "modified") if name in shown}


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed("the body must be a JSON object")
    return value


def _text(wish: dict[str, Any], name: str) -> str:
    if not isinstance(wish.get(name), str):
        raise Malformed(f"{name} must be a string")
    return str(wish[name])


def _content(wish: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(_text(wish, "content_base64"), validate=True)
    except binascii.Error:
        raise Malformed("content_base64 is no base64") from None
