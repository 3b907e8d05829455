"""Define the frozen values that all packages share: states, transfers, gates, outcomes, receipts."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from msgspec import Struct

RemoteName = str  # "codat" | "wootiv"


class State(StrEnum):
    """Name the states of a transfer. SENT and GONE are final."""

    WAITING = "waiting"
    LEASED = "leased"
    SENDING = "sending"
    DOUBTFUL = "doubtful"
    ASKING = "asking"
    SENT = "sent"
    HELD = "held"
    GONE = "gone"


#: The allowed transitions. A transfer in SENDING returns to WAITING only if the remote certainly stored nothing.
TRANSITIONS: Final[frozenset[tuple[State, State]]] = frozenset(
    {
        (State.WAITING, State.LEASED),
        (State.WAITING, State.GONE),
        (State.LEASED, State.WAITING),
        (State.LEASED, State.SENDING),
        (State.LEASED, State.HELD),
        (State.LEASED, State.GONE),
        (State.LEASED, State.SENT),  # adopted: proved present before it was sent
        (State.SENDING, State.SENT),
        (State.SENDING, State.WAITING),
        (State.SENDING, State.DOUBTFUL),
        (State.SENDING, State.HELD),
        (State.SENDING, State.GONE),
        (State.DOUBTFUL, State.ASKING),
        (State.ASKING, State.SENT),
        (State.ASKING, State.DOUBTFUL),
        (State.ASKING, State.SENDING),
        (State.ASKING, State.HELD),
        (State.ASKING, State.GONE),
        (State.HELD, State.WAITING),
        (State.HELD, State.DOUBTFUL),
        (State.HELD, State.GONE),
    }
)
FINAL: Final = frozenset({State.SENT, State.GONE})
IN_FLIGHT: Final = frozenset({State.LEASED, State.SENDING, State.ASKING})
#: The largest integer that SQLite and PostgreSQL store.
MAX_INTEGER: Final = 2**63 - 1
DUE: Final = frozenset({State.WAITING, State.DOUBTFUL})


class Reason(StrEnum):
    """Name the reasons of held documents and closed gates; scripts rely on these codes."""

    TOO_LARGE = "too_large"
    EXTENSION = "extension"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    UNROUTABLE = "unroutable"
    REFUSED = "refused"
    GAVE_UP = "gave_up"
    UNDECIDABLE = "undecidable"
    NAME_TAKEN = "name_taken"
    CONTENT = "content"
    INCOMPLETE = "incomplete"
    INFECTED = "infected"
    UNSCANNED = "unscanned"
    APPROVAL = "approval"
    METADATA = "metadata"
    # of closed gates
    KEY = "key"
    ACCOUNT = "account"
    COMPANY = "company"
    CONNECTION = "connection"
    QUOTA = "quota"
    RATE = "rate"
    UNREACHABLE = "unreachable"
    FAILING = "failing"
    REDIRECTED = "redirected"
    STRANGER = "stranger"  # another server answers in place of the remote
    ANTIVIRUS = "antivirus"  # the virus scanner gives no verdict
    STORAGE = "storage"  # the storage refuses its account, bucket, signer or quota


class Stamp(NamedTuple):
    """Hold size and times of a file. The ctime cannot be set back, so every change is noticed."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """Return the stamp of a stat result. Times beyond the range of a database are clamped."""
        return cls(stat.st_size, clamped(stat.st_mtime_ns), clamped(stat.st_ctime_ns))


class Digests(Struct, frozen=True):
    """Hold the digests of a file's bytes, in hex.

    `sha256` is shown to people. `fingerprint` is the XXH3 of 128 bits, which proves a later read at the speed of
    memory. `md5` is for remotes that need it. None means not computed when the document was planned.
    """

    sha256: str
    fingerprint: str | None = None
    md5: str | None = None


class ContentFault(Struct, frozen=True):
    """Describe an evident fault of a file's content, with a sentence for people."""

    reason: Reason  # INCOMPLETE or CONTENT
    detail: str


class SeenFile(Struct, frozen=True):
    """Describe a file as found by a scan. `folder` and `name` are the bytes of the kernel.

    `folder` is relative to the folder of the mapping, without slashes at its ends; b"" is that folder itself.
    """

    folder: bytes
    name: bytes
    stamp: Stamp

    @property
    def path(self) -> bytes:
        """Return the path relative to the folder of the mapping."""
        return joined(self.folder, self.name)


@dataclass(frozen=True, slots=True)
class Target:
    """Describe the destination of documents: a remote, and at Codat the connection of a company."""

    remote: RemoteName
    company_id: str | None = None
    connection_id: str | None = None
    #: `codat/COMPANY/CONNECTION` or `wootiv`; gates close prefixes of it. Stored, because every transition needs it.
    lane: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        lane = "/".join(part for part in (self.remote, self.company_id, self.connection_id) if part)
        object.__setattr__(self, "lane", lane)


class Transfer(Struct, frozen=True):
    """Describe one digest of one document for one remote, as leased by a worker."""

    id: int
    uid: str  # 32 random hex digits: the source of idempotency keys, boundaries and tokens
    mapping: str
    target: Target
    remote_name: str
    sha256: str
    size: int
    state: State
    lease: int
    tries: int  # attempts since the plan, or since a retry by a person
    key_version: int  # the version of the idempotency key
    created: float
    due_since: float  # wall seconds since which it is due; reset by a retry
    first_sent: float | None  # wall seconds: the begin of the first attempt that may have stored it
    last_sent: float | None  # the end of the latest such attempt, or its begin while the end is unknown
    reason: str | None
    detail: str | None
    fingerprint: str | None = None  # digests of its bytes, see `Digests`
    md5: str | None = None

    @property
    def token(self) -> str:
        """Return the eight hex digits for {token} in remote names."""
        return self.uid[:8]


class Source(Protocol):
    """Provide the bytes of a document for one attempt; `files.source` opens, proves and closes them."""

    @property
    def size(self) -> int:
        """Return the size of the document in bytes."""

    def blocks(self) -> AsyncIterator[bytes]:
        """Yield all bytes in order.

        The last block follows only after the fingerprint of all bytes and the file's stamp are proved. Otherwise
        `errors.SourceChanged` is raised, so that a changed document never becomes a complete body.
        """

    @property
    def md5(self) -> str | None:
        """Return the MD5 of the bytes in hex, None unless requested."""


class UploadItem(Struct, frozen=True):
    """Describe one document for a remote: its transfer and its bytes."""

    transfer: Transfer
    source: Source


class Receipt(Struct, frozen=True):
    """Hold the response with which a remote accepted a document, or the proof that the remote has it."""

    status: int | None
    correlation_id: str | None = None
    etag: str | None = None
    detail: str | None = None
    proof: str = "answer"  # "answer" | "list" | "zip" | "etag" | "adopted" | "none"


class Found(StrEnum):
    """Name the result of a lookup."""

    PRESENT = "present"
    ABSENT = "absent"
    UNSURE = "unsure"


class Finding(Struct, frozen=True):
    """Hold the result of a lookup for one doubtful transfer, with a sentence for people."""

    found: Found
    detail: str
    proof: str = "list"


class KnownUploads(Struct, frozen=True):
    """Count the uploads of one company that belong to other transfers, by name and by digest."""

    names: dict[str, int]
    digests: dict[str, int]


class Gate(Struct, frozen=True):
    """Describe a remote, company or connection that is closed until a time; then one document probes it."""

    key: str  # a prefix of lanes: "codat", "codat/COMPANY", "codat/COMPANY/CONNECTION", "wootiv"
    reason: str
    detail: str
    until: float  # wall seconds
    tries: int
    since: float
    lets_doubts_pass: bool = False  # a spent quota keeps a reserve for lookups


class Outcome(Struct, frozen=True):
    """Hold the result of an attempt: the next state of the transfer, and the gate to close."""

    state: State
    reason: str | None = None
    detail: str | None = None
    delay: float = 0.0  # seconds until it is due again, for WAITING and DOUBTFUL
    gate: Gate | None = None
    fresh_key: bool = False  # the next request needs a new idempotency key
    costs_a_try: bool = True
    receipt: Receipt | None = None


def clamped(number: int) -> int:
    """Return the nearest integer that a database can store.

    A file system may date a file beyond the year 2262, which is more than 64 bits of nanoseconds.
    """
    return number if -MAX_INTEGER <= number <= MAX_INTEGER else max(-MAX_INTEGER, min(number, MAX_INTEGER))


def joined(folder: bytes, name: bytes) -> bytes:
    """Return the path of a name in a folder; b"" is the root."""
    return folder + b"/" + name if folder else name


def parted(path: bytes) -> tuple[bytes, bytes]:
    """Return `(folder, name)` of a relative path."""
    folder, _, name = path.rpartition(b"/")
    return folder, name


def escaped(raw: bytes | str) -> str:
    """Return a path or name as text that is safe to show.

    Undecodable bytes become hex escapes, control and direction-changing characters become escapes.
    """
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if char == "\\" or char.isprintable():
        return char
    return char.encode("unicode_escape").decode("ascii")
