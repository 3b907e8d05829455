"""Fill databases: `python -m benchmarks.fill STATE sent FOLDER` records every file of a folder as sent.

`python -m benchmarks.fill STATE rows NUMBER` records so many sent documents of another mapping, in the same lane.
"""

from __future__ import annotations

import secrets
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio

from benchmarks.queue_cycles import TARGET, planned
from docferry.clock import SystemClock
from docferry.files.safe_open import Root
from docferry.files.scan import walk
from docferry.model import State
from docferry.store.documents import Documents
from docferry.store.opening import open_database
from docferry.store.plan_table import Planned
from docferry.store.state_dir import prepare_state_dir

_TOGETHER = 20_000


def of_folder(root: Path) -> Iterator[list[Planned]]:
    """Yield every file below a folder, as a sent document."""
    for chunk in walk(Root(root), chunk=_TOGETHER):
        plans = []
        for listing in chunk:
            for seen in listing.files:
                once = secrets.token_hex(32)
                name = seen[0].decode()
                plans.append(
                    Planned(listing.seen_file(seen), TARGET, secrets.token_hex(16), name, once, once, State.SENT)
                )
        yield plans


def of_number(rows: int) -> Iterator[list[Planned]]:
    for start in range(0, rows, _TOGETHER):
        yield planned(10_000_000 + start, min(_TOGETHER, rows - start), state=State.SENT)


async def fill(state: Path, mapping: str, plans: Iterable[list[Planned]]) -> None:
    """Write through the store, so that the benchmark does not know the tables; only attempts are added."""
    prepare_state_dir(state)
    path = state / "docferry.db"
    async with open_database(path) as database:
        documents = Documents(database, SystemClock())
        for plan in plans:
            await documents.apply(mapping, plan)
    _attempts(path)


def _attempts(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("UPDATE transfer SET lease = 1, tries = 1, first_sent = created, last_sent = created")
    database.execute(
        "INSERT INTO attempt (transfer_id, lease, began, ended, state, status, proof) "
        "SELECT id, 1, created, created, 'sent', 200, 'answer' FROM transfer"
    )
    database.commit()
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def main() -> None:
    state, kind, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if kind == "sent":
        anyio.run(fill, state, "bench", of_folder(Path(what)))
    else:
        anyio.run(fill, state, "archive", of_number(int(what)))


if __name__ == "__main__":
    main()
