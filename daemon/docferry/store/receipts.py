"""Append receipts in the transaction that they document."""

from __future__ import annotations

import os
import platform
import pwd
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from docferry import __version__
from docferry.clock import iso
from docferry.errors import StateError
from docferry.model import State, escaped, joined
from docferry.receipts.merkle import Frontier, leaf_hash
from docferry.receipts.record import LoggedReceipt, ReceiptKind, quoted
from docferry.store.connection import Parameters, Transaction
from docferry.store.recordset import BYTES, as_json, recordset, selected
from docferry.store.statement import ByDialect, Sql


def unix_user() -> str:
    """Return the user of this process, and under sudo the calling user."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = "unknown"
    caller = os.environ.get("SUDO_USER")
    return f"user {name} (uid {os.getuid()})" + (f", sudo by {escaped(caller)}" if caller else "")


#: The range of one log: `receipt.idx` is the index in a log plus the log's number times this.
LOG_CAPACITY: Final = 2**40


class Started(NamedTuple):
    """Hold the cursors of `ReceiptWriter.start_ended`: rows of `FACTS`, and the log's row."""

    facts: Any
    log: Any


class ReceiptWriter:
    """Append to the log of this machine. `host` is its name in every receipt, and in a queue of several hosts."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host or platform.node()

    def append(self, transaction: Transaction, receipts: Sequence[Leaf]) -> None:
        """Append leaves in this order. Raises StateError if the row of the log is missing."""
        if receipts:
            _append(transaction, read_edge(transaction, self.host), receipts)

    def start_ended(self, transaction: Transaction, rows: Iterable[Mapping[str, Any]]) -> Started | None:
        """Start reading the input of `append_ended`, so that a server gets it together with earlier statements."""
        final = [row["id"] for row in rows if row["state"] in _KINDS]
        if not final:
            return None
        return Started(transaction.start(FACTS, {"ids": final}), transaction.start(_LOG, {"host": self.host}))

    def append_ended(self, transaction: Transaction, rows: Iterable[Mapping[str, Any]], started: Started) -> None:
        """Append a receipt for each of these transitions to a final state (parameters as in `transitions`)."""
        final = {row["id"]: row for row in rows if row["state"] in _KINDS}
        receipts = []
        for facts in started.facts.fetchall():
            row = final.get(facts[0])
            if row is None:
                continue
            kind = _KINDS[row["state"]]
            if kind is ReceiptKind.SENT and row["from"] is not State.SENDING:
                kind = ReceiptKind.ADOPTED
            receipts.append(EndedReceipt(facts[0], kind, facts, row, self.host))
        _append(transaction, _edge(started.log.fetchall()), receipts)

    def append_gone(self, transaction: Transaction, transfer_ids: Iterable[int], now: float, detail: str) -> None:
        """Append a receipt for each transfer that will not be sent."""
        self.append(
            transaction, list(self._about(transaction, transfer_ids, ReceiptKind.GONE, now, {"detail": detail}))
        )

    def append_released(self, transaction: Transaction, transfer_ids: Iterable[int], now: float, actor: str) -> None:
        """Append a receipt for each transfer that a person released from approval."""
        self.append(
            transaction, list(self._about(transaction, transfer_ids, ReceiptKind.RELEASED, now, {"actor": actor}))
        )

    def append_downloaded(self, transaction: Transaction, files: Iterable[Mapping[str, Any]], now: float) -> None:
        """Append a receipt for each downloaded file: `mapping`, `path` (bytes), `origin`, `sha256`, `size`."""
        receipts = [downloaded(file, now, self.host) for file in files]
        self.append(transaction, receipts)

    def _about(
        self,
        transaction: Transaction,
        transfer_ids: Iterable[int],
        kind: ReceiptKind,
        now: float,
        more: Mapping[str, Any],
    ) -> list[LoggedReceipt]:
        ids = list(transfer_ids)
        facts = transaction.fetch_all(FACTS, {"ids": ids}) if ids else ()
        return [about_transfer(row, kind, now, {**more, "host": self.host}) for row in facts]


class LogEdge(NamedTuple):
    """Hold the number of a log, and the right edge of its tree."""

    number: int
    tree: Frontier


def read_edge(transaction: Transaction, host: str) -> LogEdge:
    """Return the log of a host, on SQLite the only one. Raises StateError if its row is missing or invalid."""
    return _edge(transaction.fetch_all(_LOG, {"host": host}))


def _edge(found: Sequence[Sequence[Any]]) -> LogEdge:
    try:
        number, size, frontier = found[0]
        return LogEdge(number, Frontier(size, frontier))
    except (IndexError, ValueError) as error:
        raise StateError(
            "the log of receipts has lost its row in receipt_log, or it was changed; restore the database from a copy"
        ) from error


class Leaf(Protocol):
    """Define a receipt that can be appended: a `LoggedReceipt` or an `EndedReceipt`."""

    @property
    def transfer_id(self) -> int | None:
        """Return the transfer of the receipt; None for a download."""

    @property
    def kind(self) -> ReceiptKind:
        """Return the event that the receipt attests."""

    def body(self, index: int) -> str:
        """Return its canonical JSON as the leaf at `index`."""


class EndedReceipt(NamedTuple):
    """Describe the receipt of a transition that ended a transfer; each document needs one."""

    transfer_id: int
    kind: ReceiptKind
    facts: Sequence[Any]  # a row of `FACTS`
    row: Mapping[str, Any]  # the transition, as in `transitions`
    host: str

    def body(self, index: int) -> str:
        """Return what `LoggedReceipt.body` returns for the same fields, in a third of its time."""
        _, uid, mapping, remote, company, connection_id, remote_name, sha256, size, folder, name = self.facts
        row = self.row
        path = None if name is None else escaped(joined(folder, name))
        status = "" if row["status"] is None else f'"status":{row["status"]},'
        return (
            f"{{{_member('company_id', company)}{_member('connection_id', connection_id)}"
            f"{_member('correlation_id', row['correlation_id'])}{_member('detail', row['detail'])}"
            f'{_member("etag", row["etag"])}"host":{quoted(self.host)},"index":{index},"kind":"{self.kind.value}",'
            f'"mapping":{quoted(mapping)},{_member("path", path)}{_member("proof", row["proof"])}'
            f'"remote":{quoted(remote)},"remote_name":{quoted(remote_name)},{_member("sha256", sha256)}'
            f'"size":{size},{status}"time":"{iso(row["at"])}","uid":{quoted(uid)},"version":{_VERSION}}}'
        )


_VERSION: Final = quoted(__version__)


def _member(name: str, value: str | None) -> str:
    return "" if value is None else f'"{name}":{quoted(value)},'


def _append(transaction: Transaction, log: LogEdge, receipts: Sequence[Leaf]) -> None:
    if not receipts:
        return
    number, tree = log
    rows = list[Parameters]()
    for index, receipt in enumerate(receipts, tree.size):
        body = receipt.body(index)
        leaf = leaf_hash(body.encode("ascii"))
        tree.append(leaf)
        row = {
            "idx": number * LOG_CAPACITY + index,
            "transfer_id": receipt.transfer_id,
            "kind": receipt.kind.value,
            "body": body,
            "leaf": leaf,
        }
        rows.append(row)
    if transaction.has_recordsets:
        edge = {"number": number, "size": tree.size, "frontier": tree.encode()}
        transaction.start(_APPEND, {"rows": as_json(rows), **edge})
    else:
        transaction.execute_many(_INSERT, rows)
        transaction.execute(_GROWN, {"size": tree.size, "frontier": tree.encode()})


def about_transfer(facts: Sequence[Any], kind: ReceiptKind, now: float, more: Mapping[str, Any]) -> LoggedReceipt:
    """Return the receipt of a transfer from a row of `FACTS`."""
    transfer_id, uid, mapping, remote, company, connection_id, remote_name, sha256, size, folder, name = facts
    fields = {
        "uid": uid,
        "time": iso(now),
        "mapping": mapping,
        "path": None if name is None else escaped(joined(folder, name)),
        "size": size,
        "sha256": sha256,
        "remote": remote,
        "company_id": company,
        "connection_id": connection_id,
        "remote_name": remote_name,
        "version": __version__,
    }
    return LoggedReceipt(transfer_id, kind, {**fields, **more})


def downloaded(file: Mapping[str, Any], now: float, host: str, *, reconstructed: bool = False) -> LoggedReceipt:
    """Return the receipt of a downloaded file."""
    fields = {
        "time": iso(now),
        "mapping": file["mapping"],
        "path": escaped(file["path"]),
        "size": file["size"],
        "sha256": file["sha256"],
        "remote_name": file["origin"],
        "host": host,
        "version": __version__,
        "reconstructed": True if reconstructed else None,
    }
    return LoggedReceipt(None, ReceiptKind.DOWNLOADED, fields)


_LOG = ByDialect(
    Sql("SELECT number, size, frontier FROM receipt_log"),
    Sql("SELECT number, size, frontier FROM receipt_log WHERE host = :host"),
)
_GROWN = Sql("UPDATE receipt_log SET size = :size, frontier = :frontier")
_INSERT = Sql(
    "INSERT INTO receipt (idx, transfer_id, kind, body, leaf) VALUES (:idx, :transfer_id, :kind, :body, :leaf)"
)
_COLUMNS = {"idx": "bigint", "transfer_id": "bigint", "kind": "text", "body": "text", "leaf": BYTES}
# Both at once, because to a server each statement is a message.
_APPEND = Sql(f"""
WITH appended AS (
  INSERT INTO receipt (idx, transfer_id, kind, body, leaf) SELECT {selected(_COLUMNS)} FROM {recordset(_COLUMNS)}
)
UPDATE receipt_log SET size = :size, frontier = :frontier WHERE number = :number
""")  # noqa: S608 - only the columns above
_KINDS = {State.SENT: ReceiptKind.SENT, State.GONE: ReceiptKind.GONE}
_FACTS = """
SELECT t.id, t.uid, t.mapping, t.remote, t.company_id, t.connection_id, t.remote_name, t.sha256, t.size,
  d.folder, d.name
FROM transfer t LEFT JOIN document d ON d.id = {document}
WHERE t.id = ANY(:ids) ORDER BY t.id
"""
#: Transfers, each with a path of its bytes, present if possible. On SQLite each subquery reads its rows in the order of
#: an index: sorting them by `present` takes longer than all other steps. For that, PostgreSQL would read all
#: documents from the first one on.
FACTS = ByDialect(
    Sql(
        _FACTS.format(
            document="""coalesce(
  (SELECT id FROM document WHERE transfer_id = t.id AND present ORDER BY id LIMIT 1),
  (SELECT id FROM document WHERE transfer_id = t.id ORDER BY id LIMIT 1))"""
        )
    ),
    Sql(
        _FACTS.format(
            document="(SELECT id FROM document WHERE transfer_id = t.id ORDER BY present DESC, id LIMIT 1)",
        )
    ),
)
