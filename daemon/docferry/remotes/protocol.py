"""What every remote is to the house: its rules, how a document is sent and asked for, and how it fares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from docferry.errors import RemoteError
from docferry.model import Finding, KnownUploads, Reason, Receipt, Target, Transfer, UploadItem

#: Nothing of the kind: what is unsettled when nobody says otherwise.
NOTHING = KnownUploads({}, {})


@dataclass(frozen=True, slots=True)
class Rules:
    """What a remote takes; checked before any request."""

    remote: str  # as people write it
    max_size: int
    min_size: int = 1
    extensions: frozenset[str] | None = None  # without the dot, lower case; None: all
    needs_md5: bool = False  # it is told the MD5 of the bytes

    def broken(self, name: str, size: int) -> tuple[Reason, str] | None:
        """The first rule that a document of this name and size breaks, and the sentence that says how to mend it."""
        if size < self.min_size:
            return Reason.EMPTY, "the file is empty; write it again, or exclude it from the mapping"
        if size > self.max_size:
            return Reason.TOO_LARGE, (
                f"the file has {size:,} bytes and {self.remote} takes {self.max_size:,} at most; "
                "split or compress it, or exclude it from the mapping"
            )
        suffix = PurePosixPath(name).suffix[1:].lower()
        if self.extensions is None or suffix in self.extensions:
            return None
        wrong = f"files of type .{suffix}" if suffix else "files without an extension"
        taken = ", ".join(sorted(self.extensions))
        return Reason.EXTENSION, (
            f"{self.remote} does not take {wrong}, only {taken}; convert it, or exclude it from the mapping"
        )


@dataclass(frozen=True, slots=True)
class Health:
    """How a remote fares, for `docferry status`; None where it never said."""

    limit: int | None = None  # requests a day
    remaining: int | None = None
    reset: float | None = None  # wall seconds
    clock_offset: float | None = None  # seconds that the remote's clock is ahead of ours
    last_answer: float | None = None  # wall seconds
    requests: int = 0  # made since the start


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that `docferry check` looked at, and the cure where it is not right. `passes`: it may well be right
    when it is looked at again, without anybody mending anything."""

    subject: str
    ok: bool
    detail: str
    cure: str = ""
    passes: bool = False


def failed(subject: str, error: RemoteError, cure: str) -> Checked:
    """A question that brought no good answer. Pauses that are asked for, trouble of the remote's own and a line that
    breaks pass; what says that something is wrong with the configuration does not."""
    status = error.status
    answers = error.kind == "answer" and status is not None and (status in (408, 409, 425, 429) or status >= 500)
    passes = answers or error.kind in ("unreachable", "timeout", "cut")
    return Checked(subject, ok=False, detail=str(error), cure=cure, passes=passes)


def clocks(remote: str, offset: float | None, tolerance: float) -> list[Checked]:
    """Whether the remote's clock and ours agree, if it has told its own."""
    if offset is None:
        return []
    ok = abs(offset) <= tolerance
    cure = "" if ok else "set the clock of this machine, e.g. `timedatectl set-ntp true`"
    return [Checked("clock", ok, f"this machine and {remote} differ by {abs(offset):.0f} s", cure)]


@dataclass(frozen=True, slots=True)
class Since:
    """How far back `find` needs to know what is accounted for: wall seconds, for names and for digests."""

    names: float
    digests: float


MayGo = Callable[[], bool]


def always() -> bool:
    """Nothing can come in between."""
    return True


class Remote(Protocol):
    """One shore. Retries are not its business: each verb makes one attempt and says how it ended."""

    @property
    def name(self) -> str: ...

    @property
    def rules(self) -> Rules: ...

    @property
    def find_after(self) -> float:
        """Seconds after `last_sent` before `find` means anything."""

    @property
    def confirm_after(self) -> float:
        """Seconds after `last_sent` before an ABSENT counts."""

    @property
    def health(self) -> Health: ...

    async def send(self, items: Sequence[UploadItem], key: str, may_go: MayGo = always) -> Receipt:
        """Send them in one request; RemoteError or SourceError when that did not end in a receipt. Where it has to
        wait before it begins, `may_go` is asked then: NotNow when it must not any more."""

    def since(self, doubts: Sequence[Transfer]) -> Since:
        """The times since which `accounted` must count for a `find` of these doubts."""

    async def find(
        self, doubts: Sequence[Transfer], accounted: KnownUploads, unsettled: KnownUploads = NOTHING
    ) -> Mapping[int, Finding]:
        """Are they there? All doubts are of one company, and one call at a time is made for it.

        `accounted` is what transfers explain that were SENT before `find_after` ago; `unsettled` what may or may not
        show yet: those sent since, in flight, or in doubt and not among these. No transfer is counted in both."""

    async def check(self, targets: Sequence[Target]) -> list[Checked]:
        """Ask for real whether key, connections and clock are right; changes nothing at the remote."""

    async def aclose(self) -> None: ...
