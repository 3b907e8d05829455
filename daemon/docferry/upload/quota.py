"""Keep a reserve of a remote's daily quota for resolving doubts."""

from __future__ import annotations

import math
from collections.abc import Mapping

from docferry.clock import Clock
from docferry.model import Gate, Reason
from docferry.policy import MAX_QUOTA_RESET_S
from docferry.remotes.protocol import Health, Remote
from docferry.upload.gates import GateManager


class QuotaGuard:
    """Close a remote for new documents when only the reserve of its quota is left."""

    def __init__(
        self, remotes: Mapping[str, Remote], gate_manager: GateManager, clock: Clock, reserve: Mapping[str, float]
    ) -> None:
        self._remotes = remotes
        self._gate_manager = gate_manager
        self._clock = clock
        self._reserve = reserve  # the share of the quota, by remote
        self._outdated: dict[str, float | None] = {}  # the time of the response whose quota is outdated, by remote

    async def refresh_gates(self) -> None:
        """Read the gates. If another process opened one, the last quota from a response is outdated."""
        before, now = self._gate_manager.closed, self._clock.now()
        await self._gate_manager.refresh()
        for name, remote in self._remotes.items():
            gate = before.get(name)
            if gate is not None and name not in self._gate_manager.closed and gate.until > now:
                self._outdated[name] = remote.health.last_answer

    def remaining(self, remote: str) -> float:
        """Return the remaining requests for new documents, without the reserve."""
        health = self._remotes[remote].health
        if not health.limit or health.remaining is None or self._resets_at(health) is None:
            return math.inf
        if remote in self._outdated and self._outdated[remote] == health.last_answer:
            return math.inf
        gate = self._gate_manager.closed.get(remote)
        if gate is not None and gate.reason == Reason.QUOTA and gate.until <= self._clock.now():
            return math.inf  # one document probes
        return health.remaining - health.limit * self._reserve.get(remote, 0.0)

    async def guard(self, remote: str) -> None:
        """Close the gate of a remote whose quota is spent except for the reserve."""
        if self.remaining(remote) > 0:
            return
        health, known = self._remotes[remote].health, self._gate_manager.closed.get(remote)
        reset = self._resets_at(health)
        if reset is None or (known is not None and known.reason == Reason.QUOTA):
            return
        detail = f"{health.remaining} of {health.limit} requests are left today; they are kept for doubtful documents"
        lets_doubts_pass = bool(health.remaining)
        gate = Gate(remote, Reason.QUOTA, detail, reset, 1, self._clock.now(), lets_doubts_pass=lets_doubts_pass)
        await self._gate_manager.close(gate)

    def _resets_at(self, health: Health) -> float | None:
        """Return the wall time of the reset, at most 25 hours from now; None if unknown or past."""
        now = self._clock.now()
        if health.reset is None or health.reset <= now:
            return None
        return min(health.reset, now + MAX_QUOTA_RESET_S)
