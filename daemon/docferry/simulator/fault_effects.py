"""Apply each kind of fault to a request: before, during and after its body, and to its response."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Any

import anyio.to_thread

from docferry.simulator.connection import Reset
from docferry.simulator.faults import Fault
from docferry.simulator.http import Request, Response

_HTML = (
    b"<!DOCTYPE html><html><head><title>%d</title></head><body><h1>%d</h1>This page comes from a proxy.</body></html>\n"
)
_ENDLESS_ROW = b'{"uploaded":"2026-01-01T00:00:00Z","fileName":"endless.pdf","sourceType":"Other","displayName":null},'
_GZIP_BOMB_BLOCK = 1024 * 1024
#: Values of the named `retry_after` forms, from the server's time and `seconds`.
_RETRY_AFTER: dict[str, Callable[[float, float], str]] = {
    "seconds": lambda _now, seconds: str(int(seconds)),
    "date": lambda now, seconds: formatdate(now + seconds, usegmt=True),
    "past": lambda now, _seconds: formatdate(now - 3600, usegmt=True),
    "garbage": lambda _now, _seconds: "soon, perhaps",
    "huge": lambda _now, _seconds: "1000000000",
}


@dataclass(slots=True)
class FaultContext:
    """Hold a request that a fault applies to, and the actions that a fault may take."""

    fault: Fault
    request: Request
    now: float  # the server's wall clock
    run: Callable[[], Awaitable[Response]]  # runs the service
    error: Callable[[int, str | None], Response]  # an error in the format of the service: status and code
    refuse: Callable[[float, str, bool], None]  # refuses connections for some seconds

    def param(self, name: str, default: Any) -> Any:
        """Return a parameter of the fault."""
        return self.fault.params.get(name, default)


async def apply_fault(context: FaultContext) -> Response:
    """Return the response that the fault gives. Raises Reset if the fault resets the connection."""
    context.request.late = float(context.param("late", 0.0))
    return await EFFECTS[context.fault.kind](context)


# before the body


async def _refuse_connections(context: FaultContext) -> Response:
    context.refuse(
        float(context.param("seconds", 1.0)), str(context.param("mode", "refuse")), bool(context.param("all", True))
    )
    raise Reset


async def _reset(context: FaultContext) -> Response:  # noqa: ARG001 - all effects have one signature
    raise Reset


async def _early(context: FaultContext) -> Response:
    response = context.error(413 if context.fault.kind == "early_413" else 401, None)
    response.then = "reset"
    return response


# during and after the body


async def _reset_during_body(context: FaultContext) -> Response:
    body = context.request.body
    if body.done:
        raise Reset
    body.cut_after = max(1, int(context.param("after", (body.length or 2) // 2)))
    await body.drain()
    raise Reset  # the body was shorter than the limit


async def _slow_read(context: FaultContext) -> Response:
    context.request.body.rate = float(context.param("rate", 1000.0))
    context.request.connection.shrink_buffers()
    return await context.run()


async def _reset_after(context: FaultContext) -> Response:
    await context.request.body.drain()
    raise Reset


async def _lost_answer(context: FaultContext) -> Response:
    await context.run()
    await context.request.body.drain()
    if context.param("how", "reset") == "close":
        context.request.connection.close()
    raise Reset


async def _stall(context: FaultContext) -> Response:
    await _store_if_requested(context)
    await context.request.body.drain()
    await context.request.connection.wait_closed(context.param("seconds", None))
    raise Reset


# the service's own failures


async def _status(context: FaultContext) -> Response:
    response = context.error(int(context.param("status", 500)), context.param("code", None))
    response.headers.update({str(name): str(value) for name, value in dict(context.param("headers", {})).items()})
    return await _respond_with(context, response, stored=bool(context.param("stored", False)))


async def _too_many(context: FaultContext) -> Response:
    payload, seconds = context.param("retry_after", "seconds"), float(context.param("seconds", 1.0))
    response = context.error(429, None)
    response.headers["Retry-After"] = (
        _RETRY_AFTER[payload](context.now, seconds) if payload in _RETRY_AFTER else str(payload)
    )
    return await _respond_with(context, response, stored=False)


async def _swallow(context: FaultContext) -> Response:
    return await _respond_with(context, Response(200), stored=False)


async def _delayed(context: FaultContext) -> Response:
    return await context.run()


async def _respond_with(context: FaultContext, response: Response, *, stored: bool) -> Response:
    context.request.forced, context.request.stores = response, stored
    return await context.run()


# responses that a client must not trust


async def _slow_answer(context: FaultContext) -> Response:
    response = await context.run()
    response.rate = float(context.param("rate", 1.0))
    return response


async def _truncated(context: FaultContext) -> Response:
    response = await context.run()
    response.cut, response.then = context.param("at", None), "close"
    response.extra = int(context.param("extra", 64 if response.cut is None else 0))
    return response


async def _html(context: FaultContext) -> Response:
    await _store_if_requested(context)
    status = 200 if context.fault.kind == "html_200" else 502
    return Response(status, _HTML % (status, status), {"Content-Type": "text/html; charset=utf-8"})


async def _page(context: FaultContext) -> Response:
    """Return a response in the style of a proxy or another server: any status, type and text."""
    await _store_if_requested(context)
    status, content_type = int(context.param("status", 400)), str(context.param("type", "text/html"))
    default = _HTML % (status, status) if "html" in content_type else b"no such page"
    text = context.param("text", None)
    return Response(status, default if text is None else str(text).encode(), {"Content-Type": content_type})


async def _gzip_bomb(context: FaultContext) -> Response:
    await _store_if_requested(context)
    body = await anyio.to_thread.run_sync(_gzip_bomb_body, int(context.param("size", 1024**3)))
    return Response(200, body, {"Content-Type": "application/json", "Content-Encoding": "gzip"})


async def _endless(context: FaultContext) -> Response:
    await _store_if_requested(context)
    stream = _rows(context.param("size", None))
    return Response(200, headers={"Content-Type": "application/json"}, stream=stream, then="close")


async def _redirect(context: FaultContext) -> Response:
    await context.request.body.drain()
    location = str(context.param("location", f"{context.request.base}/elsewhere"))
    return Response(int(context.param("status", 307)), headers={"Location": location})


async def _store_if_requested(context: FaultContext) -> None:
    """Run the service if the fault's `stored` is set; else read the body and store nothing."""
    if context.param("stored", False):
        await context.run()
    else:
        await context.request.body.drain()


async def _rows(size: int | None) -> AsyncGenerator[bytes, None]:
    block, sent = b"[" + _ENDLESS_ROW * 600, 0
    while size is None or sent < size:
        yield block
        sent += len(block)
        block = _ENDLESS_ROW * 600


@lru_cache(maxsize=4)
def _gzip_bomb_body(size: int) -> bytes:
    """Return JSON of `[`, about `size` blanks and `]` in gzip, about a thousandth of that size.

    A full flush after each block makes all compressed blocks equal, so that one block is compressed once.
    """
    blanks, count = b" " * _GZIP_BOMB_BLOCK, max(1, size // _GZIP_BOMB_BLOCK)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = packer.compress(b"[") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(blanks) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.compress(b"]") + packer.flush(zlib.Z_FINISH)
    checksum = zlib.crc32(b"[")
    for _ in range(count):
        checksum = zlib.crc32(blanks, checksum)
    checksum = zlib.crc32(b"]", checksum)
    length = (count * _GZIP_BOMB_BLOCK + 2) % 2**32
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    return head + start + block * count + end + checksum.to_bytes(4, "little") + length.to_bytes(4, "little")


EFFECTS: dict[str, Callable[[FaultContext], Awaitable[Response]]] = {
    "refuse": _refuse_connections,
    "reset_before": _reset,
    "stale_keepalive": _reset,
    "early_413": _early,
    "early_401": _early,
    "reset_inside": _reset_during_body,
    "slow_read": _slow_read,
    "reset_after": _reset_after,
    "lost_answer": _lost_answer,
    "stall": _stall,
    "status": _status,
    "too_many": _too_many,
    "swallow": _swallow,
    "late": _delayed,
    "slow_answer": _slow_answer,
    "truncated_answer": _truncated,
    "html_200": _html,
    "html_502": _html,
    "page": _page,
    "gzip_bomb": _gzip_bomb,
    "endless_json": _endless,
    "redirect": _redirect,
}
