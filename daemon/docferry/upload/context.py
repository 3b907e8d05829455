"""Group the objects that all parts of the upload package use."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from docferry.clock import Clock
from docferry.remotes.protocol import Remote
from docferry.senders.pool import SenderPool
from docferry.settings import Upload
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.gates import Gates
from docferry.store.owners import Owners
from docferry.store.transfers import Transfers
from docferry.telemetry import Telemetry
from docferry.wakeups import Wakeups


class QueueTables(Struct, frozen=True):
    """Hold the tables of the queue and their database."""

    database: Database
    documents: Documents
    transfers: Transfers
    gates: Gates
    owners: Owners


class UploadContext(Struct, frozen=True):
    """Hold the queue, the upload mappings by name, and the remotes by name, for one configuration of one process."""

    clock: Clock
    queue: QueueTables
    uploads: Mapping[str, Upload]
    remotes: Mapping[str, Remote]
    wakeups: Wakeups
    telemetry: Telemetry
    senders: SenderPool = field(default_factory=SenderPool)

    def remote_of(self, lane: str) -> Remote:
        """Return the remote of a lane."""
        return self.remotes[lane.split("/", 1)[0]]
