"""A program that bears docferry processes from a warm parent, and lets one kill itself at a chosen arrow.

Orders come as lines of JSON on stdin: {"birth": [words], "env": {…}, "out": path, "err": path, "fate": [arrow, nth],
"clock": path, "patience": seconds} answers the child's pid; {"death": pid} waits for its end and answers how it ended;
{"dead": pid} only looks. The product knows nothing of all this: the arrows are wrapped here, in the child,
after the fork.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config  # noqa: F401 - as above
from sqlalchemy import TextClause, event
from sqlalchemy.engine import Engine

from docferry import clock
from docferry.app import one_pass
from docferry.cli import main as cli
from docferry.cli import run, sync  # noqa: F401 - warm
from docferry.remotes.codat.client import Codat
from docferry.store import transitions
from docferry.store.connection import Statement, Transaction
from docferry.store.documents import Documents
from docferry.store.transfers import Transfers
from docferry.store.transitions import TransitionWriter

#: Every arrow that a process can be killed at; `MOMENTS` of each.
MOMENTS = ("before", "inside", "after")


class Fate:
    """Dies without a word at the nth time that an arrow is passed."""

    def __init__(self, arrow: str, nth: int) -> None:
        self.arrow = arrow
        self.left = nth

    def strike(self, *arrows: str) -> None:
        if self.arrow in arrows:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Serve until stdin ends; then take every child along."""
    living: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "birth" in order:
            answer: int | None = _bear(order)
            living.add(answer or 0)
        else:
            answer = _ended(order)
            if answer is not None:
                living.discard(order.get("death", order.get("dead")))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in living:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _ended(order: Mapping[str, int]) -> int | None:
    """The exit code, negative for a signal; None: it lives."""
    pid, status = os.waitpid(order["death"], 0) if "death" in order else os.waitpid(order["dead"], os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _bear(order: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = _live(order)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)  # the parent's exit functions are the parent's


def _live(order: Mapping[str, Any]) -> int:
    nowhere = os.open(os.devnull, os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    for descriptor, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, flags, 0o600), descriptor)
    os.dup2(nowhere, 0)
    os.environ.clear()
    os.environ.update(order["env"])
    if order.get("fate"):
        _doom(Fate(*order["fate"]))
    if order.get("clock"):
        _turn(Path(order["clock"]))
    if order.get("patience"):
        _swap(one_pass, WRITE_PATIENCE=order["patience"])
    return cli.main(order["birth"])


def _turn(said: Path) -> None:
    """The wall clock is off by as many seconds as the file says."""
    honest = clock.SystemClock.now
    _swap(clock.SystemClock, now=lambda self: honest(self) + float(said.read_text() or 0))


def _doom(fate: Fate) -> None:
    move, apply, claim, sweep = TransitionWriter.make, transitions.apply, Transfers.claim, Transfers.reclaim

    async def moved(self: TransitionWriter, rows: list[dict[str, Any]]) -> None:
        arrows = {f"{row['from'].value}>{row['state'].value}" for row in rows}
        fate.strike(*(f"{each}:before" for each in arrows))
        await move(self, rows)
        fate.strike(*(f"{each}:after" for each in arrows))

    def applied(transaction: Transaction, rows: list[dict[str, Any]], receipts: Any) -> Any:
        found = apply(transaction, rows, receipts)
        fate.strike(*{f"{row['from'].value}>{row['state'].value}:inside" for row in rows})
        return found

    async def claimed(self: Transfers, picks: Sequence[Any], room: int) -> Any:
        wanted = {"doubtful>asking" if pick.lane.doubtful else "waiting>leased" for pick in picks}
        fate.strike(*(f"{each}:before" for each in wanted))
        found = await claim(self, picks, room)
        fate.strike(*{f"{'doubtful' if t.state == 'asking' else 'waiting'}>{t.state.value}:after" for t in found})
        return found

    async def swept(self: Transfers, dead: Iterable[str]) -> int:
        gone = list(dead)
        fate.strike(*(["sweep:before"] if gone else []))
        found = await sweep(self, gone)
        fate.strike(*(["sweep:after"] if gone else []))
        return found

    _swap(TransitionWriter, make=moved)
    _swap(Transfers, claim=claimed, reclaim=swept)
    _swap(transitions, apply=applied)
    _swap(Documents, apply=_around(Documents.apply, fate, "new>waiting"))
    _swap(Codat, send=_around(Codat.send, fate, "send"), lookup=_around(Codat.lookup, fate, "find"))
    _inside_send(fate)
    for verb in ("execute", "execute_many", "fetch_all", "fetch_one"):
        _swap(Transaction, **{verb: _after_statement(getattr(Transaction, verb), fate)})
    event.listen(Engine, "after_cursor_execute", lambda *_: fate.strike("statement"))


def _after_statement(verb: Callable[..., Any], fate: Fate) -> Callable[..., Any]:
    """Strike after each statement of the store; SQLAlchemy's event covers those of the migrations."""

    @functools.wraps(verb)
    def wrapped(self: Transaction, statement: Statement, *more: Any) -> Any:
        found = verb(self, statement, *more)
        plans = isinstance(statement, TextClause) and statement.text.lstrip().startswith("INSERT INTO document")
        fate.strike("statement", *(["new>waiting:inside"] if plans else []))
        return found

    return wrapped


def _around(verb: Callable[..., Awaitable[Any]], fate: Fate, arrow: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(verb)
    async def wrapped(*args: Any, **more: Any) -> Any:
        fate.strike(f"{arrow}:before")
        try:
            return await verb(*args, **more)
        finally:
            fate.strike(f"{arrow}:after")

    return wrapped


def _inside_send(fate: Fate) -> None:
    """Between two blocks of a body."""
    from docferry.remotes.http import Form

    blocks = Form.blocks

    async def some(self: Form) -> Any:
        async for block in blocks(self):
            yield block
            fate.strike("send:inside")

    _swap(Form, blocks=some)


def _swap(where: Any, **verbs: object) -> None:
    for name, verb in verbs.items():
        setattr(where, name, verb)


if __name__ == "__main__":
    main()
