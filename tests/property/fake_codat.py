"""Simulate Codat for runs: uploads stored late, a lagging list, and kept responses."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from datetime import UTC, date, datetime

from docferry.clock import TurnableClock, iso
from docferry.model import (
    Transfer,
)
from docferry.remotes.codat import reconcile

LAG = 30.0


@dataclass
class Upload:
    """Describe a file at the service."""

    name: str
    sha256: str
    at: float
    listed: float
    lane: str | None = None  # None: uploaded by another program


class FakeCodat:
    """Simulate a Codat that stores late, lists later, and repeats responses by key."""

    def __init__(self, jitter: random.Random, clock: TurnableClock) -> None:
        self.jitter = jitter
        self.clock = clock
        self.stored: list[Upload] = []
        self.faults: Counter[str] = Counter()
        self.keys: dict[str, str] | None = {} if jitter.random() < 0.5 else None  # None: no idempotency keys
        self.fault_rate = jitter.choice([0.2, 0.5, 0.8])

    def put(self, name: str, digest: str, late: float = 0.0, lane: str | None = None) -> None:
        at = self.clock.now() + late
        self.stored.append(Upload(name, digest, at, at + self.jitter.uniform(0, LAG), lane))

    def fault(self) -> str:
        """Choose the fault of one upload."""
        if self.jitter.random() >= self.fault_rate:
            return "well"
        fault = self.jitter.choice(["lost", "late", "never", "away", "error", "killed", "cut", "busy"])
        self.faults[fault] += 1
        return fault

    def take(self, transfer: Transfer, key: str, fault: str) -> str:
        """Store the document, and return the response. A kept response is repeated."""
        if self.keys is not None and key in self.keys:
            return self.keys[key]
        answer = "error" if fault == "error" else "well"
        if fault != "error" or self.jitter.random() < 0.5:
            late = self.jitter.uniform(0, LAG) if fault == "late" else 0.0
            self.put(transfer.remote_name, transfer.sha256, late, transfer.target.lane)
        if self.keys is not None:
            self.keys[key] = answer
        return answer

    def rows(self) -> list[reconcile.ListedUpload]:
        """Return the list as it is now."""
        now = self.clock.now()
        return [
            reconcile.ListedUpload.read(each.name, iso(each.at) or "", 0.0)
            for each in self.stored
            if each.listed <= now
        ]

    def archive(self, days: Container[date]) -> reconcile.Members:
        """Return the ZIPs of some days."""
        members = reconcile.Members()
        now = self.clock.now()
        for each in self.stored:
            if each.at <= now and datetime.fromtimestamp(each.at, UTC).date() in days:
                members.add(f"files/{each.name}", each.sha256)
        return members
