"""Fail half of all requests in every way that the simulator supports; half of the documents use TLS.

With `--senders`, sender processes send the documents, and are killed and stopped at random, as are the daemons.

`python tests/crash/storm.py --documents 10000` prints the result. The exit code is 1 if a document was lost, doubled or
torn, or if more than one in a thousand is held.
"""

from __future__ import annotations

import argparse
import random
import re
import sqlite3
import ssl
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

sys.path.insert(0, str(Path(__file__).parent.parent))  # a program finds only its own folder

from app_env import AppEnv, Daemon, digest
from crash.process_faults import ProcessFaults, sender_counts
from crash.storm_faults import AppliedFaults, fault_rules
from crash.storm_outcome import Outcome
from docferry.simulator import Fault, Simulator, SimulatorOptions, SimulatorThread

#: The configured lag of the list, seconds. Late documents are stored and listed before 2.5 times that.
LAG = 0.8
#: Sizes of documents in bytes, and one that a kill meets while it is sent by a sender.
SIZES, LARGE = (10, 500, 3_000, 3_000, 20_000, 90_000), 300_000


@dataclass
class Weathered(AppEnv):
    """Provide an environment with additional settings in variables, and senders that start at once."""

    extra: dict[str, str] = field(default_factory=dict)
    senders: int = 0

    def command(self, *words: str) -> list[str]:
        python, _, _, *more = super().command(*words)
        eager = [str(Path(__file__).with_name("skewed.py")), "0", "senders"]
        return [python, *eager, *more] if self.senders else super().command(*words)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.extra}


@dataclass
class Half:
    """Run one daemon and its simulator, with TLS or without."""

    name: str
    app_env: Weathered
    faults_applied: Counter[tuple[str, str]]
    folders: dict[str, Path]
    process_faults: ProcessFaults
    laid: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # place, name, digest
    daemon: Daemon | None = None

    def use_senders(self, count: int) -> None:
        self.app_env.senders = count
        self.app_env.settings["senders"] = str(count)

    def end(self) -> int:
        """Stop the daemon and return its exit code."""
        self.process_faults.end_stops()
        return 0 if self.daemon is None else self.daemon.end()

    def step(self) -> None:
        """Check that the daemon runs; with senders, apply faults of processes."""
        assert self.daemon is not None
        assert self.daemon.running.poll() is None, self.daemon.text()[-3000:]
        if self.app_env.senders:
            self.daemon = self.process_faults.step(self.daemon)

    def write_documents(self, jitter: random.Random, numbers: Sequence[int]) -> None:
        """Documents of many sizes in many connections; several share a name."""
        companies = [str(uuid.UUID(int=jitter.getrandbits(128), version=4)) for _ in range(2 + len(numbers) // 150)]
        places = [f"{company}/{uuid.uuid5(uuid.UUID(company), str(k))}" for company in companies for k in range(2)]
        sizes = (*SIZES, LARGE) if self.app_env.senders else SIZES
        for number in numbers:
            content = b"%d:" % number + jitter.randbytes(jitter.choice(sizes))
            mapping, place, name = jitter.choice(list(self.folders)), "wootiv", f"{number}.pdf"
            folder = self.folders[mapping]
            if mapping != "scans":
                place, name = jitter.choice(places), f"statement {number % 37}.pdf"
                folder = folder / place
            path = folder / f"{number % 9}" / f"{number}" / name
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
            self.laid[place, name, digest(content)] += 1

    def stored(self) -> Counter[tuple[str, str, str]]:
        simulator = self.app_env.simulator
        found = Counter(
            (f"{each.company}/{each.connection}", re.sub(r"~[0-9a-f]+\.", ".", each.name), each.sha256)
            for each in simulator.stored
            if each.remote == "codat"
        )
        found.update(("wootiv", key, each.sha256) for (_, key), each in simulator.objects.items())
        return found

    def ask(self, statement: str) -> list[Any]:
        """Query its database."""
        path = self.app_env.state / "docferry.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(statement).fetchall()

    def standing(self) -> Counter[str]:
        try:
            return Counter(dict(self.ask("SELECT state, count(*) FROM transfer GROUP BY 1")))
        except sqlite3.OperationalError:  # it is being made
            return Counter()

    def is_over(self) -> bool:
        standing = self.standing()
        return standing["sent"] + standing["held"] == standing.total() == self.laid.total()

    def peak(self) -> int:
        """Return the largest memory of the daemon, MB."""
        assert self.daemon is not None
        status = Path(f"/proc/{self.daemon.running.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) // 1024 if found else 0


@dataclass(frozen=True)
class Plan:
    """Define a storm."""

    documents: int
    seed: int
    senders: int = 0  # of each daemon
    lag: float = LAG
    patience: float = 3_600.0  # seconds after which it fails


def storm(root: Path, plan: Plan, tell: Callable[[str], object] = lambda _: None) -> Outcome:
    """Two daemons through it, side by side, until every document is final."""
    began, documents, lag = time.monotonic(), plan.documents, plan.lag
    jitter = random.Random(plan.seed)  # noqa: S311 - the same storm for the same seed
    with ExitStack() as stack:
        halves = [
            _half(stack, root / name, fault_rules(documents // 2, lag), jitter.randrange(1 << 30), lag)
            for name in ("plain", "tls")
        ]
        for half, numbers in zip(halves, (range(documents // 2), range(documents // 2, documents)), strict=True):
            half.use_senders(plan.senders)
            half.write_documents(jitter, numbers)
        for half in halves:
            stack.callback(half.end)
            half.daemon = Daemon(half.app_env)
        told = began
        while not all(half.is_over() for half in halves):
            now = time.monotonic()
            assert now - began < plan.patience, "\n".join(f"{half.name}: {half.standing()}" for half in halves)
            for half in halves:
                half.step()
            if now - told > 5:
                told = now
                tell(_progress(halves, now - began))
            time.sleep(0.2)  # between two looks at a queue
        peaks = {half.name: half.peak() for half in halves}
        for half in halves:
            assert half.daemon is not None
            assert half.end() == 0, half.daemon.text()[-3000:]
        time.sleep(lag)  # late documents must be there to be counted
        return _outcome(halves, time.monotonic() - began, peaks)


def _half(stack: ExitStack, root: Path, faults: Sequence[Fault], seed: int, lag: float) -> Half:
    root.mkdir()
    tls = root.name == "tls"
    faults_applied = AppliedFaults()
    options = SimulatorOptions(
        requests_per_minute=0, list_lag=lag / 4, idempotency=tls, signed="post" if tls else "put", latency=0.002
    )
    simulator = Simulator(options, faults, seed, events=faults_applied)
    context, ca_file = None, root / "ca.pem"
    if tls:
        authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.cert_pem.write_to_path(str(ca_file))
        authority.issue_cert("127.0.0.1").configure_cert(context)
    app_env = Weathered(root, stack.enter_context(SimulatorThread(simulator, ssl_context=context)))
    app_env.settings |= {"settle": '"200ms"', "rescan": '"30s"', "log_level": '"info"', "workers": "16"}
    app_env.codat |= {"list_lag": f'"{lag}s"', "timeout": f'"{2.5 * lag}s"'}
    # Short pauses, so that it is over in minutes.
    app_env.extra |= {"DOCFERRY_RETRY__INITIAL": "20ms", "DOCFERRY_RETRY__MAX": "200ms"}
    app_env.extra["DOCFERRY_WOOTIV__TIMEOUT"] = f"{2.5 * lag}s"
    if tls:
        app_env.extra |= {f"DOCFERRY_{remote}__CA_FILE": str(ca_file) for remote in ("CODAT", "WOOTIV")}
    placed = "{company_id}/{connection_id}"
    app_env.upload("bank", folder=f"bank/{placed}")
    app_env.upload("vault", folder=f"vault/{placed}", file_name='"{stem}~{token}{suffix}"')
    folders = {"bank": root / "bank", "vault": root / "vault"}
    folders["scans"] = app_env.upload("scans", "wootiv", object_name='"{name}"')
    process_faults = ProcessFaults(random.Random(seed))  # noqa: S311 - the same faults for the same seed
    return Half(root.name, app_env, faults_applied, folders, process_faults)


def _progress(halves: Sequence[Half], seconds: float) -> str:
    requests = sum(half.app_env.simulator.requests.total() for half in halves)
    faults_applied = sum(half.faults_applied.total() for half in halves)
    standing: Counter[str] = sum((half.standing() for half in halves), Counter())
    told = ", ".join(f"{count} {state}" for state, count in sorted(standing.items()))
    return f"{seconds:7.0f} s  {requests} requests, {faults_applied} with a fault: {told}"


def _outcome(halves: Sequence[Half], seconds: float, peaks: Mapping[str, int]) -> Outcome:
    held: Counter[str] = Counter()
    lost: Counter[tuple[str, str, str]] = Counter()
    doubled, torn = lost.copy(), lost.copy()
    sound = True
    for half in halves:
        stored = half.stored()
        refused = {row[0]: row[1] for row in half.ask("SELECT sha256, reason FROM transfer WHERE state = 'held'")}
        held.update(refused.values())
        missing, more = half.laid - stored, stored - half.laid
        lost += Counter({key: count for key, count in missing.items() if key[2] not in refused})
        doubled += Counter({key: count for key, count in more.items() if key in half.laid})
        torn += Counter({key: count for key, count in more.items() if key not in half.laid})
        sound = sound and half.ask("PRAGMA integrity_check") == [("ok",)]
    requests: Counter[str] = sum((half.app_env.simulator.requests for half in halves), Counter())
    faults_applied: Counter[tuple[str, str]] = sum((half.faults_applied for half in halves), Counter())
    documents = sum(half.laid.total() for half in halves)
    return Outcome(
        documents,
        requests,
        faults_applied,
        held,
        lost,
        doubled,
        torn,
        sound,
        seconds,
        peaks,
        process_faults=sum((half.process_faults.applied for half in halves), Counter()),
        senders=_sender_counts(halves),
    )


def _sender_counts(halves: Sequence[Half]) -> tuple[int, int] | None:
    """Return the number of started senders, and of their requests; None in a storm without senders."""
    if not halves[0].app_env.senders:
        return None
    started, requests = zip(*(sender_counts(half.app_env) for half in halves), strict=True)
    return sum(started), sum(requests)


def main() -> int:
    """Run one storm, and print its progress."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--documents", type=int, default=10_000)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--senders", type=int, default=0, help="sender processes of each daemon, and kills")
    asked.add_argument("--keep", type=Path, help="a folder for what is left: logs, databases, documents")
    wanted = asked.parse_args()
    print(f"seed {wanted.seed}", flush=True)
    with ExitStack() as stack:
        root = wanted.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="docferry-storm-")))
        root.mkdir(exist_ok=True)
        plan = Plan(wanted.documents, wanted.seed, wanted.senders)
        outcome = storm(root, plan, lambda line: print(line, flush=True))
        print(outcome.table())
        for what in ("lost", "doubled", "torn"):
            for key in getattr(outcome, what):
                print(f"{what}: {' '.join(key)}")
    return 0 if outcome.is_well else 1


if __name__ == "__main__":
    sys.exit(main())
