"""Define the interface of every remote: its rules, uploads, lookups and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from posixpath import splitext
from typing import Final, NamedTuple, Protocol

from msgspec import Struct

from docferry.errors import RemoteError
from docferry.model import Finding, KnownUploads, Reason, Receipt, Target, Transfer, UploadItem

#: An empty set of known uploads.
NOTHING: Final = KnownUploads({}, {})


class Rules(Struct, frozen=True):
    """Describe the documents that a remote accepts; checked before any request."""

    remote: str  # as shown to people
    max_size: int
    min_size: int = 1
    extensions: frozenset[str] | None = None  # without the dot, lower case; None: all
    needs_md5: bool = False  # uploads state the MD5 of the bytes

    def broken(self, name: str, size: int) -> tuple[Reason, str] | None:
        """Return the first rule that a document of this name and size breaks, with a sentence that has the fix."""
        if size < self.min_size:
            return Reason.EMPTY, "the file is empty; write it again, or exclude it from the mapping"
        if size > self.max_size:
            return Reason.TOO_LARGE, (
                f"the file has {size:,} bytes and {self.remote} accepts at most {self.max_size:,}; "
                "split or compress it, or exclude it from the mapping"
            )
        suffix = splitext(name)[1][1:].lower()
        if self.extensions is None or suffix in self.extensions:
            return None
        wrong = f"files of type .{suffix}" if suffix else "files without an extension"
        accepted = ", ".join(sorted(self.extensions))
        return Reason.EXTENSION, (
            f"{self.remote} does not accept {wrong}, only {accepted}; convert it, or exclude it from the mapping"
        )


class Health(NamedTuple):
    """Describe the condition of a remote, for `docferry status`; None: not stated by the remote."""

    limit: int | None = None  # requests a day
    remaining: int | None = None
    reset: float | None = None  # wall seconds
    clock_offset: float | None = None  # seconds by which the remote's clock is ahead
    last_answer: float | None = None  # wall seconds
    requests: int = 0  # number since the start


class Checked(Struct, frozen=True):
    """Hold one result of `docferry check`, with the fix of a failure.

    `passes`: the check may succeed later without any change.
    """

    subject: str
    ok: bool
    detail: str
    cure: str = ""
    passes: bool = False


def failed(subject: str, error: RemoteError, cure: str) -> Checked:
    """Return the result of a failed check.

    Requested pauses, 5xx and broken connections may pass; errors of the configuration do not.
    """
    status = error.status
    passes = error.kind in ("unreachable", "timeout", "cut")
    if error.kind in ("answer", "not_ours") and status is not None:
        passes = status in (408, 409, 425, 429) or status >= 500
    return Checked(subject, ok=False, detail=str(error), cure=cure, passes=passes)


class Lookback(Struct, frozen=True):
    """Hold the wall seconds from which a lookup needs the known uploads, for names and for digests."""

    names: float
    digests: float


class SendPermit:
    """Grant the right to send one batch, here always.

    `acquire` waits for a slot. A remote that waits before the first byte reads `is_granted` again, because a stop, a
    gate or the quota may have intervened. `release` frees the slot once the remote has accepted the batch, before its
    outcome is committed.
    """

    async def acquire(self) -> bool:
        """Wait for a slot. Return False if the batch must not be sent now."""
        return True

    @property
    def is_granted(self) -> bool:
        """Return whether the batch may still be sent."""
        return True

    def release(self) -> None:
        """Free the slot."""


ALWAYS_PERMITTED: Final = SendPermit()


class ApiKey(Protocol):
    """Provide the API key of a remote, read before each request, so that a renewed key is used at once."""

    @property
    def value(self) -> str | None:
        """Return the key, None if there is none."""

    def reload(self) -> None:
        """Read the key again after the remote has refused it."""


class Remote(Protocol):
    """Define one remote. Each method makes one attempt; the queue retries."""

    @property
    def name(self) -> str:
        """Return the name in the configuration."""

    @property
    def rules(self) -> Rules:
        """Return the rules for its documents."""

    @property
    def lookup_after(self) -> float:
        """Return the seconds after `last_sent` from which a lookup is meaningful."""

    @property
    def absent_after(self) -> float:
        """Return the seconds after `last_sent` from which an ABSENT counts."""

    @property
    def health(self) -> Health:
        """Return the condition of the remote at its latest response."""

    async def send(self, items: Sequence[UploadItem], key: str, permit: SendPermit = ALWAYS_PERMITTED) -> Receipt:
        """Send the items in one request under an idempotency key.

        Raises:
            NotNow: The permit was withdrawn while the request waited for its first byte.
            SourceError: A file could not be read to its end; the body was not completed.
            RemoteError: The response is anything but a receipt.
        """

    def lookback(self, doubts: Sequence[Transfer]) -> Lookback:
        """Return the times from which a lookup of these doubts needs the known uploads."""

    async def lookup(
        self, doubts: Sequence[Transfer], accounted: KnownUploads, unsettled: KnownUploads = NOTHING
    ) -> Mapping[int, Finding]:
        """Return a finding for each doubt, by transfer id; all doubts belong to one company.

        Args:
            doubts: The doubtful transfers. Only one lookup at a time runs for a company.
            accounted: The uploads of transfers that were SENT more than `lookup_after` seconds ago.
            unsettled: The uploads that may not be visible yet: SENT since then, in flight, or other doubts.
        """

    async def check(self, targets: Sequence[Target]) -> list[Checked]:
        """Check key, connections and clock by real requests that change nothing."""

    async def aclose(self) -> None:
        """Close all connections."""
