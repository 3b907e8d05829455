"""What each kind of fault does to a request: before, inside and after its body, and to its answer."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Any

import anyio.to_thread

from docferry.simulator.faults import Fault
from docferry.simulator.http import Answer, Request
from docferry.simulator.wire import Reset

_HTML = b"<!DOCTYPE html><html><head><title>%d</title></head><body><h1>%d</h1>A proxy speaks here.</body></html>\n"
_ENDLESS_ROW = b'{"uploaded":"2026-01-01T00:00:00Z","fileName":"endless.pdf","sourceType":"Other","displayName":null},'
_BOMB_BLOCK = 1024 * 1024
#: Values of `retry_after` that are words, given the server's time and `seconds`.
_RETRY_AFTER: dict[str, Callable[[float, float], str]] = {
    "seconds": lambda _now, seconds: str(int(seconds)),
    "date": lambda now, seconds: formatdate(now + seconds, usegmt=True),
    "past": lambda now, _seconds: formatdate(now - 3600, usegmt=True),
    "garbage": lambda _now, _seconds: "soon, perhaps",
    "huge": lambda _now, _seconds: "1000000000",
}


@dataclass(slots=True)
class Case:
    """One request that a fault struck, and what can be done with it."""

    fault: Fault
    request: Request
    now: float  # the server's wall clock
    run: Callable[[], Awaitable[Answer]]  # lets the service answer
    error: Callable[[int, str | None], Answer]  # an error in the shape of the service: status and code
    refuse: Callable[[float, str, bool], None]  # closes the door for some seconds

    def param(self, name: str, default: Any) -> Any:
        return self.fault.params.get(name, default)


async def suffer(case: Case) -> Answer:
    """Let the fault have its way: an answer to deliver, or Reset."""
    case.request.late = float(case.param("late", 0.0))
    return await _DOINGS[case.fault.kind](case)


# before the body


async def _refuse(case: Case) -> Answer:
    case.refuse(float(case.param("seconds", 1.0)), str(case.param("mode", "refuse")), bool(case.param("all", True)))
    raise Reset


async def _reset(case: Case) -> Answer:  # noqa: ARG001 - all doings look alike
    raise Reset


async def _early(case: Case) -> Answer:
    answer = case.error(413 if case.fault.kind == "early_413" else 401, None)
    answer.then = "reset"
    return answer


# inside and after the body


async def _reset_inside(case: Case) -> Answer:
    body = case.request.body
    if body.done:
        raise Reset
    body.cut_after = max(1, int(case.param("after", (body.length or 2) // 2)))
    await body.drain()
    raise Reset  # the body was shorter than that


async def _slow_read(case: Case) -> Answer:
    case.request.body.rate = float(case.param("rate", 1000.0))
    case.request.wire.narrow()
    return await case.run()


async def _reset_after(case: Case) -> Answer:
    await case.request.body.drain()
    raise Reset


async def _lost_answer(case: Case) -> Answer:
    await case.run()
    await case.request.body.drain()
    if case.param("how", "reset") == "close":
        case.request.wire.close()
    raise Reset


async def _stall(case: Case) -> Answer:
    await _only_if_stored(case)
    await case.request.body.drain()
    await case.request.wire.over(case.param("seconds", None))
    raise Reset


# the service's own failures


async def _status(case: Case) -> Answer:
    answer = case.error(int(case.param("status", 500)), case.param("code", None))
    answer.headers.update({str(name): str(value) for name, value in dict(case.param("headers", {})).items()})
    return await _forced(case, answer, stored=bool(case.param("stored", False)))


async def _too_many(case: Case) -> Answer:
    wish, seconds = case.param("retry_after", "seconds"), float(case.param("seconds", 1.0))
    answer = case.error(429, None)
    answer.headers["Retry-After"] = _RETRY_AFTER[wish](case.now, seconds) if wish in _RETRY_AFTER else str(wish)
    return await _forced(case, answer, stored=False)


async def _swallow(case: Case) -> Answer:
    return await _forced(case, Answer(200), stored=False)


async def _late(case: Case) -> Answer:
    return await case.run()


async def _forced(case: Case, answer: Answer, *, stored: bool) -> Answer:
    case.request.forced, case.request.stores = answer, stored
    return await case.run()


# answers that nobody should believe


async def _slow_answer(case: Case) -> Answer:
    answer = await case.run()
    answer.rate = float(case.param("rate", 1.0))
    return answer


async def _truncated(case: Case) -> Answer:
    answer = await case.run()
    answer.cut, answer.then = case.param("at", None), "close"
    answer.extra = int(case.param("extra", 64 if answer.cut is None else 0))
    return answer


async def _html(case: Case) -> Answer:
    await _only_if_stored(case)
    status = 200 if case.fault.kind == "html_200" else 502
    return Answer(status, _HTML % (status, status), {"Content-Type": "text/html; charset=utf-8"})


async def _page(case: Case) -> Answer:
    """Answer as a proxy or a web site does: any status, any type, any text."""
    await _only_if_stored(case)
    status, content_type = int(case.param("status", 400)), str(case.param("type", "text/html"))
    default = _HTML % (status, status) if "html" in content_type else b"no such page"
    text = case.param("text", None)
    return Answer(status, default if text is None else str(text).encode(), {"Content-Type": content_type})


async def _bomb(case: Case) -> Answer:
    await _only_if_stored(case)
    body = await anyio.to_thread.run_sync(_bomb_of, int(case.param("size", 1024**3)))
    return Answer(200, body, {"Content-Type": "application/json", "Content-Encoding": "gzip"})


async def _endless(case: Case) -> Answer:
    await _only_if_stored(case)
    stream = _rows(case.param("size", None))
    return Answer(200, headers={"Content-Type": "application/json"}, stream=stream, then="close")


async def _redirect(case: Case) -> Answer:
    await case.request.body.drain()
    location = str(case.param("location", f"{case.request.base}/elsewhere"))
    return Answer(int(case.param("status", 307)), headers={"Location": location})


async def _only_if_stored(case: Case) -> None:
    """Let the service do its part when the fault comes after it; else nothing has reached it."""
    if case.param("stored", False):
        await case.run()
    else:
        await case.request.body.drain()


async def _rows(size: int | None) -> AsyncGenerator[bytes, None]:
    block, sent = b"[" + _ENDLESS_ROW * 600, 0
    while size is None or sent < size:
        yield block
        sent += len(block)
        block = _ENDLESS_ROW * 600


@lru_cache(maxsize=4)
def _bomb_of(size: int) -> bytes:
    """`[`, then about `size` blanks, then `]`, a thousandth as long in gzip. Full flushes make the blocks alike."""
    blanks, count = b" " * _BOMB_BLOCK, max(1, size // _BOMB_BLOCK)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = packer.compress(b"[") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(blanks) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.compress(b"]") + packer.flush(zlib.Z_FINISH)
    checksum = zlib.crc32(b"[")
    for _ in range(count):
        checksum = zlib.crc32(blanks, checksum)
    checksum = zlib.crc32(b"]", checksum)
    length = (count * _BOMB_BLOCK + 2) % 2**32
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    return head + start + block * count + end + checksum.to_bytes(4, "little") + length.to_bytes(4, "little")


_DOINGS: dict[str, Callable[[Case], Awaitable[Answer]]] = {
    "refuse": _refuse,
    "reset_before": _reset,
    "stale_keepalive": _reset,
    "early_413": _early,
    "early_401": _early,
    "reset_inside": _reset_inside,
    "slow_read": _slow_read,
    "reset_after": _reset_after,
    "lost_answer": _lost_answer,
    "stall": _stall,
    "status": _status,
    "too_many": _too_many,
    "swallow": _swallow,
    "late": _late,
    "slow_answer": _slow_answer,
    "truncated_answer": _truncated,
    "html_200": _html,
    "html_502": _html,
    "page": _page,
    "gzip_bomb": _bomb,
    "endless_json": _endless,
    "redirect": _redirect,
}
