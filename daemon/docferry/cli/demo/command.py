"""Run `docferry demo`: the real daemon against the simulator, shown live, then verified."""

from __future__ import annotations

import signal
import subprocess
import time
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from docferry.app.status_file import read_status
from docferry.cli.demo import proof
from docferry.cli.demo.stage import Stage, daemon, perform, set_up
from docferry.cli.output import BAD, FAINT, GOOD, STRONG, WARN, Cell, Content, Screen, cell, complain, line
from docferry.cli.ui import link
from docferry.simulator import Event
from docferry.store.opening import open_database
from docferry.store.reports import AttemptRow, Reports, Row

#: The longest duration of the demo, seconds.
LONGEST_S: Final = 50.0
EVENT_POLL_S: Final = 0.15
FAILED: Final = 1
_REMOTES: Final = {"acme-bank": "Codat", "scans": "Wootiv"}
_FAULTS: Final = {
    "lost_answer": "stores a document and never answers",
    "too_many": "says 429: too many requests, come back in a second",
    "reset_inside": "cuts the connection in the middle of a document",
    "status": "says that it is broken (5xx)",
}
_PROOFS: Final = {"list": "it had arrived: Codat lists it", "zip": "it had arrived: Codat's ZIP has it"}


def command(asked: Namespace) -> int:
    """Run the demo, and return 0 if every document is proved."""
    screen = Screen()
    code = anyio.run(_demo, screen, asked.page)
    if code == 0:
        _go_on(screen)
    return code


async def _demo(screen: Screen, page: bool) -> int:
    async with anyio.create_task_group() as group:
        stopped: list[int] = []
        group.start_soon(_until_signal, group.cancel_scope, stopped)
        code = FAILED
        with set_up(page=page) as stage:
            _introduce(screen, stage)
            with daemon(stage) as running:
                if page:
                    await _show_link(screen, stage, "The status page, for the next minute:")
                show = _Show(screen, stage, running)
                await show.run()
                if page and show.complete:
                    code = await _proved(screen, stage)
                    await _show_link(screen, stage, "The page stays open until Ctrl-C. A fresh link, for a minute:")
                    await anyio.sleep_forever()
            if show.complete:
                code = await _proved(screen, stage)
            else:
                _explain(stage, running)
        group.cancel_scope.cancel()
    return 128 + stopped[0] if stopped and not (page and code == 0) else code


async def _until_signal(scope: anyio.CancelScope, stopped: list[int]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            stopped.append(int(number))
            scope.cancel()
            return


async def _show_link(screen: Screen, stage: Stage, text: str) -> None:
    state = stage.base / "state"
    with anyio.move_on_after(LONGEST_S):
        while True:
            if (listen := _listening(state)) is not None:
                screen.show(line(text, Cell(link(state, listen), STRONG)), line())
                return
            await anyio.sleep(0.05)  # the daemon does not announce its listening port


def _listening(state: Path) -> str | None:
    found: str | None = (read_status(state) or {}).get("listening", {}).get("web")
    return found


def _introduce(screen: Screen, stage: Stage) -> None:
    screen.show(
        line(Cell("docferry demo", STRONG)),
        line("Codat and Wootiv are simulated at", stage.simulator.url, "and will misbehave a little."),
        line("The real daemon runs on", str(stage.base), "which is removed afterwards."),
        line(),
    )


@dataclass(slots=True)
class _Show:
    """Print events as they happen, until all expected events have arrived."""

    screen: Screen
    stage: Stage
    running: subprocess.Popen[bytes]
    complete: bool = False
    _began: float = field(default_factory=time.monotonic)
    _told: dict[int, int] = field(default_factory=dict)  # by document: number of attempts already shown
    _ended: set[int] = field(default_factory=set)
    _by_digest: dict[tuple[str, str], str] = field(default_factory=dict)
    _events: int = 0
    _here: set[Path] = field(default_factory=set)
    _performed: bool = False

    async def run(self) -> None:
        path = self.stage.base / "state" / "docferry.db"
        with anyio.move_on_after(LONGEST_S):
            while not (self.stage.base / "state" / "status.json").exists():
                if self.running.poll() is not None:
                    return
                await anyio.sleep(0.05)  # the daemon does not announce its start
            async with open_database(path) as database, anyio.create_task_group() as group:
                group.start_soon(self._perform)
                while not self.complete and self.running.poll() is None:
                    await self._look(Reports(database))
                    await anyio.sleep(EVENT_POLL_S)
                group.cancel_scope.cancel()

    async def _perform(self) -> None:
        await perform(self.stage)
        self._performed = True

    async def _look(self, reports: Reports) -> None:
        self._tell_events()
        rows = await reports.rows()
        for row in rows:
            if row.id not in self._ended:
                await self._tell(row, reports)
        self._tell_arrivals()
        open_ = [row for row in rows if row.state not in {"sent", "held", "gone"}]
        self.complete = self._performed and not open_ and proof.all_came(self.stage, rows)

    def _tell_events(self) -> None:
        fresh = self.stage.events[self._events :]
        self._events += len(fresh)
        for event in fresh:
            if event.kind == "fault":
                self._say(Cell("fault", WARN), _service(event), Cell(_FAULTS.get(event.detail, event.detail), WARN))

    async def _tell(self, row: Row, reports: Reports) -> None:
        name = row.path.decode("utf-8", "replace")
        twin = self._by_digest.setdefault((row.mapping, row.sha256 or name), name)
        if twin != name:
            self._ended.add(row.id)
            self._say(Cell("known", FAINT), name, Cell(f"has the bytes of {twin}: goes once", FAINT))
            return
        attempts = proof.tries(await reports.attempts(row.id))
        for at, attempt in enumerate(attempts[self._told.get(row.id, 0) :], self._told.get(row.id, 0)):
            self._tell_attempt(row, name, attempt, at + 1)
        self._told[row.id] = len(attempts)
        if row.state == "held":
            self._say(Cell("held", BAD), name, Cell(f"{row.reason}: {row.detail}", BAD))
        if row.state in {"held", "sent", "gone"}:
            self._ended.add(row.id)

    def _tell_attempt(self, row: Row, name: str, attempt: AttemptRow, number: int) -> None:
        where = f"→ {_REMOTES.get(row.mapping, row.mapping)}"
        if attempt.state == "sent":
            how = _PROOFS.get(attempt.proof or "", "" if number == 1 else "sent again, and taken")
            self._say(Cell("sent", GOOD), name, where, Cell(how, GOOD))
        elif attempt.state == "doubtful":
            self._say(Cell("in doubt", WARN), name, where, Cell(_short(attempt.detail), WARN))
        elif attempt.state == "waiting":
            self._say(Cell("again", WARN), name, where, Cell(_short(attempt.detail), WARN))

    def _tell_arrivals(self) -> None:
        for path in proof.arrived(self.stage):
            if path not in self._here:
                self._here.add(path)
                self._say(Cell("came down", GOOD), str(path.relative_to(self.stage.base)))

    def _say(self, what: Cell, *rest: Content) -> None:
        passed = f"{time.monotonic() - self._began:5.1f} s"
        first, *others = rest
        padded = Cell(f"{cell(first)!s:<28}")
        self.screen.show(line(Cell(passed, FAINT), Cell(f"{what!s:<9}", what.style), padded, *others))


def _short(detail: str | None) -> str:
    """Shorten a sentence; `docferry show` prints all of it."""
    return (detail or "").partition(" — ")[0].partition(" [")[0]


def _service(event: Event) -> str:
    return {"codat": "Codat", "s3": "Wootiv's storage"}.get(event.route.partition(".")[0], "Wootiv")


async def _proved(screen: Screen, stage: Stage) -> int:
    """Return the tables, and whether the remotes have exactly the expected documents."""
    async with open_database(stage.base / "state" / "docferry.db") as database:
        rows = await Reports(database).rows()
        tries = {row.id: len(proof.tries(await Reports(database).attempts(row.id))) for row in rows}
    verdict = await anyio.to_thread.run_sync(proof.verdict, stage, rows, tries)
    screen.show(line(), *verdict.blocks)
    complain(*verdict.problems)
    return FAILED if verdict.problems else 0


def _explain(stage: Stage, running: subprocess.Popen[bytes]) -> None:
    ended = running.returncode is not None and running.returncode > 0
    complain("the daemon ended too early" if ended else f"not everything came within {LONGEST_S:.0f} s")
    for text in stage.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]:
        complain(f"  {text}")


def _go_on(screen: Screen) -> None:
    screen.show(
        line(),
        line("To continue with a real account:"),
        line(Cell("  docferry config init > docferry.toml", STRONG), Cell("  # then edit it", FAINT)),
        line(Cell("  docferry check", STRONG)),
        line(Cell("  docferry run", STRONG)),
    )
