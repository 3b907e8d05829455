"""Appends receipts in the transaction that makes them true."""

from __future__ import annotations

import os
import platform
import pwd
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import text

from docferry import __version__
from docferry.clock import iso
from docferry.errors import StateError
from docferry.model import State, escaped, joined
from docferry.receipts.merkle import Frontier, leaf_hash
from docferry.receipts.record import LoggedReceipt, ReceiptKind
from docferry.store.connection import ByDialect, Parameters, Transaction
from docferry.store.recordset import BYTES, as_json, recordset, selected


def unix_user() -> str:
    """Return the user who runs this process, and under sudo the one who called it."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = "unknown"
    caller = os.environ.get("SUDO_USER")
    return f"user {name} (uid {os.getuid()})" + (f", sudo by {escaped(caller)}" if caller else "")


#: Receipts of one log: `receipt.idx` is the index in a log plus the log's number times this.
LOG_CAPACITY: Final = 2**40


class Started(NamedTuple):
    """Cursors of `ReceiptWriter.start_ended`: rows of `FACTS`, and the log's row."""

    facts: Any
    log: Any


class ReceiptWriter:
    """Appends to the log of this machine; `host` is its name in every receipt, and in a queue of several hosts."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host or platform.node()

    def append(self, transaction: Transaction, receipts: Sequence[LoggedReceipt]) -> None:
        """Append leaves, in this order. StateError when the log's own row is missing."""
        if receipts:
            _append(transaction, read_edge(transaction, self.host), receipts)

    def start_ended(self, transaction: Transaction, rows: Iterable[Mapping[str, Any]]) -> Started | None:
        """Start to read what `append_ended` needs, so that a server gets it with the statements before."""
        final = [row["id"] for row in rows if row["state"] in _KINDS]
        if not final:
            return None
        return Started(transaction.start(FACTS, {"ids": final}), transaction.start(_LOG, {"host": self.host}))

    def append_ended(self, transaction: Transaction, rows: Iterable[Mapping[str, Any]], started: Started) -> None:
        """Append a receipt for each of these transitions that is final (parameters as in `transitions`)."""
        final = {row["id"]: row for row in rows if row["state"] in _KINDS}
        receipts = []
        for facts in started.facts.fetchall():
            row = final.get(facts[0])
            if row is None:
                continue
            kind = _KINDS[row["state"]]
            if kind is ReceiptKind.SENT and row["from"] is not State.SENDING:
                kind = ReceiptKind.ADOPTED
            answer = {
                "status": row["status"],
                "correlation_id": row["correlation_id"],
                "etag": row["etag"],
                "proof": row["proof"],
                "detail": row["detail"],
                "host": self.host,
            }
            receipts.append(about_transfer(facts, kind, row["at"], answer))
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
    """The number of a log, and the right edge of its tree."""

    number: int
    tree: Frontier


def read_edge(transaction: Transaction, host: str) -> LogEdge:
    """Return the log of a host, on SQLite the only one; StateError when its row is gone or makes no sense."""
    return _edge(transaction.fetch_all(_LOG, {"host": host}))


def _edge(found: Sequence[Sequence[Any]]) -> LogEdge:
    try:
        number, size, frontier = found[0]
        return LogEdge(number, Frontier(size, frontier))
    except (IndexError, ValueError) as error:
        raise StateError(
            "the log of receipts has lost its row in receipt_log, or it was changed; restore the database from a copy"
        ) from error


def _append(transaction: Transaction, log: LogEdge, receipts: Sequence[LoggedReceipt]) -> None:
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
    """Return the receipt of a file that came down."""
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
    text("SELECT number, size, frontier FROM receipt_log"),
    text("SELECT number, size, frontier FROM receipt_log WHERE host = :host"),
)
_GROWN = text("UPDATE receipt_log SET size = :size, frontier = :frontier")
_INSERT = text(
    "INSERT INTO receipt (idx, transfer_id, kind, body, leaf) VALUES (:idx, :transfer_id, :kind, :body, :leaf)"
)
_COLUMNS = {"idx": "bigint", "transfer_id": "bigint", "kind": "text", "body": "text", "leaf": BYTES}
# Both at once: to a server, each statement is a message.
_APPEND = text(f"""
WITH appended AS (
  INSERT INTO receipt (idx, transfer_id, kind, body, leaf) SELECT {selected(_COLUMNS)} FROM {recordset(_COLUMNS)}
)
UPDATE receipt_log SET size = :size, frontier = :frontier WHERE number = :number
""")  # noqa: S608 - the columns above
_KINDS = {State.SENT: ReceiptKind.SENT, State.GONE: ReceiptKind.GONE}
#: Transfers, and the path that its bytes have or had: of several the one that is still there.
FACTS = text("""
SELECT t.id, t.uid, t.mapping, t.remote, t.company_id, t.connection_id, t.remote_name, t.sha256, t.size,
  d.folder, d.name
FROM transfer t LEFT JOIN document d ON d.id = (
  SELECT id FROM document WHERE transfer_id = t.id ORDER BY present DESC, id LIMIT 1)
WHERE t.id = ANY(:ids) ORDER BY t.id
""")
