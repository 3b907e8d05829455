"""Kill, stop, cut off and fail over: four hosts share a queue in PostgreSQL.

`python tests/crash/fleet.py --faults 2000 --documents 20000` prints the progress and the result. The exit code is 1 if
a document was lost, doubled or torn, by the bytes that the simulated remotes stored. Needs root, for namespaces.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a program finds only its own folder

import psycopg

import pgbouncer
from app_env import AppEnv, digest, until
from crash.fleet_host import Host
from crash.fleet_network import Cut, Network, missing
from crash.fleet_servers import Servers, running_servers
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread

#: Lead of each host's clock, seconds.
SKEWS = (0, 240, -180, 0)
#: The simulated Codat lists a document so late; docferry is told a little more. Seconds.
LIST_LAG, TOLD_LAG = 1.5, 2.0
#: The list lag for a Codat that ignores Idempotency-Key: longer than the delays of a busy machine, seconds.
PATIENT_LAG = 6.0
#: Shorter than the time after which a host is taken for dead, and longer. Seconds.
SHORT, LONG = (0.0, 12.0), (31.0, 40.0)
#: Pause between two faults of the servers, seconds.
SERVER_PAUSE = (5.0, 30.0)
#: Time for the last documents after the last fault, seconds.
DRAIN_S = 600.0
#: A line of progress so often, seconds.
TELL_S = 15.0
COMPANIES = [str(uuid.UUID(int=number + 1, version=4)) for number in range(3)]
ATTEMPTS = """
SELECT to_timestamp(a.began), to_timestamp(a.ended), a.lease, a.state, a.proof, a.detail
FROM attempt a JOIN transfer t ON t.id = a.transfer_id WHERE t.sha256 = %s ORDER BY a.lease
"""


@dataclass
class Plan:
    """Define the size of a run."""

    faults: int = 2_000
    documents: int = 20_000
    seed: int = 1
    synchronous: bool = True
    idempotency: bool = True  # the simulated Codat honours Idempotency-Key
    hosts: int = 4
    long_faults: bool = True  # some faults outlast the heartbeat
    senders: int = 0  # sender processes of each host; with them a third of the documents is large


@dataclass
class Fleet:
    """Run the hosts, and record the faults and the documents."""

    plan: Plan
    network: Network
    servers: Servers
    simulator_thread: SimulatorThread
    root: Path
    hosts: list[Host] = field(default_factory=list)
    applied: Counter[str] = field(default_factory=Counter)
    expected: dict[str, str] = field(default_factory=dict)  # digest → path
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _taken: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    # -- documents --

    def lay_documents(self) -> None:
        """Write documents in step with the faults, to all folders in turn."""
        jitter = random.Random(self.plan.seed)  # noqa: S311 - a run can be repeated by its seed
        for number in range(self.plan.documents):
            self._write(number, jitter)
            share = number / self.plan.documents
            while not self._ended.is_set() and self.applied.total() < share * self.plan.faults:
                time.sleep(0.05)  # polling interval

    def _write(self, number: int, jitter: random.Random) -> None:
        large = (200_000, 800_000) if self.plan.senders else ()  # which a kill meets while they are sent
        content = b"%d:" % number + jitter.randbytes(jitter.choice((10, 3_000, 3_000, 40_000, *large)))
        company = jitter.choice(COMPANIES)
        own = self.root / self.hosts[number % len(self.hosts)].name
        folder = (self.root / "share" / company / str(uuid.UUID(company)), own, self.root / "scans")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{number}.part"
        unfinished.write_bytes(content)
        self.expected[digest(content)] = f"{folder}/{number}.pdf"
        unfinished.rename(folder / f"{number}.pdf")

    # -- faults --

    def apply_faults(self) -> None:
        """Trouble each host and the servers at once, each in a thread of its own."""
        threads = [
            threading.Thread(target=self._guarded, args=(self._trouble_host, host), daemon=True) for host in self.hosts
        ]
        threads.append(threading.Thread(target=self._guarded, args=(self._trouble_servers,), daemon=True))
        threads.append(threading.Thread(target=self._guarded, args=(self.lay_documents,), daemon=True))
        for thread in threads:
            thread.start()
        told = 0.0
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                if time.monotonic() - told >= TELL_S:
                    told = time.monotonic()
                    self.tell()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - a thread's error fails the run
            self.problems.append(f"{work.__name__}: {type(error).__name__}: {error}")
            self._ended.set()

    def _take(self) -> bool:
        """Return whether another fault is wanted."""
        with self._lock:
            self._taken += 1
            return self._taken <= self.plan.faults and not self._ended.is_set()

    def _trouble_host(self, host: Host) -> None:
        jitter = random.Random(f"{self.plan.seed} {host.name}")  # noqa: S311 - a run can be repeated by its seed
        kinds = ["kill", "stop", "cut database", "cut remote", "cut both", *(["kill sender"] if host.senders else [])]
        while self._take():
            kind = jitter.choice(kinds)
            seconds = jitter.uniform(*(LONG if self.plan.long_faults and jitter.random() < 0.4 else SHORT))
            if kind == "kill":
                host.kill()
                time.sleep(seconds)  # the length of the fault
                host.start()
            elif kind == "kill sender":
                host.kill_senders()
            elif kind == "stop":
                host.signal(signal.SIGSTOP)
                time.sleep(seconds)  # the length of the fault
                host.signal(signal.SIGCONT)
            else:
                what: Cut = {"cut database": "database", "cut remote": "remote"}.get(kind, "both")  # type: ignore[assignment]  # mypy sees str
                with self.network.cut(host.namespace, what):
                    time.sleep(seconds)  # the length of the fault
            self.applied[kind] += 1
            time.sleep(jitter.uniform(1.0, 6.0))  # some work between two faults
            self._mend(host)

    def _trouble_servers(self) -> None:
        jitter = random.Random(f"{self.plan.seed} servers")  # noqa: S311 - a run can be repeated by its seed
        actions = {
            "server restart": self.servers.restart,
            "failover": self.servers.fail_over,
            "pgbouncer restart": self.servers.restart_pgbouncer,
        }
        while self._take():
            kind = jitter.choice(list(actions))
            actions[kind]()
            self.applied[kind] += 1
            time.sleep(jitter.uniform(*SERVER_PAUSE) if self.plan.long_faults else 1.0)  # some work between two faults

    def _mend(self, host: Host) -> None:
        problem = host.mend()
        if problem is not None:
            self.problems.append(problem)

    # -- results --

    def drain(self) -> None:
        """Wait until everything was sent. A host that was busy with a start at the end is started again."""

        def is_done() -> bool:
            for host in self.hosts:
                self._mend(host)
            time.sleep(1.0)  # a query each second is enough
            states = self.states()
            return sum(states.values()) >= len(self.expected) and states.keys() <= {"sent"}

        until(is_done, DRAIN_S, "the last receipt")

    def states(self) -> Counter[str]:
        try:
            return Counter(dict(self.servers.fetch("SELECT state, count(*) FROM transfer GROUP BY 1")))  # type: ignore[arg-type]  # pairs
        except psycopg.Error:  # it restarts just now
            return Counter()

    def tell(self) -> None:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.applied.items()))
        states = ", ".join(f"{count} {state}" for state, count in sorted(self.states().items()))
        print(f"{time.strftime('%H:%M:%S')}  {self.applied.total()} faults ({faults}); {states}", flush=True)

    def verdict(self) -> list[str]:
        """Return what is wrong with the bytes that the remotes stored."""
        stored = Counter[str]()
        for (_, sha256), count in self.hosts[0].app_env.stored().items():
            stored[sha256] += count
        lost = [path for sha256, path in self.expected.items() if sha256 not in stored]
        doubled = [path for sha256, path in self.expected.items() if stored[sha256] > 1]
        torn = [sha256 for sha256 in stored if sha256 not in self.expected]
        print(
            f"{len(self.expected)} documents, {self.applied.total()} faults: "
            f"{len(lost)} lost, {len(doubled)} duplicated, {len(torn)} torn",
            flush=True,
        )  # fmt: skip - one sentence
        wrong = [*self.problems]
        if self.plan.senders and not any("sender_started" in host.log.read_text() for host in self.hosts):
            wrong.append("no sender process was started")
        for name, found in (("lost", lost), ("duplicated", doubled), ("torn", torn)):
            wrong += [f"{name}: {each}" for each in found[:20]]
        return wrong + [line for path in (lost + doubled)[:20] for line in self._history(path)]

    def _history(self, path: str) -> list[str]:
        """Return when the remote stored a document, and its attempts."""
        digests = [sha256 for sha256, each in self.expected.items() if each == path]
        stored = [each for each in self.simulator_thread.simulator.stored if each.sha256 in digests]
        rows = self.servers.fetch(ATTEMPTS, digests[0])
        return [f"{path}: stored at {each.at:.3f}" for each in stored] + [f"{path}: {row}" for row in map(str, rows)]


def run(plan: Plan, root: Path) -> list[str]:
    """Run a fleet and return what went wrong."""
    network = Network(plan.hosts)
    with ExitStack() as stack:
        stack.callback(network.remove)
        network.create()
        options = SimulatorOptions(requests_per_minute=0, list_lag=LIST_LAG, latency=0.05, idempotency=plan.idempotency)
        simulator_thread = stack.enter_context(SimulatorThread(Simulator(options), host=network.remote))
        pooler = network.pooler if pgbouncer.is_installed() else None
        if pooler is None:
            print("without pgbouncer, which is not installed", flush=True)
        databases = network.databases
        servers = stack.enter_context(running_servers(databases, pooler, synchronous=plan.synchronous))
        fleet = Fleet(plan, network, servers, simulator_thread, root)
        for index, namespace in enumerate(network.hosts):
            fleet.hosts.append(_host(fleet, index, namespace))
        for host in fleet.hosts:
            stack.callback(host.kill)
            host.start()
        fleet.apply_faults()
        try:
            fleet.drain()
        except AssertionError as error:
            fleet.problems.append(f"{error}: {dict(fleet.states())}")
        fleet.tell()
        return fleet.verdict()


def _host(fleet: Fleet, index: int, namespace: str) -> Host:
    name, root = f"h{index + 1}", fleet.root
    app_env = AppEnv(
        root,
        fleet.simulator_thread,
        settings={
            "state_dir": f'"{root}/state-{name}"',
            "log_level": '"info"',
            "senders": str(fleet.plan.senders),
        },
        codat={"list_lag": f'"{TOLD_LAG if fleet.plan.idempotency else PATIENT_LAG:g}s"'},
        config_name=f"{name}.toml",
    )
    (root / "share").mkdir(exist_ok=True)
    app_env.upload("share", folder="share/{company_id}/{connection_id}", shared="true")
    app_env.upload("own", folder=name)
    app_env.upload("scans", "wootiv", folder="scans", shared="true", object_name='"{name}"')
    app_env.write_config()
    url = fleet.servers.url if index % 2 == 0 else fleet.servers.pooled_url
    return Host(name, namespace, app_env, url, SKEWS[index % len(SKEWS)], fleet.plan.senders)


def main() -> int:
    """Run the fleet of the command line."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--faults", type=int, default=2_000)
    asked.add_argument("--documents", type=int, default=20_000)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--asynchronous", action="store_true", help="let failovers lose the newest commits")
    asked.add_argument("--ignore-keys", action="store_true", help="let Codat ignore Idempotency-Key")
    asked.add_argument("--senders", type=int, default=0, help="sender processes of each host, and large documents")
    asked.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    wanted = asked.parse_args()
    if (problem := missing()) is not None:
        print(problem, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that namespaces and servers are removed
    plan = Plan(
        wanted.faults,
        wanted.documents,
        wanted.seed,
        synchronous=not wanted.asynchronous,
        idempotency=not wanted.ignore_keys,
        senders=wanted.senders,
    )
    root = Path(tempfile.mkdtemp(prefix="docferry-fleet-"))
    wrong = run(plan, root)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if wrong or wanted.keep:
        print(f"logs: {root}", file=sys.stderr)
    else:
        subprocess.run(["rm", "-rf", str(root)], check=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
