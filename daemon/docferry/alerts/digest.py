"""Write the daily digest, and calculate when it is due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from msgspec import Struct, field

from docferry.alerts.conditions import clean
from docferry.clock import iso
from docferry.store.alerts import Alert


class Totals(Struct, frozen=True):
    """Hold the figures of a digest. `extra` holds further lines, such as the heads of the receipt log."""

    uploaded: int  # in the day before
    due: int
    held: int
    gates: int
    oldest_due: float | None = None  # wall seconds
    projected_finish: Mapping[str, float] = field(default_factory=dict)  # by remote
    extra: tuple[str, ...] = ()


def latest_time(time_of_day: str, now: float) -> float:
    """Return the latest time at which a digest was due, wall seconds, by the local time of this machine."""
    hour, _, minute = time_of_day.partition(":")
    today = datetime.fromtimestamp(now).replace(hour=int(hour), minute=int(minute), second=0, microsecond=0)
    due = today.timestamp()  # the local zone's rules of that day
    return due if due <= now else (today - timedelta(days=1)).timestamp()


def text_of(totals: Totals, firing: Sequence[Alert], host: str, now: float) -> str:
    """Return the digest; its first line is its summary."""
    well = "all is well"
    if firing:
        well = "1 condition needs attention" if len(firing) == 1 else f"{len(firing)} conditions need attention"
    lines = [
        f"docferry on {host}: {well}; {totals.uploaded:,} documents uploaded in 24 hours, {totals.due:,} due, "
        f"{totals.held:,} held",
        "",
        f"Time:      {iso(now)}",
        f"Uploaded:  {totals.uploaded:,} documents in 24 hours",
        f"Due:       {totals.due:,}" + (f", the oldest since {iso(totals.oldest_due)}" if totals.oldest_due else ""),
        f"Held:      {totals.held:,}",
        f"Gates:     {totals.gates:,} closed",
    ]
    lines += [f"Projected: {remote} by {iso(at)}" for remote, at in sorted(totals.projected_finish.items())]
    lines += totals.extra
    if firing:
        lines += ["", "Needs attention:"]
        lines += [f"- {alert.summary} (since {iso(alert.since)})" for alert in firing[:50]]
        lines += [f"  and {len(firing) - 50} more; `docferry alerts list` shows all"] if len(firing) > 50 else []
    return "\n".join(clean(line, 400) for line in lines)
