"""Kill the daemon and `sync` while documents arrive, then compare the remotes with the folders."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
from collections import Counter
from pathlib import Path

from app_env import AppEnv, digest
from crash.fork_server import MOMENTS
from crash.process_pool import KILLED, ChildProcess, ProcessPool
from docferry.simulator import Fault

#: The faults, each for a share of the uploads.
FAULT_KINDS = ("lost_answer", "reset_after", "reset_inside", "reset_before", "status", "truncated_answer")


LOST = [Fault("lost_answer", "codat.upload", first=3)]
NOT_STORED = [Fault("reset_after", "codat.upload", first=3)]

#: Each transition at which to kill, and the faults that cause it.
KILL_POINTS: dict[str, list[Fault]] = {
    "new>waiting": [],
    "waiting>leased": [],
    "leased>sending": [],
    "send": [],
    "sending>sent": [],
    "sending>waiting": [Fault("too_many", "codat.upload", first=3, params={"seconds": 0})],
    "sending>doubtful": LOST,
    "doubtful>asking": LOST,
    "find": LOST,
    "asking>sent": LOST,
    "asking>sending": NOT_STORED,
    "asking>doubtful": [*LOST, Fault("status", "codat.list", first=3)],
    "sweep": [],
}
#: These are one statement or none, so nothing can happen inside.
WITHOUT_INSIDE = {"waiting>leased", "doubtful>asking", "find", "sweep"}
#: With senders the blocks of a body are in other processes.
WITHOUT_INSIDE_BY_SENDERS = {"send"}


class Dropper:
    """Write documents into folders at random moments until it is stopped."""

    def __init__(self, folders: dict[str, Path], seed: int, most: int, pause: float) -> None:
        self.made: Counter[tuple[str, str]] = Counter()
        self._folders = folders
        self._random = random.Random(seed)  # noqa: S311 - the same documents for the same seed
        self._most = most
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Dropper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for number in range(self._most):
            if self._stop.wait(self._random.uniform(0, 2 * self._pause)):
                return
            self._drop(number)

    def _drop(self, number: int) -> None:
        jitter = self._random
        folder = self._folders[jitter.choice(list(self._folders))] / f"a{number % 7}" / f"b{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        content = b"%d:" % number + jitter.randbytes(jitter.choice((10, 3_000, 60_000, 400_000)))
        path = folder / f"{number}.pdf"
        if jitter.random() < 0.5:
            fresh = folder / f".{number}.part"
            fresh.write_bytes(content)
            fresh.rename(path)
        else:
            half = jitter.randrange(len(content))
            with path.open("wb") as file:
                file.write(content[:half])
                file.flush()
                self._stop.wait(jitter.uniform(0, 0.05))
                file.write(content[half:])
        self.made[path.name, digest(content)] += 1


class KillHarness:
    """Kill processes at random moments while requests fail."""

    def __init__(self, app_env: AppEnv, process_pool: ProcessPool, seed: int, *, senders: int = 0) -> None:
        self.app_env = app_env
        self.senders = senders  # of each process, ready before anything is claimed
        self.process_pool = process_pool
        self.kills: Counter[str] = Counter()
        self._random = random.Random(seed)  # noqa: S311 - repeatable by its seed
        app_env.settings |= {"settle": '"100ms"', "rescan": '"1s"', "log_level": '"warning"'}
        app_env.settings["senders"] = str(senders)
        app_env.codat |= {"list_lag": '"200ms"', "timeout": '"2s"'}
        options = app_env.simulator.options
        options.list_lag, options.latency = 0.1, 0.01
        app_env.simulator.set_faults(
            [Fault(kind, "codat.upload", rate=0.05) for kind in FAULT_KINDS]
            + [Fault("status", "codat.list", rate=0.1), Fault("lost_answer", "s3.*", rate=0.05)]
        )

    def storm(self, kills: int) -> None:
        """Kill daemons, and passes beside them, until there were `kills` kills."""
        while self.kills.total() < kills:
            daemon = self._spawn("run")
            beside = [self._spawn("sync", "--json") for _ in range(self._random.random() < 0.5)]
            self._wait(daemon, self._random.choice((0.15, 0.4, 0.8, 1.6)))
            if self._random.random() < 0.5:
                beside.append(self._spawn("sync", "--json"))
                self._wait(daemon, 0.6)
            if self.senders and self._random.random() < 0.7:
                self._kill_a_sender(daemon)
                self._wait(daemon, 0.4)
            for name, child in [("run", daemon), *(("sync", each) for each in beside)]:
                if not child.ended():
                    child.kill()
                    self.kills[name] += child.code == KILLED

    def _spawn(self, *words: str) -> ChildProcess:
        return self.process_pool.spawn(self.app_env, *words, senders=bool(self.senders))

    def _kill_a_sender(self, daemon: ChildProcess) -> None:
        pids = child_pids(daemon.pid)
        if pids:
            os.kill(self._random.choice(pids), signal.SIGKILL)
            self.kills["sender"] += 1

    def _wait(self, daemon: ChildProcess, longest: float) -> None:
        """Wait a random time; fail if the daemon ends by itself."""
        threading.Event().wait(self._random.uniform(0, longest))
        assert not daemon.ended(), daemon.text()[-3000:]

    def drain(self) -> dict[str, int]:
        """Remove the faults and run passes until nothing is due."""
        self.app_env.simulator.set_faults([])
        return self.process_pool.drained(self.app_env, 20)


def child_pids(pid: int) -> list[int]:
    """Return the children of a process: of the program, its senders."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_at_transition(
    app_env: AppEnv, process_pool: ProcessPool, transition: str, in_a_row: int, *, senders: int = 0
) -> tuple[int, Counter[tuple[str, str]]]:
    """Kill passes at a transition, then let passes end. Return the kills and the written documents."""
    app_env.settings["senders"] = str(senders)
    app_env.settings |= {"settle": '"10ms"', "log_level": '"warning"'}
    app_env.codat |= {"list_lag": '"60ms"', "timeout": '"2s"'}
    app_env.simulator.options.idempotency = False
    folder = app_env.upload("bank")
    made: Counter[tuple[str, str]] = Counter()
    kills = 0
    for moment in MOMENTS:
        if moment == "inside" and transition in WITHOUT_INSIDE | (WITHOUT_INSIDE_BY_SENDERS if senders else set()):
            continue
        app_env.simulator.set_faults(KILL_POINTS[transition])
        for number in range(3):
            content = f"{moment} {number}".encode()
            (folder / f"{moment}-{number}.pdf").write_bytes(content)
            made[f"{moment}-{number}.pdf", digest(content)] += 1
        if transition == "sweep":
            assert process_pool.spawn(app_env, "sync", kill_at=("send:before", 1)).wait() == KILLED
        for death in range(in_a_row):
            kill_at = (f"{transition}:{moment}", 1)
            ended = process_pool.spawn(app_env, "sync", kill_at=kill_at, senders=bool(senders)).wait()
            assert ended == KILLED or death, f"{transition}:{moment} was not passed"
            kills += ended == KILLED
        process_pool.drained(app_env)
    return kills, made


def verify_remote(app_env: AppEnv, made: Counter[tuple[str, str]]) -> str:
    """Compare the remotes with the written documents: nothing lost, doubled or torn; check the database."""
    stored = app_env.stored()
    lost, more = made - stored, stored - made
    doubled = Counter({key: count for key, count in more.items() if key in made})
    torn = more - doubled
    assert (dict(lost), dict(doubled), dict(torn)) == ({}, {}, {})
    with sqlite3.connect(app_env.state / "docferry.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM transfer WHERE state = 'held'").fetchone() == (0,)
    return f"{len(made)} documents: 0 lost, 0 doubled, 0 torn; integrity_check ok"
