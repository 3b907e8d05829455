"""Measure 1, 2 and 4 hosts that share a PostgreSQL queue: `PYTHONPATH=tests python -m benchmarks.hosts`.

Each host is a process with documents of its own company, because Codat's limits apply to each company. The sink answers
after 50 ms, so a single host is limited by its workers, and two cores suffice for four hosts. Prints documents a
second, and the speed as a multiple of one host's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.docferry_run import KEYS, PROGRAM
from benchmarks.programs import Sink, sink
from postgresql_server import running_server

DELAY_S = 0.05
HOSTS = (1, 2, 4)


def prepare(folder: Path, url: str, documents: int, workers: int) -> Path:
    """Write a host's documents and its configuration; return the configuration."""
    outgoing = folder / "out"
    outgoing.mkdir(parents=True)
    for number in range(documents):
        (outgoing / f"{number:05}.pdf").write_bytes(b"%s %d" % (folder.name.encode(), number) * 400)
    company, connection = (uuid.uuid4() for _ in range(2))
    config = folder / "docferry.toml"
    config.write_text(
        f"""
state_dir = "{folder}/state"
settle = "500ms"
workers = {workers}
[codat]
base_url = "{url}"
requests_per_minute = 10000000
list_lag = "100ms"
[[upload]]
name = "out"
folder = "{outgoing}"
to = "codat"
company_id = "{company}"
connection_id = "{connection}"
"""
    )
    return config


def measure(url: str, server: Sink, hosts: int, documents: int, workers: int) -> float:
    """Return the documents a second of so many hosts, each with so many documents."""
    with tempfile.TemporaryDirectory() as root:
        configs = [prepare(Path(root) / f"h{number}", server.url, documents, workers) for number in range(hosts)]
        server.reset()
        running = []
        for number, config in enumerate(configs):
            here = {"DOCFERRY_DATABASE_URL": url, "DOCFERRY_HOST": f"h{number}", **KEYS}
            command = [*PROGRAM, "--config", str(config), "sync", "--json"]
            running.append(subprocess.Popen(command, env={**os.environ, **here}, stdout=subprocess.PIPE))
        reports = [json.loads(process.communicate()[0]) for process in running]
        assert sum(report["uploaded"] for report in reports) == hosts * documents, reports
        figures = server.figures()
        assert figures["requests"] == hosts * documents, figures
        return float(figures["requests"] / (figures["last"] - figures["first"]))


def main() -> None:
    """Measure each number of hosts, in rounds."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--documents", type=int, default=1_000, help="of each host")
    asked.add_argument("--workers", type=int, default=4, help="of each host")
    asked.add_argument("--rounds", type=int, default=3)
    wanted = asked.parse_args()
    with ExitStack() as stack:
        database, remote = stack.enter_context(running_server()), stack.enter_context(sink("--delay", str(DELAY_S)))
        speeds: dict[int, list[float]] = {hosts: [] for hosts in HOSTS}
        for _ in range(wanted.rounds):
            for hosts in HOSTS:
                url = database.new_database()
                speeds[hosts].append(measure(url, remote, hosts, wanted.documents, wanted.workers))
                print(f"{hosts} hosts: {speeds[hosts][-1]:.1f} documents/s", flush=True)
        for hosts in HOSTS:
            factor = median(speeds[hosts]) / median(speeds[1])
            print(
                f"{hosts} hosts: {median(speeds[hosts]):.1f} documents/s, {factor:.2f} times one host, "
                f"{factor / hosts:.2f} N"
            )  # fmt: skip - one sentence


if __name__ == "__main__":
    main()
