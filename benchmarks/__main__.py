"""Build the trees, time docferry and every other program in turn, and write the results."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import peers
from benchmarks.measures import ALL, FULL, QUICK, Bench
from benchmarks.programs import PROJECT, Failed
from benchmarks.report import Table


def main() -> int:
    asked = _arguments()
    if asked.install_peers:
        peers.furnish()
    contenders, missing = peers.found(asked.peers)
    for line in missing:
        print(line)
    table = Table(asked.quick)
    place = Path(tempfile.mkdtemp(prefix="docferry-bench-", dir=asked.folder))
    failed = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the built trees are removed then too
    try:
        scale = QUICK if asked.quick else FULL
        bench = Bench(place, replace(scale, rounds=asked.rounds or scale.rounds), contenders, table)
        for name in asked.only or ALL:
            began = time.monotonic()
            try:
                ALL[name](bench)
            except Failed as error:
                failed += 1
                print(f"{name}: {error}", file=sys.stderr)
            print(f"{name} measured in {time.monotonic() - began:.0f} s", file=sys.stderr)
        print(table.text())
        whole = not asked.quick and not asked.only and not asked.rounds
        table.write(asked.results, PROJECT / "docs" if whole and not failed else None)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller trees and two rounds: under two minutes")
    parser.add_argument("--rounds", type=int, help="so many instead of 5, or 2 in a quick run")
    parser.add_argument("--only", action="append", choices=list(ALL), help="measure this alone; may be given again")
    parser.add_argument(
        "--folder", type=Path, help="where trees and databases are built (default: the temporary folder)"
    )
    parser.add_argument("--peers", type=Path, default=peers.VENV, help="the environment with the peers")
    parser.add_argument(
        "--install-peers", action="store_true", help="install them there first, as pyproject.toml names them"
    )
    parser.add_argument("--results", type=Path, default=PROJECT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
