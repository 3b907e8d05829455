"""Record the stored files, S3 objects and requests of the simulated remotes."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal, Protocol

from docferry.clock import Clock

#: The number of requests recorded singly; counts have no limit.
MAX_LOGGED = 50_000


@dataclass(frozen=True, slots=True)
class Stored:
    """Describe a file that a remote stored. `at` is in wall seconds of the simulator's clock."""

    remote: Literal["codat", "wootiv"]
    company: str | None
    connection: str | None
    name: str
    content: bytes | None = field(repr=False)  # None: not stored
    sha256: str
    size: int
    at: float
    via: Literal["api", "page"] = "api"
    key: str | None = None  # Idempotency-Key


@dataclass(frozen=True, slots=True)
class S3Object:
    """Describe the object under one key of a bucket."""

    bucket: str
    key: str
    content: bytes | None = field(repr=False)
    size: int
    sha256: str
    etag: str  # with quotes
    modified: float
    content_type: str = "binary/octet-stream"


@dataclass(slots=True)
class RequestSeen:
    """Describe one request; `path` has no query. `status` is None without a response."""

    route: str
    method: str
    path: str
    fault: str | None
    at_first_byte: float
    status: int | None = None
    at: float = 0.0  # the end of the request


@dataclass(frozen=True, slots=True)
class Event:
    """Report that a file was stored or a fault was applied."""

    kind: Literal["stored", "fault"]
    route: str
    detail: str  # the file's name, or the fault's kind
    stored: Stored | None = None


class EventLog(Protocol):
    """Receive the events as they happen; a list is one implementation."""

    def append(self, event: Event, /) -> None:
        """Add an event."""


class Recorder:
    """Keep the record. Delayed files appear when they are due."""

    def __init__(self, clock: Clock, events: EventLog | None) -> None:
        self._clock = clock
        self._events = events
        self._stored: list[Stored] = []
        self._objects: dict[tuple[str, str], S3Object] = {}
        self._delayed: list[_DelayedStore] = []
        self.requests: Counter[str] = Counter()
        self.log: deque[RequestSeen] = deque(maxlen=MAX_LOGGED)

    @property
    def stored(self) -> list[Stored]:
        """Return all files stored by now, in order; each PUT to one key of S3 counts."""
        self._store_due()
        return self._stored

    @property
    def objects(self) -> dict[tuple[str, str], S3Object]:
        """Return the present objects in S3, by bucket and key."""
        self._store_due()
        return self._objects

    def store(self, stored: Stored, s3_object: S3Object | None = None, late: float = 0.0) -> None:
        """Record a file, and the object that it becomes in S3, `late` seconds from now."""
        self._store_due()  # due delayed files precede it
        if late > 0:
            self._delayed.append(_DelayedStore(self._clock.steady() + late, stored, s3_object))
        else:
            self._keep(stored, s3_object)

    def record_fault(self, route: str, kind: str) -> None:
        """Report that a fault was applied to a request."""
        if self._events is not None:
            self._events.append(Event("fault", route, kind))

    def reset(self) -> None:
        """Remove all records."""
        self._stored.clear()
        self._objects.clear()
        self._delayed.clear()
        self.requests.clear()
        self.log.clear()

    def _store_due(self) -> None:
        if not self._delayed:
            return
        now = self._clock.steady()
        due = sorted((late for late in self._delayed if late.when <= now), key=lambda late: late.when)
        self._delayed = [late for late in self._delayed if late.when > now]
        for late in due:
            self._keep(late.stored, late.s3_object)

    def _keep(self, stored: Stored, s3_object: S3Object | None) -> None:
        self._stored.append(stored)
        if s3_object is not None:
            self._objects[s3_object.bucket, s3_object.key] = s3_object
        if self._events is not None:
            self._events.append(Event("stored", f"{stored.remote}.{stored.via}", stored.name, stored))


@dataclass(frozen=True, slots=True)
class _DelayedStore:
    when: float  # steady seconds
    stored: Stored
    s3_object: S3Object | None
