"""Kill thousands of processes: `python tests/crash/soak.py --kills 2000`.

Half of the rounds have sender processes, which are killed too. Prints the result of each round; exits with 1 at the
first document that was lost, doubled or torn.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a program finds only its own folder

from app_env import AppEnv
from crash.kill_harness import KILL_POINTS, Dropper, KillHarness, kill_at_transition, verify_remote
from crash.process_pool import ProcessPool
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread

#: Random kills before everything is compared.
KILLS_PER_ROUND = 150


def main() -> int:
    """Make three quarters of the kills at random, one quarter at transitions."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--kills", type=int, default=2_000)
    asked.add_argument("--seed", type=int, default=1)
    wanted = asked.parse_args()
    jitter = random.Random(wanted.seed)  # noqa: S311 - a soak can be repeated by its seed
    began, kills, documents = time.monotonic(), Counter[str](), 0
    while kills.total() < wanted.kills:
        with tempfile.TemporaryDirectory(prefix="docferry-soak-") as folder:
            left = wanted.kills - kills.total()
            senders = jitter.choice((0, 0, 1, 2))
            if kills["transition"] < kills.total() / 4:
                found = _kill_at_one(Path(folder), jitter.choice(list(KILL_POINTS)), senders=senders)
            else:
                most = min(KILLS_PER_ROUND, left)
                found = _kill_at_random(Path(folder), jitter.randrange(1 << 30), most, senders=senders)
        kills.update(found[0])
        documents += found[1]
        told = ", ".join(f"{count} of {name}" for name, count in sorted(kills.items()))
        print(
            f"{time.monotonic() - began:7.0f} s  {kills.total()} kills ({told}), {documents} documents: no loss",
            flush=True,
        )
    return 0


def _kill_at_random(folder: Path, seed: int, kills: int, *, senders: int) -> tuple[dict[str, int], int]:
    (folder / "processes").mkdir()
    process_pool = ProcessPool(folder / "processes")
    try:
        with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0), seed=seed)) as simulator_thread:
            app_env = AppEnv(folder, simulator_thread)
            kill_harness = KillHarness(app_env, process_pool, seed, senders=senders)
            folders = {
                "bank": app_env.upload("bank"),
                "scans": app_env.upload("scans", "wootiv", object_name='"{name}"'),
            }
            with Dropper(folders, seed, most=100_000, pause=0.06) as dropper:
                kill_harness.storm(kills)
            kill_harness.drain()
            verify_remote(app_env, dropper.made)
            return dict(kill_harness.kills), len(dropper.made)
    finally:
        process_pool.close()


def _kill_at_one(folder: Path, transition: str, *, senders: int) -> tuple[dict[str, int], int]:
    (folder / "processes").mkdir()
    process_pool = ProcessPool(folder / "processes")
    try:
        with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0))) as simulator_thread:
            app_env = AppEnv(folder, simulator_thread)
            kills, made = kill_at_transition(app_env, process_pool, transition, in_a_row=5, senders=senders)
            verify_remote(app_env, made)
            return {"transition": kills}, len(made)
    finally:
        process_pool.close()


if __name__ == "__main__":
    sys.exit(main())
