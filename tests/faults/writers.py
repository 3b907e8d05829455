"""Define seven models of programs that write a document.

Each is a generator of pauses, so that one thread drives thousands of writers. The pauses are the fault itself, not
waits for the daemon. `writers.py FOLDER EACH AT-ONCE LEAST MOST GAP SETTLE` runs them in a process of their own, which
the test does not slow down.
"""

from __future__ import annotations

import heapq
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PDF = b"a document\n"  # of no kind whose end tells whether it is complete


@dataclass
class Tempo:
    """Define the speed of writers, in seconds."""

    least: float  # a pause with the file open; many times `settle`
    most: float
    gap: float  # for how long it is closed before it is opened again; less than `settle`
    settle: float
    jitter: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311 - the same pauses every time
    late: list[Path] = field(default_factory=list)  # the machine was so busy that these stood closed for `settle`

    def pause(self) -> float:
        return self.jitter.uniform(self.least, self.most)


Model = Callable[[Path, bytes, Tempo], Iterator[float]]


def stalls(path: Path, body: bytes, tempo: Tempo) -> Iterator[float]:
    """Write one half, and the rest later, with the file open."""
    with path.open("wb") as file:
        file.write(body[: len(body) // 2])
        file.flush()
        yield tempo.pause()
        file.write(body[len(body) // 2 :])


def stalls_before_the_first_byte(path: Path, body: bytes, tempo: Tempo) -> Iterator[float]:
    with path.open("wb") as file:
        yield tempo.pause()
        file.write(body)


def appends(path: Path, body: bytes, tempo: Tempo) -> Iterator[float]:
    """Append a little at a time, at intervals longer than `settle`."""
    with path.open("ab", buffering=0) as file:
        for piece in _quarters(body):
            file.write(piece)
            yield max(tempo.pause() / 4, 1.5 * tempo.settle)


def preallocates(path: Path, body: bytes, tempo: Tempo) -> Iterator[float]:
    """Set the full size at once, and write the bytes later."""
    with path.open("wb") as file:
        file.truncate(len(body))
        yield tempo.pause() / 2
        os.pwrite(file.fileno(), body[: len(body) // 2], 0)
        yield tempo.pause() / 2
        os.pwrite(file.fileno(), body[len(body) // 2 :], len(body) // 2)


def maps(path: Path, body: bytes, tempo: Tempo) -> Iterator[float]:
    """Write through a memory map after closing the descriptor: no write call, and no change of times at first."""
    with path.open("w+b") as file:
        file.truncate(len(body))
        mapped = mmap.mmap(file.fileno(), len(body))
    with mapped:
        mapped[: len(body) // 2] = body[: len(body) // 2]
        yield tempo.pause()
        mapped[len(body) // 2 :] = body[len(body) // 2 :]


def closes_and_reopens(path: Path, body: bytes, tempo: Tempo) -> Iterator[float]:
    """Write a page at a time, as scanners do, and close the file in between. Only `settle` detects this."""
    path.touch()
    closed = time.monotonic()
    for piece in _quarters(body):
        with path.open("ab") as file:
            if time.monotonic() - closed > 0.9 * tempo.settle:
                tempo.late.append(path)
            file.write(piece)
        closed = time.monotonic()
        yield tempo.gap


def copies_with_old_times(path: Path, body: bytes, tempo: Tempo) -> Iterator[float]:
    """Set an old mtime after the last write, as `cp -p` and rsync do."""
    yield from stalls(path, body, tempo)
    os.utime(path, (1_000_000_000, 1_000_000_000))


def renames_in(path: Path, body: bytes, tempo: Tempo) -> Iterator[float]:
    """Write under a hidden name first."""
    hidden = path.with_name(f".{path.name}.part")
    yield from stalls(hidden, body, tempo)
    hidden.rename(path)


MODELS: tuple[Model, ...] = (
    stalls,
    appends,
    preallocates,
    maps,
    closes_and_reopens,
    copies_with_old_times,
    renames_in,
)


def body_of(mark: str, number: int) -> bytes:
    """Return content that differs from every other in each half; some hundred to some ten thousand bytes."""
    jitter = random.Random(f"{mark} {number}")  # noqa: S311 - the same bytes every time
    return PDF + jitter.randbytes(jitter.choice((200, 4_000, 30_000)))


def unfinished(body: bytes) -> list[bytes]:
    """Return the intermediate contents of `closes_and_reopens`."""
    pieces = list(_quarters(body))
    return [b"".join(pieces[:count]) for count in range(len(pieces))]


def all_files(folder: Path, each: int) -> Iterator[tuple[Model, Path, bytes]]:
    """Yield the files of each model, in a hundred folders."""
    for number in range(each):
        for model in MODELS:
            place = folder / str(number % 100)
            yield model, place / f"{model.__name__}-{number}.pdf", body_of(model.__name__, number)


def write(
    files: Iterable[tuple[Model, Path, bytes]], tempo: Tempo, at_once: int, done: Callable[[Path, bytes], object]
) -> None:
    """Run `at_once` writers at a time until all are finished. `done` gets each file in its last state."""
    waiting = iter(files)
    working: list[tuple[float, int, Any, Path, bytes]] = []
    for number, (model, path, body) in enumerate(waiting):
        working.append((0.0, number, model(path, body, tempo), path, body))
        if len(working) == at_once:
            break
    started = len(working)
    while working:
        due, number, writer, path, body = heapq.heappop(working)
        time.sleep(max(0.0, due - time.monotonic()))  # the writer's pause
        try:
            heapq.heappush(working, (time.monotonic() + next(writer), number, writer, path, body))
            continue
        except StopIteration:
            done(path, body)
        for model, following, content in waiting:
            writer = model(following, content, tempo)
            heapq.heappush(working, (time.monotonic(), started, writer, following, content))
            started += 1
            break


def _quarters(body: bytes) -> Iterator[bytes]:
    step = len(body) // 4 + 1
    for start in range(0, len(body), step):
        yield body[start : start + step]


def main(words: list[str]) -> None:
    """Write all files; print the paths that were closed for too long, as JSON."""
    folder, each, at_once = Path(words[0]), int(words[1]), int(words[2])
    least, most, gap, settle = map(float, words[3:7])
    tempo = Tempo(least, most, gap, settle)
    written = 0

    def done(_path: Path, _body: bytes) -> None:
        nonlocal written
        written += 1
        if written % 5000 == 0:
            print(f"  {written:,} of {each * len(MODELS):,} written", file=sys.stderr, flush=True)

    for number in range(min(each, 100)):
        (folder / str(number)).mkdir()
    write(all_files(folder, each), tempo, at_once, done)
    print(json.dumps(sorted({path.name for path in tempo.late})))


if __name__ == "__main__":
    main(sys.argv[1:])
