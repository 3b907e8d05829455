"""Compare two checkouts, each with a `.venv`: `python -m benchmarks.compare OLD NEW --pairs 5 --only "w1 codat"`.

Both run in turn, against the same sink. The processor time of the whole process counts, user and system, because other
work on the machine changes wall time many times as much. The table has the medians, and the median of new ÷ old.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.docferry_run import KEYS, DocferryRun
from benchmarks.programs import Failed, Sink, environment, sink
from benchmarks.trees import Tree, build

Measure = Callable[[Path], float]


class Cases:
    """Define the workloads, as functions of a checkout that return processor seconds."""

    def __init__(self, place: Path, server: Sink, small: int, middle: int, settings: Mapping[Path, str]) -> None:
        self._place = place
        self._server = server
        self._settings = settings
        small_files = partial(build, place, f"w1-{small}", small, 40_000, 100)
        middle_files = partial(build, place, f"w2-{middle}", middle, 5_000_000, 10)
        self.all: dict[str, Measure] = {
            "w1 codat": partial(self._first_pass, small_files),
            "w1 batch": partial(self._first_pass, small_files, batch=20),
            "w1 wootiv": partial(self._first_pass, small_files, to="wootiv"),
            "w2 codat": partial(self._first_pass, middle_files),
            "w2 wootiv": partial(self._first_pass, middle_files, to="wootiv"),
            "start": partial(self._first_pass, partial(build, place, "few", 10, 64, 1)),
            "queue": self._queue_cycles,
            "w5": self._second_pass,
        }

    def _first_pass(self, tree: Callable[[], Tree], checkout: Path, *, to: str = "codat", batch: int = 1) -> float:
        more = self._settings.get(checkout, "")
        run = DocferryRun(self._place / "docferry", tree().root, self._server.url, to=to, batch=batch, settings=more)
        self._server.reset()
        run.prepare()
        return _seconds(checkout, "docferry", "--config", str(run.config), "sync", "--json")

    def _second_pass(self, checkout: Path) -> float:
        tree = build(self._place, "w5-100000", 100_000, 64, 1_000)
        run = DocferryRun(self._place / f"again-{checkout.name}", tree.root, "http://127.0.0.1:9")
        words = ("docferry", "--config", str(run.config), "sync", "--json")
        if not run.state.exists():  # each version fills a database of its own
            known = self._place / f"known-{checkout.name}"
            _seconds(checkout, "benchmarks.fill", str(known), "sent", str(tree.root))
            run.prepare(state_of=known)
            _seconds(checkout, *words)
        return _seconds(checkout, *words)

    def _queue_cycles(self, checkout: Path) -> float:
        folder = self._place / "queue"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return _seconds(checkout, "benchmarks.queue_cycles", str(folder), "8000")


def _seconds(checkout: Path, module: str, *words: str) -> float:
    """Run a module of a checkout and return its processor time; Failed when it fails."""
    command = [str(checkout / ".venv" / "bin" / "python"), "-m", module, *words]
    with tempfile.TemporaryFile() as said:
        program = subprocess.Popen(
            command, cwd=checkout, env=environment(KEYS), stdout=said, stderr=said, stdin=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        if program.returncode:
            said.seek(0)
            raise Failed(f"{' '.join(command)}: {said.read().decode('utf-8', 'replace')[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--small", type=int, default=3_000, help="files of W1")
    parser.add_argument("--middle", type=int, default=60, help="files of W2")
    parser.add_argument("--only", action="append")
    parser.add_argument("--settings", default="", help='lines for the new configuration alone, like "senders = 0"')
    parser.add_argument("--folder", type=Path, help="where trees and databases are built")
    asked = parser.parse_args()
    old, new = asked.old.resolve(), asked.new.resolve()
    place = Path(tempfile.mkdtemp(prefix="docferry-compare-", dir=asked.folder))
    try:
        with sink() as server:
            cases = Cases(place, server, asked.small, asked.middle, {new: asked.settings}).all
            print(f"{'':12}{'old, s':>9}{'new, s':>9}{'new ÷ old':>11}  each pair")
            for name in asked.only or cases:
                pairs = [(cases[name](old), cases[name](new)) for _ in range(asked.pairs)]
                before, after = (statistics.median(each) for each in zip(*pairs, strict=True))
                ratios = [second / first for first, second in pairs]
                each = " ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"{name:12}{before:9.2f}{after:9.2f}{statistics.median(ratios):11.2f}  {each}", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
