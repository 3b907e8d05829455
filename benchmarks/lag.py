"""Measure the event loop: `python -m benchmarks.lag CONFIG` runs one pass and prints the delays of a timer.

The product contains nothing of this.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import anyio

from docferry import settings
from docferry.app.one_pass import PassOptions, sync

EVERY = 0.002


async def _watched(config: Path) -> list[float]:
    late: list[float] = []

    async def sample() -> None:
        while True:
            due = time.perf_counter() + EVERY
            await asyncio.sleep(EVERY)
            late.append(time.perf_counter() - due)

    async with anyio.create_task_group() as group:
        group.start_soon(sample)
        await sync(settings.load(config), PassOptions())
        group.cancel_scope.cancel()
    return sorted(late)


def main() -> None:
    late = anyio.run(_watched, Path(sys.argv[1]))
    at = {name: late[min(len(late) - 1, int(len(late) * share))] for name, share in (("p50", 0.5), ("p99", 0.99))}
    print(json.dumps({**at, "max": late[-1], "samples": len(late)}))


if __name__ == "__main__":
    main()
