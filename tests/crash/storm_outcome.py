"""Hold the figures of a storm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class Outcome:
    """Hold the result of a storm."""

    documents: int
    requests: Counter[str]
    faults_applied: Counter[tuple[str, str]]
    held: Counter[str]
    lost: Counter[tuple[str, str, str]]
    doubled: Counter[tuple[str, str, str]]
    torn: Counter[tuple[str, str, str]]
    sound: bool
    seconds: float
    peaks: Mapping[str, int]
    process_faults: Counter[str]
    senders: tuple[int, int] | None = None  # senders started, and their requests

    @property
    def share(self) -> float:
        return self.faults_applied.total() / max(1, self.requests.total())

    @property
    def is_well(self) -> bool:
        few = self.held.total() <= self.documents / 1000
        used = self.senders is None or self.senders[0] > 0
        return not (self.lost or self.doubled or self.torn) and self.sound and few and used

    def table(self) -> str:
        """Return the figures, aligned."""
        refused = f"{self.held.total()} ({100 * self.held.total() / self.documents:.2f} %)"
        rows: list[tuple[str, object]] = [
            ("documents", self.documents),
            ("lost", self.lost.total()),
            ("doubled", self.doubled.total()),
            ("torn or misrouted", self.torn.total()),
            ("held", refused),
            *((f"  {why}", count) for why, count in self.held.most_common()),
            ("integrity_check", "ok" if self.sound else "FAILED"),
            ("requests", self.requests.total()),
            *((f"  {route}", count) for route, count in sorted(self.requests.items())),
            ("with a fault", f"{self.faults_applied.total()} ({100 * self.share:.1f} %)"),
            *((f"  {kind}", count) for kind, count in sorted(self.kinds.items())),
            *(
                (f"senders {what}", count)
                for what, count in zip(("started", "requests"), self.senders or (), strict=False)
            ),
            *((f"  {kind}", count) for kind, count in sorted(self.process_faults.items())),
            ("seconds", round(self.seconds)),
            *((f"peak memory, {name}", f"{peak} MB") for name, peak in self.peaks.items()),
        ]
        return "\n".join(f"  {name:<22}{value:>14}" for name, value in rows)

    @property
    def kinds(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for (_, kind), count in self.faults_applied.items():
            found[kind] += count
        return found
