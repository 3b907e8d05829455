"""Test that many changes of one customer do not delay the documents of others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app_env import COMPANY, CONNECTION, AppEnv, until
from docferry.detect.work_queue import PATHS_IN_BATCH, PER_MAPPING, WorkQueue
from docferry.files.safe_open import Root
from docferry.files.scan import walk

OTHER = "11111111-6988-11ed-a1eb-0242ac120002"  # the company of the noisy customer
SETTLE = 2.0  # seconds: a round of changes takes less

NOISE = """
import os, sys, time
folder, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    open(f"{folder}/{number}.pdf", "wb").write(b"%d" % number)
print("ready", flush=True)
while True:
    for number in range(count):
        os.utime(f"{folder}/{number}.pdf")
"""
SWAPS = """
import os, sys
folder = sys.argv[1]
for number in range(200):
    open(f"{folder}/{number}.pdf", "wb").write(b"%d" % number)
print("ready", flush=True)
while True:
    for number in range(0, 200, 2):
        os.rename(f"{folder}/{number}.pdf", f"{folder}/x")
        os.rename(f"{folder}/{number + 1}.pdf", f"{folder}/{number}.pdf")
        os.rename(f"{folder}/x", f"{folder}/{number + 1}.pdf")
"""


TREES = """
import os, sys
os.chdir(sys.argv[1])
for tree in range(50):
    os.makedirs(f"{tree}/" + "/".join("d" * 400))
print("ready", flush=True)
while True:
    for tree in range(50):
        os.rename(str(tree), "x")
        os.rename("x", str(tree))
"""


def _slowdown() -> float:
    """Return how many times longer than alone a program takes now, because others use the processors."""
    began, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.03:
        pass
    return (time.monotonic() - began) / (time.process_time() - cpu)


@pytest.mark.alone
@pytest.mark.parametrize(
    "noise",
    [(NOISE, 12_000), (SWAPS, 0), (TREES, 0)],
    ids=["12,000 changing files", "swapped names", "20,000 folders renamed"],
)
def test_others_arrive_in_time(app_env: AppEnv, noise: tuple[str, int]) -> None:
    """Each document of another customer arrives within `settle` + 5 s of available processor time."""
    app_env.settings |= {"settle": f'"{SETTLE}s"', "rescan": '"5m"', "log_level": '"info"'}
    app_env.upload("customers", folder="customers/{company_id}/{connection_id}")
    noisy_folder, quiet_folder = (app_env.root / "customers" / each / CONNECTION for each in (OTHER, COMPANY))
    for folder in (noisy_folder, quiet_folder):
        folder.mkdir(parents=True)
    program, count = noise
    words = [sys.executable, "-c", program, str(noisy_folder), str(count)]
    dropped: dict[str, float] = {}
    slowdowns: list[float] = []

    def delays() -> list[float]:
        arrived = {each.name: each.at for each in app_env.simulator.stored if each.company == COMPANY}
        return [arrived[name] - at for name, at in dropped.items() if name in arrived]

    with subprocess.Popen(words, stdout=subprocess.PIPE, preexec_fn=lambda: os.nice(5)) as noisy:
        assert noisy.stdout is not None
        noisy.stdout.readline()
        try:
            with app_env.daemon():
                for number in range(8):
                    dropped[f"{number}.pdf"] = time.time()
                    (quiet_folder / f"{number}.pdf").write_bytes(b"quiet %d" % number)
                    slowdowns.append(_slowdown())
                    time.sleep(1.2)  # documents of an ordinary customer
                until(lambda: len(delays()) == len(dropped), 90, "the documents of the quiet customer")
        finally:
            noisy.kill()
    slowdown = sum(slowdowns) / len(slowdowns)
    print(f"  arrived after {', '.join(f'{delay:.1f}' for delay in delays())} s, slowed {slowdown:.1f} times")
    assert max(delays()) < SETTLE + 5 * slowdown


def test_a_walk_reads_the_small_folders_of_others_first(tmp_path: Path) -> None:
    """Read the small folders of others early although one tree has 5,000 folders."""
    for number in range(5_000):
        (tmp_path / "huge" / str(number % 50) / str(number)).mkdir(parents=True)
    for name in ("a", "b", "c"):
        (tmp_path / name / "bank").mkdir(parents=True)
        (tmp_path / name / "bank" / "x.pdf").touch()
    read = [listing.folder for chunk in walk(Root(tmp_path)) for listing in chunk]
    assert len(read) == len(set(read)) == 5_000 + 50 + 1 + 1 + 6
    assert {b"a/bank", b"b/bank", b"c/bank"} <= set(read[:20])


def test_paths_are_handed_out_in_turns() -> None:
    queue = WorkQueue()
    queue.add("m", (b"noisy/%d" % number for number in range(3 * PATHS_IN_BATCH)))
    queue.add("m", [b"quiet/a", b"quiet/a", b"top.pdf"])
    first, second, third = queue.take(), queue.take(), queue.take()
    assert first is not None
    assert second is not None
    assert third is not None
    assert (len(first.paths), second.paths, third.paths) == (PATHS_IN_BATCH, [b"quiet/a"], [b"top.pdf"])
    assert queue.take() is None, "the noisy folder has its turn already"
    queue.done(first)
    rest = 0
    while (batch := queue.take()) is not None:
        rest += len(batch.paths)
        queue.done(batch)
    assert rest == 2 * PATHS_IN_BATCH
    assert not queue


def test_a_hanging_mapping_leaves_room_for_the_others() -> None:
    queue = WorkQueue()
    queue.add("hangs", (b"%d/a" % number for number in range(100)))
    for _ in range(PER_MAPPING):
        batch = queue.take()
        assert batch is not None
        assert batch.mapping == "hangs"
    queue.add("works", [b"a"])
    batch = queue.take()
    assert batch is not None
    assert batch.mapping == "works"
