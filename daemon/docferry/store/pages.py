"""Query the queue for the status page: documents page by page, and arrivals by hour. Fast with millions of rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from docferry.model import joined
from docferry.store.connection import Transaction, as_bytes
from docferry.store.database import Database
from docferry.store.statement import Sql

#: Documents examined between two checks of the clock, and the time limit of one page, seconds.
WINDOW: Final = 50_000
BUDGET_S: Final = 0.7
#: Up to this number of transfers in the wanted states, transfers are read first, then their documents.
FEW: Final = 5_000
_OPEN: Final = {
    "waiting": "state = 'waiting'",
    "doubtful": "state = 'doubtful'",
    "held": "state = 'held'",
    "leased": "state IN ('leased', 'sending', 'asking') AND state = 'leased'",
    "sending": "state IN ('leased', 'sending', 'asking') AND state = 'sending'",
    "asking": "state IN ('leased', 'sending', 'asking') AND state = 'asking'",
}
_TOP: Final = 2**63 - 1


class Filter(Struct, frozen=True):
    """Select the documents of a page; None and () select all."""

    mapping: str | None = None
    states: tuple[str, ...] = ()
    reason: str | None = None
    search: str = ""  # a part of the path, or the first digits of a digest


class Listed(Struct, frozen=True):
    """Describe one document of a page; times are wall seconds."""

    id: int
    mapping: str
    path: bytes
    size: int
    state: str
    reason: str | None
    detail: str | None
    next_attempt: float | None
    updated: float


class Page(Struct, frozen=True):
    """Hold documents with descending ids; the next page begins below `below`. Not `complete`: the time limit passed."""

    rows: tuple[Listed, ...]
    below: int | None = None
    complete: bool = True


class Hour(Struct, frozen=True):
    """Count the arrivals at one remote within an hour; delays in seconds."""

    hour: int  # 0 is the first requested hour
    remote: str
    documents: int
    octets: int
    mean_delay: float
    longest_delay: float


class Pages:
    """Answer the queries of the status page, read-only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def documents(self, wanted: Filter, *, below: int | None = None, limit: int = 100) -> Page:
        """Return the newest documents that match the filter, from the one before id `below`."""
        return await self._database.read(lambda transaction: documents(transaction, wanted, below, limit))

    async def all_ids(self, wanted: Filter, chunk: int = 5_000) -> list[int]:
        """Return the ids of all retriable documents that match the filter, reading as many pages as needed."""
        found: list[int] = []
        for state in ("held", "waiting", "doubtful"):
            if wanted.states and state not in wanted.states:
                continue
            page = Page((), None, complete=False)
            narrowed = replace(wanted, states=(state,))
            while page.below is not None or not found_all(page):
                page = await self.documents(narrowed, below=page.below, limit=chunk)
                found += [row.id for row in page.rows]
        return found

    async def hours(self, since: float) -> list[Hour]:
        """Return the arrivals of each hour since a time, by remote."""
        return await self._database.read(lambda transaction: hours(transaction, since))


def found_all(page: Page) -> bool:
    """Return whether no page follows."""
    return page.complete and page.below is None


def documents(transaction: Transaction, wanted: Filter, below: int | None, limit: int) -> Page:
    """Return one page; see `Pages.documents`."""
    if wanted.states and all(state in _OPEN and _are_few(transaction, state) for state in wanted.states):
        found = [_read(transaction, wanted, (0, below or _TOP), limit + 1, state) for state in wanted.states]
        return _page(sorted(chain.from_iterable(found), key=lambda row: -row.id), limit)
    lowest, highest = transaction.fetch_one(_ENDS)
    if lowest is None:
        return Page(())
    top = highest + 1 if below is None else below
    deadline = time.monotonic() + BUDGET_S
    rows: list[Listed] = []
    for floor in _floors(top, lowest):
        rows += _read(transaction, wanted, (floor, top), limit + 1 - len(rows))
        top = floor
        if len(rows) > limit:
            return _page(rows, limit)
        if time.monotonic() > deadline and floor > lowest:
            return Page(tuple(rows), floor, complete=False)
    return Page(tuple(rows))


def hours(transaction: Transaction, since: float) -> list[Hour]:
    """Return the arrivals since a time; see `Pages.hours`."""
    rows = transaction.fetch_all(_HOURS, {"since": since})
    return [Hour(row[0], row[1], row[2], int(row[3]), float(row[4]), float(row[5])) for row in rows]


def _floors(top: int, lowest: int) -> Iterator[int]:
    """Yield the lower ends of id ranges from `top` down. The first range is small, because it usually fills a page."""
    size = 1_000
    while top > lowest:
        top = max(top - size, lowest)
        yield top
        size = WINDOW


def _page(rows: Sequence[Listed], limit: int) -> Page:
    shown = tuple(rows[:limit])
    return Page(shown, shown[-1].id if len(rows) > limit else None)


def _are_few(transaction: Transaction, state: str) -> bool:
    return int(transaction.fetch_one(_FEW[state], {"limit": FEW + 1})[0]) <= FEW


def _read(
    transaction: Transaction, wanted: Filter, ids: tuple[int, int], limit: int, state: str | None = None
) -> list[Listed]:
    """Return documents with ids from `ids[0]` to below `ids[1]`; use the index of `state` if given."""
    query: dict[str, Any] = {"floor": ids[0], "below": ids[1], "limit": limit}
    if wanted.mapping is not None:
        query["mapping"] = wanted.mapping
    if wanted.reason is not None:
        query["reason"] = wanted.reason
    if wanted.states and state is None:
        query["states"] = list(wanted.states)
    if wanted.search:
        part = wanted.search.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        query |= {"part": f"%{part}%", "raw": wanted.search.encode("utf-8", "replace")}
        is_hex = set(wanted.search.lower()) <= set("0123456789abcdef")
        query["digest"] = f"{wanted.search.lower()}%" if is_hex else ""
    names = tuple(name for name in _CONDITIONS if name in query)
    return [_listed(row) for row in transaction.fetch_all(_statement(names, state), query)]


@cache
def _statement(names: tuple[str, ...], state: str | None) -> Sql:
    """Return the statement for a combination of conditions, of which there are few: transactions cache them."""
    where = ["t.id = d.transfer_id", "d.id >= :floor", "d.id < :below", *(_CONDITIONS[name] for name in names)]
    source = "document d CROSS JOIN transfer t"
    if state is not None:
        # CROSS makes SQLite begin with the few rows.
        source = f"(SELECT id FROM transfer WHERE {_OPEN[state]}) f CROSS JOIN transfer t CROSS JOIN document d"
        where.append("t.id = f.id")
    return Sql(f"SELECT {_COLUMNS} FROM {source} WHERE {' AND '.join(where)} ORDER BY d.id DESC LIMIT :limit")


def _listed(row: Any) -> Listed:
    number, mapping, folder, name, size, state, reason, detail, due, *updated = row
    path = joined(as_bytes(folder), as_bytes(name))
    next_attempt = due if state in ("waiting", "doubtful") else None
    return Listed(number, mapping, path, size, state, reason, detail, next_attempt, max(updated))


_COLUMNS: Final = (
    "d.id, d.mapping, d.folder, d.name, d.size, t.state, t.reason, t.detail, t.next_attempt, d.updated, t.updated"
)
_CONDITIONS: Final = {
    "mapping": "d.mapping = :mapping",
    "reason": "t.reason = :reason",
    "states": "t.state = ANY(:states)",
    # Remote names match in any letter case, paths only exactly.
    "part": "(lower(t.remote_name) LIKE :part ESCAPE '\\' OR position(:raw IN d.name) > 0 "
    "OR position(:raw IN d.folder) > 0 OR d.sha256 LIKE :digest)",
}
# Two queries: with a condition on both ends, SQLite reads the whole table.
_ENDS = Sql("SELECT (SELECT min(id) FROM document), (SELECT max(id) FROM document)")
_FEW: Final = {
    state: Sql(f"SELECT count(*) FROM (SELECT id FROM transfer WHERE {condition} LIMIT :limit) f")
    for state, condition in _OPEN.items()
}
# Find the companies by steps through their index, then the documents sent to each in each hour.
_HOURS = Sql("""
WITH RECURSIVE company(id) AS (
  SELECT min(company_id) FROM transfer WHERE state = 'sent'
  UNION ALL
  SELECT (SELECT min(company_id) FROM transfer WHERE state = 'sent' AND company_id > c.id) FROM company c
  WHERE c.id IS NOT NULL
),
hour(number, start) AS (
  SELECT 0, CAST(:since AS DOUBLE PRECISION)
  UNION ALL
  SELECT number + 1, start + 3600 FROM hour WHERE number < 47
)
SELECT number, remote, count(*), sum(size), avg(delay), max(delay) FROM (
  SELECT h.number, t.remote, t.size, t.last_sent - t.due_since AS delay
  FROM hour h CROSS JOIN company c CROSS JOIN transfer t
  WHERE t.state = 'sent' AND t.company_id = c.id AND t.last_sent >= h.start AND t.last_sent < h.start + 3600
  UNION ALL
  SELECT h.number, t.remote, t.size, t.last_sent - t.due_since
  FROM hour h CROSS JOIN transfer t
  WHERE t.state = 'sent' AND t.company_id IS NULL AND t.last_sent >= h.start AND t.last_sent < h.start + 3600
) arrived GROUP BY 1, 2 ORDER BY 1, 2
""")
