"""The words of the house as frozen values: what a document, a transfer and a move are, and nothing else."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

RemoteName = str  # "codat" | "wootiv"


class State(StrEnum):
    """Where a transfer stands. SENT and GONE are final."""

    WAITING = "waiting"
    LEASED = "leased"
    SENDING = "sending"
    DOUBTFUL = "doubtful"
    ASKING = "asking"
    SENT = "sent"
    HELD = "held"
    GONE = "gone"


#: Every move a transfer may make. SENDING and ASKING never fall back to WAITING by accident:
#: SENDING → WAITING only when the remote surely took nothing.
MOVES: Final[frozenset[tuple[State, State]]] = frozenset(
    {
        (State.WAITING, State.LEASED),
        (State.WAITING, State.GONE),
        (State.LEASED, State.WAITING),
        (State.LEASED, State.SENDING),
        (State.LEASED, State.HELD),
        (State.LEASED, State.GONE),
        (State.LEASED, State.SENT),  # adopted: proved to be there before anything was sent
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
DUE: Final = frozenset({State.WAITING, State.DOUBTFUL})


class Reason(StrEnum):
    """Why a document is held, or a gate closed: codes that scripts may rely on."""

    TOO_LARGE = "too_large"
    EXTENSION = "extension"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    UNROUTABLE = "unroutable"
    REFUSED = "refused"
    GAVE_UP = "gave_up"
    UNDECIDABLE = "undecidable"
    # why a gate is closed
    KEY = "key"
    ACCOUNT = "account"
    COMPANY = "company"
    CONNECTION = "connection"
    QUOTA = "quota"
    RATE = "rate"
    UNREACHABLE = "unreachable"
    FAILING = "failing"
    REDIRECTED = "redirected"


@dataclass(frozen=True, slots=True)
class Stamp:
    """How a file looked: enough to notice every change, ctime included (it cannot be set back)."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Digests:
    """What the bytes of a file were when they were read, in hex: the SHA-256 that people are shown, an XXH3 of 128
    bits that proves a later reading at the speed of memory, and for remotes that are told it an MD5. None: whoever
    planned it did not take it."""

    sha256: str
    fingerprint: str | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A path looked like this just now; not stored. `folder` and `name` are bytes as the kernel gave them,
    `folder` relative to the mapping's root, without slashes at its ends (b"" is the root)."""

    folder: bytes
    name: bytes
    stamp: Stamp

    @property
    def path(self) -> bytes:
        return joined(self.folder, self.name)


@dataclass(frozen=True, slots=True)
class Target:
    """Where documents of one kind go: a remote, and at Codat a company's connection."""

    remote: RemoteName
    company_id: str | None = None
    connection_id: str | None = None
    #: `codat/COMPANY/CONNECTION` or `wootiv`; gates close prefixes of it. Kept, as every move asks for it.
    lane: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        lane = "/".join(part for part in (self.remote, self.company_id, self.connection_id) if part)
        object.__setattr__(self, "lane", lane)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One digest of one document to one remote, as a worker under a lease sees it."""

    id: int
    uid: str  # 32 hex digits, random: idempotency keys, boundaries and tokens come from it
    mapping: str
    target: Target
    remote_name: str
    sha256: str
    size: int
    state: State
    lease: int
    tries: int  # attempts since a person or the first sighting made it due
    generation: int  # which idempotency key is in force
    created: float
    due_since: float  # wall seconds: since when it counts as not delivered; a retry starts it again
    first_sent: float | None  # wall seconds: when the first attempt that may have stored it began
    last_sent: float | None  # when the latest such attempt ended, or began if nobody saw it end
    reason: str | None
    detail: str | None
    fingerprint: str | None = None  # of its bytes, as sha256 is; None: nobody took it
    md5: str | None = None

    @property
    def token(self) -> str:
        return self.uid[:8]


class Source(Protocol):
    """A document's bytes for one attempt; opened, proved, and closed by `files.source`."""

    @property
    def size(self) -> int: ...

    def blocks(self) -> AsyncIterator[bytes]:
        """All bytes in order. The last block is given out only after the fingerprint of everything read and the
        file's stamp have been proved; raises `errors.SourceChanged` instead, so that a body is never whole."""

    @property
    def md5(self) -> str | None:
        """Hex MD5 of the bytes, if it was asked for."""


@dataclass(frozen=True, slots=True)
class UploadItem:
    """One document as a remote gets it: the transfer's facts and the bytes."""

    transfer: Transfer
    source: Source


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a remote said when it took a document."""

    status: int | None
    correlation_id: str | None = None
    etag: str | None = None
    detail: str | None = None
    proof: str = "answer"  # "answer" | "list" | "zip" | "etag" | "adopted"


class Found(StrEnum):
    """What asking about a doubt can bring."""

    THERE = "there"
    ABSENT = "absent"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True)
class Finding:
    """A remote's answer about one doubtful transfer, and the sentence that explains it."""

    found: Found
    detail: str
    proof: str = "list"


@dataclass(frozen=True, slots=True)
class KnownUploads:
    """What SENT transfers of one company already account for: how often a name, how often a digest."""

    names: dict[str, int]
    digests: dict[str, int]


@dataclass(frozen=True, slots=True)
class Gate:
    """A remote, company or connection closed for all until a time; then one document probes."""

    key: str  # a prefix of lanes: "codat", "codat/COMPANY", "codat/COMPANY/CONNECTION", "wootiv"
    reason: str
    detail: str
    until: float  # wall seconds
    tries: int
    since: float
    lets_doubts_pass: bool = False  # a spent quota keeps a reserve for resolving doubts


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a transfer after a try: its next state, and what the rest of the house must know."""

    state: State
    reason: str | None = None
    detail: str | None = None
    delay: float = 0.0  # seconds until it is due, for WAITING and DOUBTFUL
    gate: Gate | None = None  # to be closed
    fresh_key: bool = False  # the next request needs a new idempotency key
    costs_a_try: bool = True
    receipt: Receipt | None = None


def joined(folder: bytes, name: bytes) -> bytes:
    """The path of a name in a folder; b"" is the root."""
    return folder + b"/" + name if folder else name


def parted(path: bytes) -> tuple[bytes, bytes]:
    """`(folder, name)` of a relative path."""
    folder, _, name = path.rpartition(b"/")
    return folder, name


def escaped(raw: bytes | str) -> str:
    """A path or name as text that is safe to show: undecodable bytes as `\\xff`, control and
    direction-changing characters as escapes, everything else as it is."""
    text = raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else raw
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if char == "\\" or char.isprintable():
        return char
    return char.encode("unicode_escape").decode("ascii")
