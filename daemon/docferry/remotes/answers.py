"""What an answer says, read with suspicion: dates, pauses, JSON, and sentences that are safe to show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from docferry.errors import RemoteError
from docferry.model import escaped

#: Nobody is believed who asks for a longer pause.
LONGEST_PAUSE: Final = 86_400.0
_LONGEST_SENTENCE: Final = 400


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `flaw` says why the body is not all that was announced; the status counts all the same."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    body_complete: bool = False  # the last byte of the document was given to the kernel
    flaw: str | None = None  # "cut" | "large"
    length: int = 0  # of the body, wherever it went

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_html(self) -> bool:
        """Some proxy speaks, no remote of ours."""
        start = self.body[:256].lstrip()[:5].lower()
        return "html" in self.headers.get("content-type", "").lower() or start in (b"<!doc", b"<html")

    def table(self) -> Mapping[str, Any]:
        """The body as a JSON object; empty when it is none."""
        found = _decoded(self.body) if self.flaw is None else None
        return found if isinstance(found, dict) else {}


def moment(text: str) -> float | None:
    """Wall seconds of an HTTP date or an ISO 8601 date-time, UTC where it names no zone; None when it is neither."""
    try:
        found = datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def retry_after(answer: Answer, now: float) -> float | None:
    """Seconds the remote wants to be left alone: at least 0, at most a day; None when it does not say so clearly."""
    said = answer.headers.get("retry-after", "").strip()
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        when = moment(said)
        if when is None:
            return None
        # By the remote's own clock: ours may be wrong.
        seconds = when - (moment(answer.headers.get("date", "")) or now)
    if seconds != seconds:  # float() takes "nan"
        return None
    return min(max(seconds, 0.0), LONGEST_PAUSE)


def should_retry(answer: Answer) -> bool | None:
    """`x-should-retry`, where it says anything."""
    return {"true": True, "false": False}.get(answer.headers.get("x-should-retry", "").strip().lower())


def whole(answer: Answer, who: str) -> Answer:
    """The same answer, if all of it came; else RemoteError. For questions: a receipt needs no more than a status."""
    if answer.flaw is None:
        return answer
    wrong = "is longer than any such answer may be" if answer.flaw == "large" else "broke off"
    kind = "not_ours" if answer.flaw == "large" else "cut"
    raise RemoteError(f"the answer of {who} {wrong}; it is asked for again", kind=kind, status=answer.status)


def parsed(answer: Answer, who: str) -> object:
    """The body as JSON; RemoteError when it is none."""
    found = _decoded(whole(answer, who).body)
    if found is None or answer.is_html:
        raise RemoteError(
            f"something that is not {who} answered with {answer.status}; check base_url, and proxies in between",
            kind="not_ours",
            status=answer.status,
            body_complete=answer.body_complete,
        )
    return found


def plain(text: object) -> str:
    """What a stranger wrote, on one line, not too long and safe for a terminal."""
    return escaped(" ".join(str(text).split()))[:_LONGEST_SENTENCE]


def _decoded(body: bytes) -> object:
    if not body:
        return None  # most receipts are: an exception would cost more than the rest of the answer
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
