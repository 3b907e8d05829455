"""Kills by the thousand: `python tests/crash/soak.py --kills 2000`. Prints what each siege came to; exit 1 at the first
document that was lost, doubled or torn.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # started as a program, this folder alone is known

from app_env import AppEnv
from crash.kill_harness import ARROWS, Dropper, KillHarness, at_arrow, judge
from crash.process_pool import ProcessPool
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread

#: Random kills before everything is counted.
A_SIEGE = 150


def main() -> int:
    """Three quarters of the kills at random, one at the arrows."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--kills", type=int, default=2_000)
    asked.add_argument("--seed", type=int, default=1)
    wanted = asked.parse_args()
    jitter = random.Random(wanted.seed)  # noqa: S311 - a soak can be repeated by its seed
    began, kills, documents = time.monotonic(), Counter[str](), 0
    while kills.total() < wanted.kills:
        with tempfile.TemporaryDirectory(prefix="docferry-soak-") as folder:
            left = wanted.kills - kills.total()
            if kills["arrow"] < kills.total() / 4:
                found = _arrow(Path(folder), jitter.choice(list(ARROWS)))
            else:
                found = _siege(Path(folder), jitter.randrange(1 << 30), min(A_SIEGE, left))
        kills.update(found[0])
        documents += found[1]
        told = ", ".join(f"{count} of {name}" for name, count in sorted(kills.items()))
        print(
            f"{time.monotonic() - began:7.0f} s  {kills.total()} kills ({told}), {documents} documents: all well",
            flush=True,
        )
    return 0


def _siege(folder: Path, seed: int, kills: int) -> tuple[dict[str, int], int]:
    (folder / "lives").mkdir()
    process_pool = ProcessPool(folder / "lives")
    try:
        with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0), seed=seed)) as shore:
            app_env = AppEnv(folder, shore)
            kill_harness = KillHarness(app_env, process_pool, seed)
            folders = {
                "bank": app_env.upload("bank"),
                "scans": app_env.upload("scans", "wootiv", object_name='"{name}"'),
            }
            with Dropper(folders, seed, most=100_000, pause=0.06) as dropper:
                kill_harness.storm(kills)
            kill_harness.peace()
            judge(app_env, dropper.made)
            return dict(kill_harness.kills), len(dropper.made)
    finally:
        process_pool.close()


def _arrow(folder: Path, arrow: str) -> tuple[dict[str, int], int]:
    (folder / "lives").mkdir()
    process_pool = ProcessPool(folder / "lives")
    try:
        with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0))) as shore:
            app_env = AppEnv(folder, shore)
            kills, made = at_arrow(app_env, process_pool, arrow, in_a_row=5)
            judge(app_env, made)
            return {"arrow": kills}, len(made)
    finally:
        process_pool.close()


if __name__ == "__main__":
    sys.exit(main())
