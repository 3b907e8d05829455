"""Keep the latest records of the log in memory for the status page."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from docferry.logs import redacted
from docferry.model import escaped

KEPT: Final = 500
#: The names shown to people for log actions.
_WORDS: Final = {
    "sent": "sent",
    "not_sent": "failed, and tried again",
    "doubtful": "in doubt",
    "gate_closed": "gate closed",
    "folder_unavailable": "folder unavailable",
    "folder_available": "folder available again",
    "downloaded": "downloaded",
    "landed": "downloaded",
    "reload_refused": "configuration refused",
    "leases_reclaimed": "taken back from a dead process",
}


class ActivityEvent(Struct, frozen=True):
    """Describe one event; texts are safe to show and contain no secret."""

    time: float
    level: str
    action: str
    title: str
    message: str
    fields: dict[str, str]


class ActivityLog(logging.Handler):
    """Keep records unformatted, which costs nothing; they become text when a person looks."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: deque[logging.LogRecord] = deque(maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of docferry."""
        if hasattr(record, "action"):
            self._records.append(record)

    def events(self) -> Iterator[ActivityEvent]:
        """Yield the events, the latest first."""
        for record in reversed(tuple(self._records)):
            yield _event(record)


def _event(record: logging.LogRecord) -> ActivityEvent:
    fields: dict[str, Any] = getattr(record, "fields", None) or {}
    action = str(getattr(record, "action", ""))
    return ActivityEvent(
        record.created,
        record.levelname.lower(),
        action,
        _WORDS.get(action, action.replace("_", " ")),
        redacted(escaped(record.getMessage())),
        {key: _text(value) for key, value in fields.items() if value is not None},
    )


def _text(value: object) -> str:
    return redacted(escaped(value if isinstance(value, bytes | str) else str(value)))
