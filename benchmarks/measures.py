"""Define the measurements, one function for each part of the table; every figure goes into a `Table`."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks import daemon
from benchmarks.docferry_run import KEYS, PROGRAM, DocferryRun
from benchmarks.peers import Peer
from benchmarks.programs import Failed, Run, Sink, run, sink
from benchmarks.report import Table
from benchmarks.tls import missing, tls_sink
from benchmarks.trees import Tree, build


@dataclass(frozen=True, slots=True)
class Scale:
    """Select the amount of measuring: all, or enough to find failures."""

    rounds: int
    small: int  # files of W1
    middle: int  # files of W2
    large: int  # bytes of W3
    sent: tuple[int, ...]  # files of W4, W5
    due: int  # documents due at once, for the peak of memory; 0: not measured
    cycles: int
    slow: int  # documents to the server that takes its time
    probes: int
    others: int
    idle: tuple[int, int, float]  # files, folders, seconds
    rows: int
    starts: int


FULL = Scale(5, 10_000, 200, 4 << 30, (100_000, 1_000_000), 100_000, 20_000, 2_000, 100, 1_000, (100_000, 1_000, 30.0),
             1_000_000, 9)  # fmt: skip
QUICK = Scale(2, 1_000, 20, 512 << 20, (20_000,), 0, 2_000, 400, 40, 200, (10_000, 100, 5.0), 20_000, 3)
Send = Callable[[], Run]


@dataclass(frozen=True, slots=True)
class Bench:
    """Hold one run of the benchmark: place, scale, peers, and the resulting table."""

    place: Path
    scale: Scale
    peers: Mapping[str, Peer]
    table: Table

    def docferry(
        self,
        tree: Tree,
        server: Sink,
        *,
        to: str = "codat",
        batch: int = 1,
        cores: int | None = None,
        senders: int | None = None,
    ) -> Send:
        """Measure a complete first `sync` of a tree."""
        place, trust = self.place / "docferry", server.ca_file
        docferry = DocferryRun(
            place, tree.root, server.url, to=to, batch=batch, ca_file=trust, cores=cores, senders=senders
        )

        def send() -> Run:
            server.reset()
            docferry.prepare()
            return docferry.sync(uploaded=tree.files)

        return send

    def peer(self, name: str, tree: Tree, server: Sink) -> Send:
        """Measure a peer that sends the tree. Raises Failed if documents are missing."""

        def send() -> Run:
            server.reset()
            done = self.peers[name].send(tree, server.url)
            came = server.figures()["received"]
            if came < tree.total:
                raise Failed(f"{self.peers[name].name} brought {came:,} of {tree.total:,} bytes")
            return done

        return send

    def in_turn(self, sends: Mapping[str, Send]) -> dict[str, Run]:
        """Run all contenders in rounds, A B A B…, and return the median of each."""
        runs: dict[str, list[Run]] = {name: [] for name in sends}
        for _ in range(self.scale.rounds):
            for name, send in sends.items():
                runs[name].append(send())
        return {name: median(each) for name, each in runs.items()}


def median(runs: list[Run]) -> Run:
    """Return the median of each figure; of memory, the largest."""
    return Run(
        statistics.median(run.wall for run in runs),
        statistics.median(run.cpu for run in runs),
        max(run.peak for run in runs),
        runs[-1].said,
    )


def ceiling(bench: Bench) -> None:
    """Measure the sink with raw sockets."""
    with sink() as server:
        for body, requests in ((40_000, bench.scale.small), (5_000_000, bench.scale.middle)):
            done = run([sys.executable, "-m", "benchmarks.ceiling", str(server.port), str(requests), str(body)])
            bench.table.note(f"sink, raw requests of {body:,} bytes", float(done.said), "requests/s")


def small_files(bench: Bench, *, tls: bool = False) -> None:
    """Measure W1. Over TLS also on one core, because the threads share one interpreter, and with a sender process."""
    tree = build(bench.place, f"w1-{bench.scale.small}", bench.scale.small, 40_000, 100)
    with tls_sink() if tls else sink() as server:
        sends = {
            "codat": bench.docferry(tree, server),
            **({"one core": bench.docferry(tree, server, cores=1)} if tls else {}),
            **({"codat-sender": bench.docferry(tree, server, senders=1)} if tls else {}),
            "batch": bench.docferry(tree, server, batch=20),
            **({"batch-sender": bench.docferry(tree, server, batch=20, senders=1)} if tls else {}),
            "wootiv": bench.docferry(tree, server, to="wootiv"),
            **{name: bench.peer(name, tree, server) for name in bench.peers},
        }
        runs = bench.in_turn(sends)
    table = bench.table
    names = {
        "codat": "docferry → Codat",
        "one core": "docferry → Codat, on one core",
        "codat-sender": "docferry → Codat, one sender",
        "batch": "docferry → Codat, batch = 20",
        "batch-sender": "docferry → Codat, batch = 20, one sender",
        "wootiv": "docferry → Wootiv",
    }
    workload = "W1 TLS" if tls else "W1"
    for key, done in runs.items():
        table.contender(workload, names.get(key) or bench.peers[key].name, done, tree.files, tree.total)
    sdk, wootiv = (2.0, 0.5) if tls else (1.5, 0.35)
    table.goal(f"{workload} Codat, one file a request ÷ SDK", speed(runs, "codat", "sdk"), sdk, 2.5)
    table.goal(f"{workload} Codat, batch = 20 ÷ rclone", speed(runs, "batch", "rclone"), 1.0, 1.5)
    table.goal(f"{workload} Wootiv ÷ rclone", speed(runs, "wootiv", "rclone"), wootiv, 1.0)
    peak = max(done.peak for key, done in runs.items() if key in names)
    table.goal(f"{workload} peak memory, MB", peak, 100, 70, most=True)


def middle_files(bench: Bench, *, tls: bool = False) -> None:
    tree = build(bench.place, f"w2-{bench.scale.middle}", bench.scale.middle, 5_000_000, 10)
    with tls_sink() if tls else sink() as server:
        sends = {
            "codat": bench.docferry(tree, server),
            "wootiv": bench.docferry(tree, server, to="wootiv"),
            **{f"{to}-sender": bench.docferry(tree, server, to=to, senders=1) for to in ("codat", "wootiv") if tls},
            **{name: bench.peer(name, tree, server) for name in bench.peers},
        }
        runs = bench.in_turn(sends)
    names = {"codat": "docferry → Codat", "wootiv": "docferry → Wootiv"}
    names |= {f"{to}-sender": f"{name}, one sender" for to, name in names.items()}
    workload, least = ("W2 TLS", 1.2) if tls else ("W2", 1.0)
    for key, done in runs.items():
        bench.table.contender(workload, names.get(key) or bench.peers[key].name, done, tree.files, tree.total)
    bench.table.goal(f"{workload} Codat ÷ rclone", speed(runs, "codat", "rclone"), least, 1.5)
    bench.table.goal(f"{workload} Wootiv ÷ rclone", speed(runs, "wootiv", "rclone"), 1.0, 1.5)
    bench.table.goal(
        f"{workload} peak memory, MB", max(done.peak for key, done in runs.items() if key in names), 100, 70, most=True
    )


def over_tls(measure: Callable[..., None]) -> Callable[[Bench], None]:
    """Return a measurement that is made over TLS, or left out with the reason."""

    def measured(bench: Bench) -> None:
        if (reason := missing()) is None:
            measure(bench, tls=True)
        else:
            print(reason, file=sys.stderr)

    return measured


def large_file(bench: Bench) -> None:
    tree = build(bench.place, f"w3-{bench.scale.large}", 1, bench.scale.large, 1)
    with sink() as server:
        sends = {"wootiv": bench.docferry(tree, server, to="wootiv")}
        sends |= {name: bench.peer(name, tree, server) for name in bench.peers if name != "sdk"}
        runs = bench.in_turn(sends)
    for key, done in runs.items():
        name = "docferry → Wootiv" if key == "wootiv" else bench.peers[key].name
        bench.table.contender("W3", name, done, tree.files, tree.total)
    bench.table.goal("W3 Wootiv ÷ rclone, single PUT", speed(runs, "wootiv", "rclone"), 1.0, 2.0)
    bench.table.goal("W3 peak memory, MB", runs["wootiv"].peak, 100, 70, most=True)


def second_pass(bench: Bench) -> None:
    """W4, W5: nothing to do, against the barest walk."""
    for number, files in enumerate(bench.scale.sent, 4):
        tree = build(bench.place, f"w{number}-{files}", files, 64, max(10, files // 100))
        known = bench.place / f"known-{files}"
        if not known.exists():
            run([sys.executable, "-m", "benchmarks.fill", str(known), "sent", str(tree.root)])
        docferry = DocferryRun(bench.place / "docferry", tree.root, "http://127.0.0.1:9")
        docferry.prepare(state_of=known)
        docferry.sync(uploaded=0)  # the first start after a change of configuration does more
        walker = [sys.executable, str(Path(__file__).with_name("walk.py")), str(tree.root)]
        runs = bench.in_turn({"docferry": partial(docferry.sync, uploaded=0), "walk": partial(run, walker)})
        bench.table.contender(f"W{number}", "docferry, nothing to do", runs["docferry"], files, 0)
        bench.table.contender(f"W{number}", "scandir + stat", runs["walk"], files, 0)
        limits = (3.0, 2.0) if number == 4 else (2.0, 1.3)
        wall = runs["docferry"].wall / runs["walk"].wall
        bench.table.goal(f"W{number} time of a second pass ÷ bare walk", wall, *limits, most=True)
        bench.table.goal(f"W{number} peak memory, MB", runs["docferry"].peak, 100, 70, most=True)


def many_due(bench: Bench) -> None:
    """Memory while very many documents are due."""
    if not bench.scale.due:
        return
    tree = build(bench.place, f"w4-{bench.scale.due}", bench.scale.due, 64, max(10, bench.scale.due // 100))
    with sink() as server:
        done = bench.docferry(tree, server, batch=20)()
    bench.table.contender("due", f"docferry → Codat, {tree.files:,} due", done, tree.files, tree.total)
    bench.table.goal(f"peak memory with {tree.files:,} documents due, MB", done.peak, 100, 70, most=True)


def queue(bench: Bench) -> None:
    found = []
    for number in range(bench.scale.rounds):
        folder = bench.place / f"queue-{number}"
        folder.mkdir()
        done = run([sys.executable, "-m", "benchmarks.queue_cycles", str(folder), str(bench.scale.cycles)])
        found.append(json.loads(done.said))
        shutil.rmtree(folder)
    raw = statistics.median(each["raw"] for each in found)
    bench.table.note("raw sqlite3, one row a commit, FULL", raw, "commits/s")
    bench.table.goal("queue, cycles a second", statistics.median(each["cycles"] for each in found), 5000, raw)


def slow_server(bench: Bench) -> None:
    """50 ms before each answer, ten at once: 200 requests a second is all there is."""
    tree = build(bench.place, f"slow-{bench.scale.slow}", bench.scale.slow, 2_000, 10)
    rates = []
    with sink("--delay", "0.05") as server:
        for _ in range(bench.scale.rounds):
            server.reset()
            docferry = DocferryRun(bench.place / "docferry", tree.root, server.url, workers=16)
            docferry.prepare()
            docferry.sync(uploaded=tree.files)
            found = server.figures()
            rates.append(found["requests"] / (found["last"] - found["first"]))
    bench.table.goal("server with 50 ms, 10 at once, ÷ 200 requests/s", statistics.median(rates) / 200, 0.95, 0.99)


def noticing(bench: Bench) -> None:
    """Return the time from the last write to the first byte of the request, beyond `settle`."""
    for others in (0, bench.scale.others):
        folder = bench.place / "noticed"
        shutil.rmtree(folder, ignore_errors=True)
        for number in range(10):
            (folder / f"d{number}").mkdir(parents=True)
        with sink("--log") as server:
            docferry = DocferryRun(bench.place / "docferry", folder, server.url)
            docferry.prepare()
            late = daemon.detection(docferry, server, probes=bench.scale.probes, others=others, every=0.1)
        shutil.rmtree(folder)
        p50, p95, p99 = (late[min(len(late) - 1, int(len(late) * share))] * 1000 for share in (0.5, 0.95, 0.99))
        when = f"while {others:,} others arrive" if others else "alone"
        bench.table.note(f"noticing a file {when}, median", p50, "ms")
        bench.table.goal(f"noticing a file {when}, p95, ms", p95, 150, 50, most=True)
        if len(late) >= 100:  # of fewer the 99th of a hundred is only the worst
            bench.table.goal(f"noticing a file {when}, p99, ms", p99, 500, 500, most=True)


def loop_lag(bench: Bench) -> None:
    trees = {
        "W1": (build(bench.place, f"w1-{bench.scale.small}", bench.scale.small, 40_000, 100), "codat"),
        "W2": (build(bench.place, f"w2-{bench.scale.middle}", bench.scale.middle, 5_000_000, 10), "codat"),
        "W3": (build(bench.place, f"w3-{bench.scale.large}", 1, bench.scale.large, 1), "wootiv"),
    }
    with sink() as server:
        for name, (tree, to) in trees.items():
            docferry = DocferryRun(bench.place / "docferry", tree.root, server.url, to=to)
            docferry.prepare()
            done = run([sys.executable, "-m", "benchmarks.lag", str(docferry.config)], env=KEYS)
            found = json.loads(done.said.splitlines()[-1])
            bench.table.goal(f"event loop lag during {name}, p99, ms", found["p99"] * 1000, 20, 5, most=True)
            bench.table.note(f"event loop lag during {name}, worst", found["max"] * 1000, "ms")


def idle(bench: Bench) -> None:
    files, folders, seconds = bench.scale.idle
    tree = build(bench.place, f"idle-{files}", files, 64, folders)
    known = bench.place / f"idle-known-{files}"
    if not known.exists():
        run([sys.executable, "-m", "benchmarks.fill", str(known), "sent", str(tree.root)])
    docferry = DocferryRun(bench.place / "docferry", tree.root, "http://127.0.0.1:9")
    docferry.prepare(state_of=known)
    share = daemon.idle(docferry, seconds) * 100
    bench.table.goal(f"idle over {files:,} files in {folders:,} folders, % of a core", share, 0.2, 0.2, most=True)


def starting(bench: Bench) -> None:
    tree = build(bench.place, "few", 10, 64, 1)
    with sink() as server:
        docferry = DocferryRun(bench.place / "docferry", tree.root, server.url)
        docferry.prepare()
        docferry.sync(uploaded=10)
    few = replace(bench, scale=replace(bench.scale, rounds=bench.scale.starts))
    runs = few.in_turn(
        {
            "pass": lambda: run([sys.executable, "-c", "pass"]),
            "version": lambda: run([*PROGRAM, "--version"]),
            "status": lambda: run(docferry.command("status", "--json"), env=KEYS),
        }
    )
    bare = runs["pass"].wall
    bench.table.note("python -c pass", bare, "s")
    bench.table.goal("docferry --version, s beyond `python -c pass`", runs["version"].wall - bare, 0.2, 0.1, most=True)
    bench.table.goal("docferry status --json, s beyond it", runs["status"].wall - bare, 1.0, 0.6, most=True)


def growth(bench: Bench) -> None:
    """Send the same documents with an empty database and with a large one."""
    files = bench.scale.small // 2
    tree = build(bench.place, f"growth-{files}", files, 40_000, 20)
    past = bench.place / f"past-{bench.scale.rows}"
    if not past.exists():
        run([sys.executable, "-m", "benchmarks.fill", str(past), "rows", str(bench.scale.rows)])
    seconds: dict[str, list[float]] = {"empty": [], "past": []}
    with sink() as server:
        docferry = DocferryRun(bench.place / "docferry", tree.root, server.url)
        for _ in range(bench.scale.rounds):
            for name, state_of in (("empty", None), ("past", past)):
                docferry.prepare(state_of=state_of)
                seconds[name].append(json.loads(docferry.sync(uploaded=files).said)["seconds"])
    ratio = statistics.median(seconds["empty"]) / statistics.median(seconds["past"])
    bench.table.goal(f"growth: speed with {bench.scale.rows:,} rows ÷ with none", ratio, 0.9, 0.98)


def speed(runs: Mapping[str, Run], ours: str, theirs: str) -> float | None:
    """Return the ratio of speeds; None without a peer."""
    return runs[theirs].wall / runs[ours].wall if theirs in runs else None


ALL: Mapping[str, Callable[[Bench], None]] = {
    "ceiling": ceiling,
    "w1-tls": over_tls(small_files),
    "w2-tls": over_tls(middle_files),
    "w1": small_files,
    "w2": middle_files,
    "w3": large_file,
    "w4": second_pass,
    "due": many_due,
    "queue": queue,
    "slow": slow_server,
    "noticing": noticing,
    "lag": loop_lag,
    "idle": idle,
    "start": starting,
    "growth": growth,
}
