"""Measure the daemon: how soon it notices a file, and its CPU time while idle."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.docferry_run import KEYS, DocferryRun
from benchmarks.programs import PROJECT, Failed, Sink, environment

#: How long a start may take, seconds.
_PATIENCE = 120.0


@contextmanager
def daemon(docferry: DocferryRun) -> Iterator[int]:
    """Run `docferry run` and yield its process id after its first round."""
    log = docferry.place / "run.log"
    with (
        log.open("wb") as told,
        subprocess.Popen(
            docferry.command("run"), stdout=told, stderr=told, env=environment(KEYS), cwd=PROJECT
        ) as program,
    ):
        try:
            deadline = time.monotonic() + _PATIENCE
            while b" ready" not in log.read_bytes() and b'"ready"' not in log.read_bytes():
                if program.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"docferry run did not start: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.05)  # nothing else announces it but its log
            yield program.pid
        finally:
            program.send_signal(signal.SIGTERM)


def detection(docferry: DocferryRun, sink: Sink, *, probes: int, others: int, every: float) -> list[float]:
    """Seconds from the last write of a small file to the first byte of its request, less `settle`; sorted.
    `others` are written meanwhile, evenly."""
    settle = float(docferry.settle.removesuffix("ms")) / 1000
    written: dict[str, float] = {}
    with daemon(docferry):
        time.sleep(1.0)  # the watch is armed just after the first round
        sink.reset()
        began, number = time.monotonic(), 0
        for probe in range(probes):
            while number < others * probe // probes:
                _write(docferry.folder / f"d{number % 10}" / f"other{number:05}.pdf")
                number += 1
            name = f"probe{probe:05}.pdf"
            _write(docferry.folder / f"d{probe % 10}" / name)
            written[name] = time.monotonic()
            # One probe at each interval, independent of the previous duration.
            time.sleep(max(0.0, began + (probe + 1) * every - time.monotonic()))  # the pace of the probes
        deadline = time.monotonic() + _PATIENCE
        while sink.figures()["requests"] < probes + number and time.monotonic() < deadline:
            time.sleep(0.2)  # arrivals have their own times
        arrived = {name: at for at, name in sink.figures()["arrivals"]}
    missing = written.keys() - arrived.keys()
    if missing:
        raise Failed(f"{len(missing)} of {probes} files were never sent")
    return sorted(arrived[name] - at - settle for name, at in written.items())


def idle(docferry: DocferryRun, seconds: float) -> float:
    """Return the share of a core that an idle daemon takes."""
    with daemon(docferry) as pid:
        time.sleep(5.0)  # wait until the start is over
        before, began = _used(pid), time.monotonic()
        time.sleep(seconds)  # the measured time
        return (_used(pid) - before) / (time.monotonic() - began)


def _used(pid: int) -> float:
    """CPU seconds so far, to the nanosecond, of threads that have ended too: the clock that clock_getcpuclockid(3)
    names. A sum over the threads that live would run backwards when one ends."""
    return time.clock_gettime((~pid << 3) | 2)


def _write(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(path.name.encode())
