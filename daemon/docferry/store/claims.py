"""Claim transfers: find lanes with work, and lease their transfers and companies.

On PostgreSQL a process claims transfers of a company only while no other process has transfers of it in flight. The
limit of concurrent requests and the counts of a lookup need this, because they apply to the whole company. The row in
`company_lease` decides between simultaneous claims, and makes processes take turns.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Final

from msgspec import Struct, field

from docferry.model import RemoteName, State, Target, Transfer
from docferry.store.connection import Transaction
from docferry.store.server_clock import SERVER_NOW
from docferry.store.statement import ByDialect, Sql

#: The time that a process keeps a company while another one asks for it, seconds.
TURN_S: Final = 5.0
#: A request for a company older than this no longer counts, seconds.
ASKED_S: Final = 5.0
#: The interval at which a request for a company is repeated, seconds.
ASK_AGAIN_S: Final = 1.0

_REMOTES: Final = ("codat", "wootiv")
COLUMNS: Final = (
    "id, uid, mapping, remote, company_id, connection_id, remote_name, sha256, size, state, lease, tries, key_version, "
    "created, due_since, first_sent, last_sent, reason, detail, fingerprint, md5"
)


class Lane(Struct, frozen=True):
    """Describe the due transfers of one lane of one mapping."""

    mapping: str
    lane: str
    due: float  # the earliest due time, wall seconds
    doubtful: bool
    elsewhere: bool = False  # another process has transfers of the company in flight


class Pick(Struct, frozen=True):
    """Select a number of transfers to claim from a lane."""

    lane: Lane
    most: int


class ClaimTerms(Struct, frozen=True):
    """Hold the claiming process, the wall time, and the transfers that must not be claimed."""

    owner: str
    now: float
    set_aside: list[int] = field(default_factory=list)


def company_of(lane: str) -> str:
    """Return `codat/COMPANY` for `codat/COMPANY/CONNECTION`, and `wootiv` for `wootiv`."""
    return "/".join(lane.split("/")[:2])


def lanes(transaction: Transaction, owner: str) -> list[Lane]:
    """Return the lanes that have waiting or doubtful transfers, due or not yet."""
    parameters = {"owner": owner}
    if transaction.has_recordsets:
        transaction.start(_USE_INDEXES)
    doubtful, waiting = (transaction.fetch_all(each, parameters) for each in (_DOUBTFUL_LANES, _WAITING_LANES))
    return [
        Lane(mapping, lane, due, is_doubtful, bool(elsewhere))
        for is_doubtful, rows in ((True, doubtful), (False, waiting))
        for mapping, lane, due, elsewhere in rows
    ]


def claim(
    transaction: Transaction, terms: ClaimTerms, picks: Sequence[Pick], room: int, ask_for: Collection[str] = ()
) -> list[Transfer]:
    """Lease due transfers; see `Transfers.claim`."""
    owner = terms.owner
    claimed: list[Transfer] = []
    if transaction.has_recordsets:
        transaction.start(_USE_INDEXES)  # a writing transaction has the first one anyway
    for doubtful, most in sorted({(pick.lane.doubtful, pick.most) for pick in picks}, reverse=True):
        if len(claimed) >= room:
            break
        chosen = [pick.lane for pick in picks if (pick.lane.doubtful, pick.most) == (doubtful, most)]
        companies = [company_of(lane.lane) if "/" in lane.lane else "" for lane in chosen]
        parameters = {
            "owner": owner,
            "now": terms.now,
            "set_aside": terms.set_aside,
            "picks": json.dumps([(lane.mapping, lane.lane) for lane in chosen]),
            "mappings": [lane.mapping for lane in chosen],
            "lanes": [lane.lane for lane in chosen],
            "companies": companies,
            "most": most,
            "room": room - len(claimed),
        }
        rows = transaction.fetch_all(_CLAIM_DOUBTFUL if doubtful else _CLAIM_WAITING, parameters)
        claimed += [transfer_of(*row) for row in sorted(rows)]
    if transaction.has_recordsets:
        transaction.start(_USE_BITMAPS)
    if ask_for:
        transaction.execute(_ASK, {"owner": owner, "companies": sorted(ask_for)})
    return claimed


def candidates(transaction: Transaction, terms: ClaimTerms, pick: Pick) -> list[int]:
    """Return the ids of the transfers that a pick would claim, the first one first."""
    lane = pick.lane
    state = State.DOUBTFUL if lane.doubtful else State.WAITING
    parameters = {"state": state, "mapping": lane.mapping, "lane": lane.lane, "now": terms.now, "most": pick.most}
    rows = transaction.fetch_all(_CANDIDATES, {**parameters, "set_aside": terms.set_aside})
    return [transfer_id for (transfer_id,) in rows]


def transfer_of(*row: Any) -> Transfer:
    """Return the transfer of a row of `COLUMNS`. Raises ValueError or TypeError for a damaged row."""
    number, uid, mapping, remote, company_id, connection_id, remote_name, sha256, size, state, *rest = row
    lease, tries, key_version, created, due_since, first_sent, last_sent, *_ = rest
    # SQLite stores anything in any column; a sum tells numbers from other values.
    size + lease + tries + key_version + created + due_since + (first_sent or 0.0) + (last_sent or 0.0)
    if remote not in _REMOTES:
        raise ValueError(f"there is no remote {remote!r}")
    target = Target(RemoteName(remote), company_id, connection_id)
    return Transfer(number, uid, mapping, target, remote_name, sha256 or "", size, State(state), *rest)


# A bitmap scan reads the rows of all index entries since the last vacuum each time; an index scan marks dead entries
# once. Other statements keep bitmap scans: without them, a plan for small tables may read a whole index.
_USE_INDEXES = Sql("SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)")
_USE_BITMAPS = Sql("SELECT set_config('enable_bitmapscan', 'on', true)")
# Find the earliest due row of each (mapping, lane) by a loose index scan. Its cost depends on the lanes, not on the
# rows. Each step seeks the next lane, else the next mapping: with `(mapping, lane) > (…)` SQLite would read row by row.
_LANES = """
WITH RECURSIVE lane(mapping, lane, due) AS (
  SELECT * FROM (SELECT mapping, lane, next_attempt FROM transfer WHERE state = '{state}'
                 ORDER BY mapping, lane, next_attempt LIMIT 1) AS first
  UNION ALL
  SELECT t.mapping, t.lane, t.next_attempt FROM lane l JOIN transfer t ON t.id = coalesce(
    (SELECT id FROM transfer WHERE state = '{state}' AND mapping = l.mapping AND lane > l.lane
     ORDER BY lane, next_attempt LIMIT 1),
    (SELECT id FROM transfer WHERE state = '{state}' AND mapping > l.mapping
     ORDER BY mapping, lane, next_attempt LIMIT 1))
)
SELECT mapping, lane, due, {elsewhere} FROM lane
"""
# Select companies of which another process has transfers in flight.
_BUSY = """
SELECT remote || '/' || company_id FROM transfer WHERE state IN ('leased', 'sending', 'asking')
  AND lease_owner <> :owner AND company_id IS NOT NULL
"""
_ELSEWHERE = f"split_part(lane, '/', 1) || '/' || split_part(lane, '/', 2) IN ({_BUSY})"
_DOUBTFUL_LANES, _WAITING_LANES = (
    ByDialect(Sql(_LANES.format(state=state, elsewhere="0")), Sql(_LANES.format(state=state, elsewhere=_ELSEWHERE)))
    for state in ("doubtful", "waiting")
)

_CLAIM = """
UPDATE transfer SET state = '{leased}', lease = lease + 1, lease_owner = :owner, updated = :now
WHERE id IN (
  SELECT t.id FROM json_each(:picks) p, transfer t WHERE t.id IN (
    SELECT id FROM transfer WHERE state = '{due}' AND mapping = p.value ->> 0 AND lane = p.value ->> 1
    AND next_attempt <= :now AND id <> ALL(:set_aside) ORDER BY next_attempt LIMIT :most)
  LIMIT :room)
RETURNING {columns}
"""
# The statement reads one snapshot. If another claim has changed a company's row since then, its number of claims
# differs. The company is then left to that claim. PostgreSQL may run an uncorrelated subquery again for each row, so
# the chosen rows are materialised first.
_CLAIM_COMPANIES = """
WITH asked AS (
  SELECT DISTINCT a.company, s.owner, s.since, s.asked
  FROM unnest(CAST(:companies AS text[])) AS a(company) LEFT JOIN company_lease s ON s.company = a.company
), taken AS (
  INSERT INTO company_lease AS l (company, owner, since, claims)
  SELECT company, :owner, {now}, 1 FROM asked
  WHERE company <> '' AND company NOT IN ({busy})
    AND NOT (owner IS NOT DISTINCT FROM :owner AND asked IS NOT NULL AND asked > {now} - {asked}
      AND since < {now} - {turn})
  ORDER BY company
  ON CONFLICT (company) DO UPDATE SET owner = excluded.owner, claims = l.claims + 1,
    since = CASE WHEN l.owner = excluded.owner THEN l.since ELSE excluded.since END,
    asked = CASE WHEN l.owner = excluded.owner THEN l.asked END
  WHERE l.claims = (SELECT s.claims FROM company_lease s WHERE s.company = l.company)
  RETURNING company
), chosen AS MATERIALIZED (
  SELECT t.id AS chosen_id
  FROM unnest(CAST(:mappings AS text[]), CAST(:lanes AS text[]), CAST(:companies AS text[]))
    AS p(mapping, lane, company)
  CROSS JOIN LATERAL (
    SELECT id FROM transfer WHERE state = '{due}' AND mapping = p.mapping AND lane = p.lane AND next_attempt <= :now
      AND id <> ALL(:set_aside)
      AND (p.company = '' OR p.company IN (SELECT company FROM taken))
    ORDER BY next_attempt LIMIT :most FOR UPDATE SKIP LOCKED) AS t
  LIMIT :room)
UPDATE transfer SET state = '{leased}', lease = lease + 1, lease_owner = :owner, updated = :now
FROM chosen WHERE id = chosen_id
RETURNING {columns}
"""
_TERMS = {"now": SERVER_NOW, "busy": _BUSY, "asked": ASKED_S, "turn": TURN_S}
_CLAIM_WAITING, _CLAIM_DOUBTFUL = (
    ByDialect(
        Sql(_CLAIM.format(leased=leased, due=due, columns=COLUMNS)),
        Sql(_CLAIM_COMPANIES.format(leased=leased, due=due, columns=COLUMNS, **_TERMS)),
    )
    for leased, due in (("leased", "waiting"), ("asking", "doubtful"))
)
_CANDIDATES = Sql("""
SELECT id FROM transfer WHERE state = :state AND mapping = :mapping AND lane = :lane AND next_attempt <= :now
  AND id <> ALL(:set_aside) ORDER BY next_attempt LIMIT :most
""")
_ASK = Sql(f"""
UPDATE company_lease SET asked = {SERVER_NOW} WHERE company IN (
  SELECT company FROM company_lease WHERE company = ANY(:companies) AND owner <> :owner
    AND (asked IS NULL OR asked < {SERVER_NOW} - {ASK_AGAIN_S})
  FOR UPDATE SKIP LOCKED)
""")  # noqa: S608 - constant terms
