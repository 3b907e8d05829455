"""Fail half of all requests in every way that the simulator supports; half of the documents use TLS.

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
from docferry.simulator import KINDS, Event, Fault, Simulator, SimulatorOptions, SimulatorThread

#: The share of requests with a fault.
SHARE = 0.5
#: The configured lag of the list, seconds. Late documents are stored and listed before 2.5 times that.
LAG = 0.8
#: A share of the documents that the remote may refuse for good: these are held, and nobody can do otherwise.
REFUSED = 0.0005

#: The requests with documents, and the lookups.
DOCUMENTS = ("codat.upload", "s3.put", "s3.post")
QUESTIONS = ("codat.list", "codat.download", "codat.connection", "wootiv.sign")


def fault_variants(lag: float) -> dict[str, list[dict[str, Any]]]:
    """Return the parameters of each kind of fault. Sizes and times fit the shortened lag."""
    late = lag / 2
    return {
        **{kind: [{}] for kind in KINDS},
        "refuse": [{"seconds": 0.05}, {"seconds": 0.05, "mode": "reset"}, {"seconds": 0.05, "all": False}],
        "reset_inside": [{}, {"after": 1}, {"after": 20_000}],
        "lost_answer": [{}, {"how": "close"}, {"late": late}],
        "stall": [{"stored": True}, {"stored": False}, {"stored": True, "seconds": 0.3, "late": late}],
        "slow_read": [{"rate": 400_000}],
        "slow_answer": [{"rate": 1}, {"rate": 3_000}],
        "truncated_answer": [{}, {"at": 0}, {"at": 5}],
        "html_200": [{"stored": True}, {"stored": False}],
        "html_502": [{"stored": True}, {"stored": False}, {"stored": True, "late": late}],
        "gzip_bomb": [{"size": 1 << 25, "stored": True}, {"size": 1 << 25, "stored": False}],
        "endless_json": [{"stored": True}, {"stored": False}],
        "redirect": [{}, {"status": 302}],
        "status": [
            *({"status": status, "stored": stored} for status in (500, 502, 503, 504) for stored in (True, False)),
            *({"status": status} for status in (402, 403, 404, 408, 409, 422)),
            {"status": 503, "headers": {"Retry-After": "0"}},
        ],
        "too_many": [{"retry_after": form, "seconds": 0} for form in ("seconds", "date", "past", "garbage")],
        "late": [{"late": late}],
    }


def fault_rules(documents: int, lag: float) -> list[Fault]:
    """Return rules that apply to `SHARE` of all requests, each kind equally often."""
    no = round(documents * REFUSED)
    rules = [Fault("early_413", "codat.upload", rate=0.01, first=no)] if no else []
    every = fault_variants(lag)
    for route in (*DOCUMENTS, *QUESTIONS):
        left = 1.0
        ways = {kind: [params for params in every[kind] if _leaves_hope(route, kind, params)] for kind in KINDS}
        ways = {kind: found for kind, found in ways.items() if found}
        for kind, found in ways.items():
            for params in found:
                part = SHARE / len(ways) / len(found)
                rules.append(Fault(kind, route, rate=part / left, params=params))
                left -= part
    return rules


def _leaves_hope(route: str, kind: str, params: Mapping[str, Any]) -> bool:
    """Exclude a refusal, which holds a document, and a receipt for a document that is not stored."""
    if route == "wootiv.sign" and params.get("status") == 422:
        return False
    return route not in DOCUMENTS or kind not in {"early_413", "swallow"}


class AppliedFaults(Counter[tuple[str, str]]):
    """Count the applied faults of a simulator, by route and kind."""

    def append(self, event: Event) -> None:
        if event.kind == "fault":
            self[event.route, event.detail] += 1


@dataclass
class Weathered(AppEnv):
    """Provide an environment with additional settings in variables."""

    extra: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.extra}


@dataclass
class Half:
    """Run one daemon and its simulator, with TLS or without."""

    name: str
    app_env: AppEnv
    faults_applied: Counter[tuple[str, str]]
    folders: dict[str, Path]
    laid: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # place, name, digest
    daemon: Daemon | None = None

    def write_documents(self, jitter: random.Random, numbers: Sequence[int]) -> None:
        """Documents of many sizes in many connections; several share a name."""
        companies = [str(uuid.UUID(int=jitter.getrandbits(128), version=4)) for _ in range(2 + len(numbers) // 150)]
        places = [f"{company}/{uuid.uuid5(uuid.UUID(company), str(k))}" for company in companies for k in range(2)]
        for number in numbers:
            content = b"%d:" % number + jitter.randbytes(jitter.choice((10, 500, 3_000, 3_000, 20_000, 90_000)))
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


@dataclass
class Outcome:
    """Hold the result of a storm."""

    documents: int
    requests: Counter[str]
    faults_applied: Counter[tuple[str, str]]
    held: Counter[str]
    lost: Counter[tuple[str, str, str]]
    doubled: Counter[tuple[str, str, str]]
    torn: Counter[tuple[str, str, str]]
    sound: bool
    seconds: float
    peaks: Mapping[str, int]

    @property
    def share(self) -> float:
        return self.faults_applied.total() / max(1, self.requests.total())

    @property
    def is_well(self) -> bool:
        few = self.held.total() <= self.documents / 1000
        return not (self.lost or self.doubled or self.torn) and self.sound and few

    def table(self) -> str:
        """Return the figures, aligned."""
        refused = f"{self.held.total()} ({100 * self.held.total() / self.documents:.2f} %)"
        rows: list[tuple[str, object]] = [
            ("documents", self.documents),
            ("lost", self.lost.total()),
            ("doubled", self.doubled.total()),
            ("torn or misrouted", self.torn.total()),
            ("held", refused),
            *((f"  {why}", count) for why, count in self.held.most_common()),
            ("integrity_check", "ok" if self.sound else "FAILED"),
            ("requests", self.requests.total()),
            *((f"  {route}", count) for route, count in sorted(self.requests.items())),
            ("with a fault", f"{self.faults_applied.total()} ({100 * self.share:.1f} %)"),
            *((f"  {kind}", count) for kind, count in sorted(self.kinds.items())),
            ("seconds", round(self.seconds)),
            *((f"peak memory, {name}", f"{peak} MB") for name, peak in self.peaks.items()),
        ]
        return "\n".join(f"  {name:<22}{value:>14}" for name, value in rows)

    @property
    def kinds(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (_, kind), count in self.faults_applied.items():
            found[kind] += count
        return found


def storm(
    root: Path,
    documents: int,
    seed: int,
    *,
    lag: float = LAG,
    patience: float = 3_600.0,
    tell: Callable[[str], object] = lambda _: None,
) -> Outcome:
    """Two daemons through it, side by side, until every document is final."""
    began = time.monotonic()
    jitter = random.Random(seed)  # noqa: S311 - the same storm for the same seed
    with ExitStack() as stack:
        halves = [
            _half(stack, root / name, fault_rules(documents // 2, lag), jitter.randrange(1 << 30), lag)
            for name in ("plain", "tls")
        ]
        for half, numbers in zip(halves, (range(documents // 2), range(documents // 2, documents)), strict=True):
            half.write_documents(jitter, numbers)
        for half in halves:
            half.daemon = stack.enter_context(half.app_env.daemon(wait=False))
        told = began
        while not all(half.is_over() for half in halves):
            now = time.monotonic()
            assert now - began < patience, "\n".join(f"{half.name}: {half.standing()}" for half in halves)
            for half in halves:
                assert half.daemon is not None
                assert half.daemon.running.poll() is None, half.daemon.text()[-3000:]
            if now - told > 5:
                told = now
                tell(_progress(halves, now - began))
            time.sleep(0.2)  # between two looks at a queue
        peaks = {half.name: half.peak() for half in halves}
        for half in halves:
            assert half.daemon is not None
            assert half.daemon.end() == 0, half.daemon.text()[-3000:]
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
    return Half(root.name, app_env, faults_applied, folders)


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
    return Outcome(documents, requests, faults_applied, held, lost, doubled, torn, sound, seconds, peaks)


def main() -> int:
    """Run one storm, and print its progress."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--documents", type=int, default=10_000)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--keep", type=Path, help="a folder for what is left: logs, databases, documents")
    wanted = asked.parse_args()
    print(f"seed {wanted.seed}", flush=True)
    with ExitStack() as stack:
        root = wanted.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="docferry-storm-")))
        root.mkdir(exist_ok=True)
        outcome = storm(root, wanted.documents, wanted.seed, tell=lambda line: print(line, flush=True))
        print(outcome.table())
        for what in ("lost", "doubled", "torn"):
            for key in getattr(outcome, what):
                print(f"{what}: {' '.join(key)}")
    return 0 if outcome.is_well else 1


if __name__ == "__main__":
    sys.exit(main())
