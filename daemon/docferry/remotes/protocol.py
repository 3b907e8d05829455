"""Define what every remote offers: its rules, uploads, lookups and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from posixpath import splitext
from typing import Final, NamedTuple, Protocol

from docferry.errors import RemoteError
from docferry.model import Finding, KnownUploads, Reason, Receipt, Target, Transfer, UploadItem

#: No known uploads.
NOTHING: Final = KnownUploads({}, {})


@dataclass(frozen=True, slots=True)
class Rules:
    """The documents that a remote accepts; checked before any request."""

    remote: str  # as people write it
    max_size: int
    min_size: int = 1
    extensions: frozenset[str] | None = None  # without the dot, lower case; None: all
    needs_md5: bool = False  # uploads name the MD5 of the bytes

    def broken(self, name: str, size: int) -> tuple[Reason, str] | None:
        """Return the first rule that a document of this name and size breaks, with a sentence that says the fix."""
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
    """The condition of a remote, for `docferry status`; None: it never said."""

    limit: int | None = None  # requests a day
    remaining: int | None = None
    reset: float | None = None  # wall seconds
    clock_offset: float | None = None  # seconds that the remote's clock is ahead of ours
    last_answer: float | None = None  # wall seconds
    requests: int = 0  # since the start


@dataclass(frozen=True, slots=True)
class Checked:
    """One result of `docferry check`, with the fix where it failed.

    `passes`: the check may succeed later without any change.
    """

    subject: str
    ok: bool
    detail: str
    cure: str = ""
    passes: bool = False


def failed(subject: str, error: RemoteError, cure: str) -> Checked:
    """Return the result of a check that ended with an error.

    Requested pauses, 5xx and broken connections pass; errors about the configuration do not.
    """
    status = error.status
    passes = error.kind in ("unreachable", "timeout", "cut")
    if error.kind in ("answer", "not_ours") and status is not None:
        passes = status in (408, 409, 425, 429) or status >= 500
    return Checked(subject, ok=False, detail=str(error), cure=cure, passes=passes)


@dataclass(frozen=True, slots=True)
class Lookback:
    """The wall seconds since which a lookup needs the known uploads, for names and for digests."""

    names: float
    digests: float


class SendPermit:
    """The right to send one batch; this one is always granted.

    `acquire` waits for a slot. A remote that waits before the first byte reads `is_granted` again, since a stop, a
    gate or the quota may have overtaken the batch. `release` gives the slot back once the remote has accepted the
    batch, while its outcome is being committed.
    """

    async def acquire(self) -> bool:
        """Wait for a slot; False when the batch must not be sent now."""
        return True

    @property
    def is_granted(self) -> bool:
        """Whether the batch may still be sent."""
        return True

    def release(self) -> None:
        """Give the slot back."""


ALWAYS_PERMITTED: Final = SendPermit()


class ApiKey(Protocol):
    """The API key of a remote, read before each request, so that a renewed key counts at once."""

    @property
    def value(self) -> str | None:
        """The key, None when there is none."""

    def reload(self) -> None:
        """Read the key again: the remote has refused it."""


class Remote(Protocol):
    """One remote. Its methods make one attempt each; retries belong to the queue."""

    @property
    def name(self) -> str:
        """The name in the configuration."""

    @property
    def rules(self) -> Rules:
        """The documents that it accepts."""

    @property
    def lookup_after(self) -> float:
        """Seconds after `last_sent` before a lookup means anything."""

    @property
    def absent_after(self) -> float:
        """Seconds after `last_sent` before an ABSENT counts."""

    @property
    def health(self) -> Health:
        """Its condition as of the latest answer."""

    async def send(self, items: Sequence[UploadItem], key: str, permit: SendPermit = ALWAYS_PERMITTED) -> Receipt:
        """Send the items in one request under an idempotency key.

        Raises:
            NotNow: The permit was withdrawn while the request waited for its first byte.
            SourceError: A file could not be read to its end; the body was not completed.
            RemoteError: Anything else that is not a receipt.
        """

    def lookback(self, doubts: Sequence[Transfer]) -> Lookback:
        """Return the times since which a lookup of these doubts needs the known uploads."""

    async def lookup(
        self, doubts: Sequence[Transfer], accounted: KnownUploads, unsettled: KnownUploads = NOTHING
    ) -> Mapping[int, Finding]:
        """Return a finding for each doubt, by transfer id; all doubts belong to one company.

        Args:
            doubts: The transfers in doubt. Only one lookup at a time runs for a company.
            accounted: The uploads of transfers that were SENT more than `lookup_after` seconds ago.
            unsettled: The uploads that may or may not show yet: SENT since then, in flight, or other doubts.
        """

    async def check(self, targets: Sequence[Target]) -> list[Checked]:
        """Check key, connections and clock with real requests that change nothing."""

    async def aclose(self) -> None:
        """Close all connections."""
