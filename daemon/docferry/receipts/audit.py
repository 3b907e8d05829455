"""Audit a log: rebuild its tree row by row, compare it with the queue and every head, and name differences."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Final, NamedTuple

from msgspec import Struct, field

from docferry.receipts.heads import SignedHead
from docferry.receipts.merkle import Frontier
from docferry.receipts.record import DELIVERED, ReceiptKind, has, quoted

#: The largest number of named problems; the others are counted.
NAMED_PROBLEMS: Final = 100
#: The number of transfers by which the arrays grow at a time.
_GROWTH: Final = 65_536


class AuditedReceipt(NamedTuple):
    """Hold a stored receipt and the transfer to which it belongs, if any."""

    idx: int
    transfer_id: int | None
    kind: str
    body: str | None  # None: erased by `retain`
    leaf: bytes
    uid: str | None
    state: str | None
    remote: str | None
    company_id: str | None
    connection_id: str | None
    remote_name: str | None
    sha256: str | None
    size: int | None


class NamedHead(Struct, frozen=True):
    """Hold a head, and its origin as the subject of a sentence: "the head of 2026-11-30T12:00:00Z"."""

    where: str
    signed: SignedHead

    @property
    def size(self) -> int:
        """Return the number of receipts in the head."""
        return self.signed.head.size


class Findings(Struct):
    """Collect the problems as sentences; beyond `NAMED_PROBLEMS` they are only counted."""

    named: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, sentence: str) -> None:
        """Add one problem."""
        self.count += 1
        if self.count <= NAMED_PROBLEMS:
            self.named.append(sentence)


class Deliveries:
    """Track the deliveries that the receipts of all logs state, by transfer of the queue."""

    def __init__(self) -> None:
        self.delivered = bytearray()  # by transfer: 1 if it has a receipt as sent
        self.undone: dict[int, int] = {}  # gone transfers with a receipt as sent -> its index
        self.gone: set[int] = set()  # transfers with a receipt as gone in an earlier log

    def finish(self, findings: Findings) -> None:
        """Report the gone transfers whose newest receipt states that they were sent."""
        for transfer_id, index in self.undone.items():
            findings.add(f"receipt {index} says that transfer {transfer_id} was sent; the queue says it is gone")


class Audit:
    """Check the receipts of one log in one pass, in the order of their index."""

    def __init__(
        self,
        origin: str,
        heads: Iterable[NamedHead],
        public_key: bytes | None = None,
        deliveries: Deliveries | None = None,
    ) -> None:
        self.findings = Findings()
        self.next_index = 0
        self.erased = 0
        self.other_keys = 0  # heads signed by another key, such as before a change of key_file
        self._origin = origin
        self._frontier = Frontier()
        self._right_size = 0  # size of the newest head that matches the tree
        self._suspect: int | None = None  # the newest index with a problem
        self._is_broken = False  # no later root can match
        self._moved: dict[int, int] = {}  # index of a row -> index stated in its text
        self._deliveries = deliveries or Deliveries()
        self._gone: set[int] = set()  # transfers with a receipt as gone in this log
        self._heads = sorted(
            (each for each in heads if self._is_ours(each, public_key)), key=lambda each: each.size, reverse=True
        )

    def add(self, rows: Iterable[AuditedReceipt]) -> None:
        """Check the next rows."""
        for row in rows:
            if row.idx != self.next_index:
                self._lose(self.next_index, row.idx)
            if self._heads and self._heads[-1].size <= row.idx:
                self._compare_heads()
            self._frontier.append(row.leaf)
            self.next_index = row.idx + 1
            if row.body is None:
                self.erased += 1
            else:
                self._check_body(row, row.body)
            if row.transfer_id is not None:
                self._check_transfer(row, row.transfer_id)

    def finish(self, size: int, frontier: bytes, sent: Iterable[int]) -> Findings:
        """Finish the pass.

        Args:
            size: number of receipts that the log has according to the database.
            frontier: the right edge of the tree according to the database.
            sent: ids of all transfers in the state `sent`.
        """
        self._compare_heads()
        self._name_moved()
        if self.next_index < size:
            self.findings.add(f"{_span(self.next_index, size)} missing: the end of the log was cut off")
        elif self.next_index > size:
            self.findings.add(f"{_span(size, self.next_index)} added, but not by docferry")
        elif not self._is_broken and self._frontier.encode() != frontier:
            self._name_changed("the tree has another root than the one stored with it")
        for head in reversed(self._heads):
            self.findings.add(
                f"{head.where} counts {head.size:,} receipts and the log has {self.next_index:,}: "
                "its end was cut off, or the database is an older copy"
            )
        self._deliveries.gone |= self._gone
        for transfer_id in sent:
            delivered = self._deliveries.delivered
            if transfer_id >= len(delivered) or not delivered[transfer_id]:
                self.findings.add(f"transfer {transfer_id} was sent and has no receipt: it was removed")
        return self.findings

    # -- heads ---------------------------------------------------------------------------------------------------------

    def _is_ours(self, head: NamedHead, public_key: bytes | None) -> bool:
        signed = head.signed
        if signed.head.origin != self._origin:
            self.findings.add(f"{head.where} is of another log: {signed.head.origin}, not {self._origin}")
            return False
        if public_key is not None and signed.signatures:
            if not signed.names_key(public_key):
                self.other_keys += 1
            elif not signed.is_signed_by(public_key):
                self.findings.add(f"{head.where} has a forged signature")
        return True

    def _compare_heads(self) -> None:
        """Compare the heads whose size equals the present size of the tree."""
        while self._heads and self._heads[-1].size <= self.next_index:
            head = self._heads.pop()
            if self._is_broken:
                continue
            if self._frontier.root() == head.signed.head.root:
                self._right_size = head.size
            else:
                self._name_changed(f"{head.where} has another root")

    def _name_changed(self, why: str) -> None:
        """Report that the tree differs, unless the faulty row is reported already."""
        self._is_broken = True
        if self._suspect is None or self._suspect < self._right_size:
            end = max(self.next_index, self._right_size + 1)
            self.findings.add(
                f"{why}: at least one receipt from {self._right_size} to {end - 1} is not the one that was there; "
                "it was changed, or the log was forked from an older copy"
            )

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _lose(self, start: int, end: int) -> None:
        self._is_broken = True
        self.findings.add(f"{_span(start, end)} missing: removed from the database")

    def _check_body(self, row: AuditedReceipt, body: str) -> None:
        if sha256(b"\x00" + body.encode("utf-8", "surrogatepass")).digest() != row.leaf:
            self._suspect = row.idx
            self.findings.add(f"receipt {row.idx} was changed: its text has another hash than its leaf")
        # In canonical JSON these two are adjacent; one search costs a third of two.
        if f'"index":{row.idx},"kind":"{row.kind}"' not in body and not has(body, "index", row.idx):
            self._suspect = row.idx
            self._moved[row.idx] = _stated_index(body)

    def _name_moved(self) -> None:
        for index, stated in self._moved.items():
            if self._moved.get(stated) == index:
                if index < stated:
                    self.findings.add(f"receipts {index} and {stated} were swapped")
            else:
                self.findings.add(f"receipt {index} has the text of receipt {stated}: it was moved or inserted again")

    def _check_transfer(self, row: AuditedReceipt, transfer_id: int) -> None:
        if row.uid is None:
            self._suspect = row.idx
            self.findings.add(f"receipt {row.idx} is about transfer {transfer_id}, which the queue does not have")
            return
        if row.kind in DELIVERED:
            self._check_delivered(row, transfer_id)
        elif row.kind == ReceiptKind.GONE:
            self._gone.add(transfer_id)
            self._deliveries.undone.pop(transfer_id, None)
        if row.body is not None and not _agrees(row, row.body):
            self._suspect = row.idx
            self.findings.add(f"receipt {row.idx} and transfer {transfer_id} of the queue differ: one was changed")

    def _check_delivered(self, row: AuditedReceipt, transfer_id: int) -> None:
        delivered = self._deliveries.delivered
        if transfer_id >= len(delivered):
            delivered.extend(bytes(transfer_id - len(delivered) + _GROWTH))
        if delivered[transfer_id]:
            self._suspect = row.idx
            self.findings.add(f"receipt {row.idx} is a second one for transfer {transfer_id}: it was inserted again")
        delivered[transfer_id] = 1
        if row.state == "gone":
            if transfer_id not in self._deliveries.gone:
                self._deliveries.undone[transfer_id] = row.idx
        elif row.state != "sent":
            self.findings.add(f"receipt {row.idx} says that transfer {transfer_id} was sent; it is {row.state}")


def _agrees(row: AuditedReceipt, body: str) -> bool:
    """Return whether a receipt states its transfer's identity, target and content, without parsing it."""
    name = quoted(row.remote_name or "")
    digest = f',"sha256":"{row.sha256}"' if row.sha256 is not None else ""
    if f'"remote":"{row.remote}","remote_name":{name}{digest},"size":{row.size},' not in body:
        return False
    if f'"uid":"{row.uid}"' not in body or f'"kind":"{row.kind}"' not in body:
        return False
    if f'"company_id":"{row.company_id}","connection_id":"{row.connection_id}"' in body:
        return True
    return has(body, "company_id", row.company_id) and has(body, "connection_id", row.connection_id)


def _stated_index(body: str) -> int:
    try:
        return int(json.loads(body)["index"])
    except (ValueError, KeyError, TypeError):
        return -1


def _span(start: int, end: int) -> str:
    """Name a range of receipts as the subject of "missing" or "added"."""
    return f"receipt {start} is" if end - start == 1 else f"receipts {start} to {end - 1} ({end - start:,}) are"
