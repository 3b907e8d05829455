"""Write into a database all the time, and record each acknowledged write in the log of the recorded disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio

from docferry.clock import SystemClock
from docferry.store.cursors import Cursors
from docferry.store.opening import open_database


async def main(path: Path, count: int) -> None:
    log = os.open(os.environ["RECORDED_DISK"], os.O_WRONLY | os.O_APPEND)
    async with open_database(path) as database, anyio.create_task_group() as group:
        cursors = Cursors(database, SystemClock())

        async def one(who: int) -> None:
            for number in range(count):
                await cursors.set(f"power/{who}-{number}", "x" * 300)
                os.write(log, f"ack power/{who}-{number} 0 0\n".encode())

        for who in range(8):
            group.start_soon(one, who)
    os._exit(0)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
