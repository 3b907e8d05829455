"""What the simulated remotes have got and seen: stored files, S3 objects, requests."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from docferry.clock import Clock

#: So many requests are remembered one by one; the counts go on.
REMEMBERED = 50_000


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that a remote has. `at` is in wall seconds of the simulator's clock."""

    remote: Literal["codat", "wootiv"]
    company: str | None
    connection: str | None
    name: str
    content: bytes | None = field(repr=False)  # None: not kept
    sha256: str
    size: int
    at: float
    via: Literal["api", "page"] = "api"
    key: str | None = None  # Idempotency-Key


@dataclass(frozen=True, slots=True)
class S3Object:
    """What stands under one key of a bucket."""

    bucket: str
    key: str
    content: bytes | None = field(repr=False)
    size: int
    sha256: str
    etag: str  # with its quotes
    modified: float
    content_type: str = "binary/octet-stream"


@dataclass(slots=True)
class RequestSeen:
    """One request; `path` has no query. `status` is None when no answer was given."""

    route: str
    method: str
    path: str
    fault: str | None
    at_first_byte: float
    status: int | None = None
    at: float = 0.0  # when it was over


@dataclass(frozen=True, slots=True)
class Event:
    """For whoever watches: a file was stored, or a fault struck."""

    kind: Literal["stored", "fault"]
    route: str
    detail: str  # the file's name, or the fault's kind
    stored: Stored | None = None


class Recorder:
    """Keeps the record; files that are stored late appear when their time has come."""

    def __init__(self, clock: Clock, on_event: Callable[[Event], None] | None) -> None:
        self._clock = clock
        self._on_event = on_event
        self._stored: list[Stored] = []
        self._objects: dict[tuple[str, str], S3Object] = {}
        self._late: list[_Late] = []
        self.requests: Counter[str] = Counter()
        self.log: deque[RequestSeen] = deque(maxlen=REMEMBERED)

    @property
    def stored(self) -> list[Stored]:
        """Everything stored by now, in order; each PUT to one key of S3 counts."""
        self._settle()
        return self._stored

    @property
    def objects(self) -> dict[tuple[str, str], S3Object]:
        """What stands in S3 by now, by bucket and key."""
        self._settle()
        return self._objects

    def store(self, stored: Stored, stands: S3Object | None = None, late: float = 0.0) -> None:
        """Keep a file, and the object that it becomes if it goes to S3; `late` seconds from now."""
        self._settle()  # what was late until now comes before it
        if late > 0:
            self._late.append(_Late(self._clock.steady() + late, stored, stands))
        else:
            self._keep(stored, stands)

    def struck(self, route: str, kind: str) -> None:
        """A fault struck a request."""
        if self._on_event is not None:
            self._on_event(Event("fault", route, kind))

    def reset(self) -> None:
        self._stored.clear()
        self._objects.clear()
        self._late.clear()
        self.requests.clear()
        self.log.clear()

    def _settle(self) -> None:
        if not self._late:
            return
        now = self._clock.steady()
        due = sorted((late for late in self._late if late.when <= now), key=lambda late: late.when)
        self._late = [late for late in self._late if late.when > now]
        for late in due:
            self._keep(late.stored, late.stands)

    def _keep(self, stored: Stored, stands: S3Object | None) -> None:
        self._stored.append(stored)
        if stands is not None:
            self._objects[stands.bucket, stands.key] = stands
        if self._on_event is not None:
            self._on_event(Event("stored", f"{stored.remote}.{stored.via}", stored.name, stored))


@dataclass(frozen=True, slots=True)
class _Late:
    when: float  # steady seconds
    stored: Stored
    stands: S3Object | None
