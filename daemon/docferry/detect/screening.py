"""Hold back planned documents that are cut short, mislabelled, or need approval."""

from __future__ import annotations

from functools import partial
from typing import Final

from msgspec.structs import replace

from docferry.clock import Clock
from docferry.detect import content
from docferry.files.hashing import Inspect
from docferry.model import ContentFault, Reason, SeenFile, Stamp, State
from docferry.settings import Upload
from docferry.store.enqueue import APPROVAL
from docferry.store.plan_table import Planned

#: A file that is cut short is held after this time without changes, seconds. Its own times count, so that a restart
#: resets nothing. A file further than this in the future is held at once.
COMPLETION_S: Final = 3600.0
#: The largest number of remembered files that are cut short; equals the debouncer's limit.
_MOST_CUT: Final = 10_000
_ADVICE: Final = {
    Reason.INCOMPLETE: "write the file again as a whole, or send it as it is with `docferry retry`",
    Reason.CONTENT: "give the file the right extension, or send it as it is with `docferry retry`",
}


class Screening:
    """Decide by content and mapping whether a document is queued, held, or awaited."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._cut: dict[tuple[str, bytes], Stamp] = {}

    def awaits(self, upload: Upload, seen_file: SeenFile) -> bool:
        """Return whether a file was cut short when read, is unchanged since, and may still be completed.

        Such a file is not read again.
        """
        key = (upload.name, seen_file.path)
        if not self._cut or self._cut.get(key) != seen_file.stamp:
            return False
        if self._may_be_completed(seen_file.stamp):
            return True
        del self._cut[key]
        return False

    def screen(self, upload: Upload, planned: Planned, fault: ContentFault | None) -> Planned | None:
        """Return the plan of a file that was read, held if a check fails; None while its end is awaited."""
        if fault is not None:
            if fault.reason is Reason.INCOMPLETE and self._may_be_completed(planned.seen_file.stamp):
                self._remember(upload, planned.seen_file)
                return None
            return _held(planned, fault.reason, f"{fault.detail}; {_ADVICE[fault.reason]}")
        return _held(planned, Reason.APPROVAL, APPROVAL) if upload.hold_for_approval else planned

    def _may_be_completed(self, stamp: Stamp) -> bool:
        age = self._clock.now() - max(stamp.mtime_ns, stamp.ctime_ns) / 1e9
        return abs(age) < COMPLETION_S

    def _remember(self, upload: Upload, seen_file: SeenFile) -> None:
        if len(self._cut) >= _MOST_CUT:
            del self._cut[next(iter(self._cut))]
        self._cut[upload.name, seen_file.path] = seen_file.stamp


def inspector(upload: Upload) -> Inspect | None:
    """Return the content check of a mapping, for use while its files are read."""
    return None if upload.check_content == "off" else partial(content.examine, upload.check_content)


def _held(planned: Planned, reason: Reason, detail: str) -> Planned:
    """Return the plan as held, with its digest, so that a retry sends exactly the checked bytes."""
    return replace(planned, state=State.HELD, reason=reason, detail=detail)
