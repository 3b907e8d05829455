"""Format numbers, sizes and times for people, and define the filters of the templates."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from html import escape
from typing import Final

from markupsafe import Markup

from docferry.model import escaped

_STATES: Final = {
    "waiting": "Waiting",
    "leased": "Starting",
    "sending": "Sending",
    "doubtful": "In doubt",
    "asking": "Being checked",
    "sent": "Sent",
    "held": "Held",
    "gone": "Gone",
}


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: `1 document`, `2,000 documents`."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def size(octets: float) -> str:
    """Return a size: `1.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1000:
            return f"{octets:.0f} {unit}" if unit == "B" or octets >= 100 else f"{octets:.1f} {unit}"
        octets /= 1000
    return f"{octets:,.1f} TB"


def duration(seconds: float) -> str:
    """Return a rough duration: `400 ms`, `2.5 s`, `40 min`, `3 h`, `2 d`."""
    seconds = max(seconds, 0.0)
    if 0 < seconds < 0.95:
        return f"{max(seconds * 1000, 1):.0f} ms"
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    for limit, length, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def state_name(state: str) -> str:
    """Return the name of a state for people."""
    return _STATES.get(state, state)


def path_text(path: bytes) -> str:
    """Return a path that is safe to show."""
    return escaped(path)


def moment(when: str | float | None) -> Markup:
    """Return a `<time>` element in UTC, which a script makes relative."""
    if when is None:
        return Markup("–")
    at = datetime.fromisoformat(when) if isinstance(when, str) else datetime.fromtimestamp(when, UTC)
    today = at.date() == datetime.fromtimestamp(time.time(), UTC).date()
    shown = at.strftime("%H:%M UTC") if today else at.strftime("%-d %b %Y, %H:%M UTC")
    iso = at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Markup(f'<time datetime="{escape(iso)}">{escape(shown)}</time>')  # noqa: S704 - digits and escaped text
