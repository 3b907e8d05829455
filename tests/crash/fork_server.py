"""Fork docferry processes from a loaded parent, and let one kill itself at a chosen transition.

Requests are lines of JSON on stdin: {"spawn": [words], "env": {…}, "out": path, "err": path, "kill_at": [point, nth],
"clock": path, "patience": seconds, "senders": true} returns the child's pid. {"wait": pid} waits for its end and
returns its exit code; {"poll": pid} returns it or null. The functions of the product are wrapped here, in the child,
after the fork.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config  # noqa: F401 - loaded before the fork
from sqlalchemy import event
from sqlalchemy.engine import Engine

from docferry import clock
from docferry.app import one_pass
from docferry.cli import main as cli
from docferry.cli import run, sync  # noqa: F401 - loaded before the fork
from docferry.remotes.codat.client import Codat
from docferry.senders import handle, pool
from docferry.senders.pool import SenderPool
from docferry.store import transitions
from docferry.store.connection import Transaction
from docferry.store.documents import Documents
from docferry.store.statement import Sql, Statement
from docferry.store.transfers import Transfers
from docferry.store.transitions import TransitionWriter
from ready_senders import ready_first

#: The moments of each transition at which a process can be killed.
MOMENTS = ("before", "inside", "after")


class KillPoint:
    """Kill the process with SIGKILL at the nth pass of a point."""

    def __init__(self, transition: str, nth: int) -> None:
        self.transition = transition
        self.left = nth

    def reach(self, *names: str) -> None:
        if self.transition in names:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Serve until stdin ends; then kill every child."""
    children: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "spawn" in order:
            answer: int | None = _fork(order)
            children.add(answer or 0)
        else:
            answer = _exit_code(order)
            if answer is not None:
                children.discard(order.get("wait", order.get("poll")))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _exit_code(order: Mapping[str, int]) -> int | None:
    """Return the exit code, negative for a signal; None while the child lives."""
    pid, status = os.waitpid(order["wait"], 0) if "wait" in order else os.waitpid(order["poll"], os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _fork(order: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = _run(order)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)  # exit functions belong to the parent


def _run(order: Mapping[str, Any]) -> int:
    devnull = os.open(os.devnull, os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    for descriptor, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    os.dup2(devnull, 0)
    os.environ.clear()
    os.environ.update(order["env"])
    if order.get("kill_at"):
        _wrap_transitions(KillPoint(*order["kill_at"]))
    if order.get("clock"):
        _offset_clock(Path(order["clock"]))
    if order.get("patience"):
        _replace(one_pass, WRITE_PATIENCE=order["patience"])
    if order.get("senders"):
        _replace(SenderPool, run=ready_first(SenderPool.run))
    if isinstance(order.get("senders"), list):
        _kill_senders_at(*order["senders"])
    return cli.main(order["spawn"])


def _kill_senders_at(point: str, pause: float) -> None:
    """Let each sender kill itself at a point of `crash.killed_sender`; another starts after `pause` seconds."""
    popen = subprocess.Popen

    def start(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return popen([*words, point], **options)

    _replace(handle, PROGRAM="crash.killed_sender")
    _replace(pool, PAUSE_S=pause, LONGEST_PAUSE_S=pause)
    _replace(subprocess, Popen=start)


def _offset_clock(offset_file: Path) -> None:
    """Shift the wall clock by the seconds in a file."""
    real_now = clock.SystemClock.now
    _replace(clock.SystemClock, now=lambda self: real_now(self) + float(offset_file.read_text() or 0))


def _wrap_transitions(kill_point: KillPoint) -> None:
    move, apply, claim, sweep = TransitionWriter.make, transitions.apply, Transfers.claim, Transfers.reclaim

    async def make(self: TransitionWriter, rows: list[dict[str, Any]]) -> None:
        names = {f"{row['from'].value}>{row['state'].value}" for row in rows}
        kill_point.reach(*(f"{each}:before" for each in names))
        await move(self, rows)
        kill_point.reach(*(f"{each}:after" for each in names))

    def apply_rows(transaction: Transaction, rows: list[dict[str, Any]], receipts: Any) -> Any:
        found = apply(transaction, rows, receipts)
        kill_point.reach(*{f"{row['from'].value}>{row['state'].value}:inside" for row in rows})
        return found

    async def claim_picks(self: Transfers, picks: Sequence[Any], room: int, ask_for: Collection[str] = ()) -> Any:
        wanted = {"doubtful>asking" if pick.lane.doubtful else "waiting>leased" for pick in picks}
        kill_point.reach(*(f"{each}:before" for each in wanted))
        found = await claim(self, picks, room, ask_for)
        kill_point.reach(*{f"{'doubtful' if t.state == 'asking' else 'waiting'}>{t.state.value}:after" for t in found})
        return found

    async def reclaim_owners(self: Transfers, dead: Iterable[str]) -> int:
        gone = list(dead)
        kill_point.reach(*(["sweep:before"] if gone else []))
        found = await sweep(self, gone)
        kill_point.reach(*(["sweep:after"] if gone else []))
        return found

    _replace(TransitionWriter, make=make)
    _replace(Transfers, claim=claim_picks, reclaim=reclaim_owners)
    _replace(transitions, apply=apply_rows)
    _replace(Documents, apply=_around(Documents.apply, kill_point, "new>waiting"))
    _replace(Codat, send=_around(Codat.send, kill_point, "send"), lookup=_around(Codat.lookup, kill_point, "find"))
    _inside_send(kill_point)
    for verb in ("start", "execute", "execute_many", "fetch_all", "fetch_one"):
        _replace(Transaction, **{verb: _after_statement(getattr(Transaction, verb), kill_point)})
    event.listen(Engine, "after_cursor_execute", lambda *_: kill_point.reach("statement"))
    _replace(sqlite3, connect=_traced(sqlite3.connect, kill_point))


def _traced(connect: Callable[..., sqlite3.Connection], kill_point: KillPoint) -> Callable[..., sqlite3.Connection]:
    """Pass the point before each statement that creates a SQLite queue."""

    def trace(statement: str) -> None:
        if statement.startswith(("CREATE TABLE", "CREATE INDEX", "CREATE UNIQUE INDEX")):
            kill_point.reach("statement")

    def wrapped(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(trace)
        return connection

    return wrapped


def _after_statement(verb: Callable[..., Any], kill_point: KillPoint) -> Callable[..., Any]:
    """Pass the point after each statement of the store; the hooks above cover its creation and its migrations."""

    @functools.wraps(verb)
    def wrapped(self: Transaction, statement: Statement, *more: Any) -> Any:
        found = verb(self, statement, *more)
        plans = isinstance(statement, Sql) and statement.lstrip().startswith("INSERT INTO document")
        kill_point.reach("statement", *(["new>waiting:inside"] if plans else []))
        return found

    return wrapped


def _around(
    verb: Callable[..., Awaitable[Any]], kill_point: KillPoint, transition: str
) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(verb)
    async def wrapped(*args: Any, **more: Any) -> Any:
        kill_point.reach(f"{transition}:before")
        try:
            return await verb(*args, **more)
        finally:
            kill_point.reach(f"{transition}:after")

    return wrapped


def _inside_send(kill_point: KillPoint) -> None:
    """Pass the point between two blocks of a body."""
    from docferry.remotes.http import Form

    blocks = Form.blocks

    async def some(self: Form) -> Any:
        async for block in blocks(self):
            yield block
            kill_point.reach("send:inside")

    _replace(Form, blocks=some)


def _replace(where: Any, **verbs: object) -> None:
    for name, verb in verbs.items():
        setattr(where, name, verb)


if __name__ == "__main__":
    main()
