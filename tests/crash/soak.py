"""Kills by the thousand: `python tests/crash/soak.py --kills 2000`. Prints what each siege came to; exit 1 at the first
document that was lost, doubled or torn."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # started as a program, this folder alone is known

from crash.nursery import Nursery
from crash.siege import ARROWS, Dropper, Siege, at_arrow, judge
from docferry.simulator import Running, Simulator, Switches
from ground import Ground

#: Random kills before everything is counted.
A_SIEGE = 150


def main() -> int:
    """Three quarters of the kills at random, one at the arrows."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--kills", type=int, default=2_000)
    asked.add_argument("--seed", type=int, default=1)
    wanted = asked.parse_args()
    dice = random.Random(wanted.seed)  # noqa: S311 - a soak can be repeated by its seed
    began, kills, documents = time.monotonic(), Counter[str](), 0
    while kills.total() < wanted.kills:
        with tempfile.TemporaryDirectory(prefix="docferry-soak-") as folder:
            left = wanted.kills - kills.total()
            if kills["arrow"] < kills.total() / 4:
                found = _arrow(Path(folder), dice.choice(list(ARROWS)))
            else:
                found = _siege(Path(folder), dice.randrange(1 << 30), min(A_SIEGE, left))
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
    nursery = Nursery(folder / "lives")
    try:
        with Running(Simulator(Switches(requests_per_minute=0), seed=seed)) as shore:
            ground = Ground(folder, shore)
            siege = Siege(ground, nursery, seed)
            folders = {"bank": ground.upload("bank"), "scans": ground.upload("scans", "wootiv", object_name='"{name}"')}
            with Dropper(folders, seed, most=100_000, pause=0.06) as dropper:
                siege.storm(kills)
            siege.peace()
            judge(ground, dropper.made)
            return dict(siege.kills), len(dropper.made)
    finally:
        nursery.close()


def _arrow(folder: Path, arrow: str) -> tuple[dict[str, int], int]:
    (folder / "lives").mkdir()
    nursery = Nursery(folder / "lives")
    try:
        with Running(Simulator(Switches(requests_per_minute=0))) as shore:
            ground = Ground(folder, shore)
            kills, made = at_arrow(ground, nursery, arrow, in_a_row=5)
            judge(ground, made)
            return {"arrow": kills}, len(made)
    finally:
        nursery.close()


if __name__ == "__main__":
    sys.exit(main())
