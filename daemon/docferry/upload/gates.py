"""What one failure means for all that wait behind it: strikes are counted, gates closed and opened again."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from docferry import logs, policy
from docferry.clock import Clock
from docferry.errors import RemoteError
from docferry.model import Gate, Outcome, Reason, State, Transfer
from docferry.store.gates import Gates
from docferry.store.transfers import Transfers
from docferry.telemetry import Telemetry
from docferry.upload.selection import gates_of

log = logs.get("carry")


@dataclass(slots=True)
class Counters:
    """What was carried since the start, for `sync` and for the daemon's pulse."""

    uploaded: int = 0
    bytes_up: int = 0
    strikes: dict[str, int] = field(default_factory=dict)  # failures in a row, by lane
    unreached: dict[str, int] = field(default_factory=dict)  # how often in a row nobody was there, by remote


class GateManager:
    """Knows how tries went, and what is closed. Whoever sends or asks settles its transfers here."""

    def __init__(
        self,
        *,
        transfers: Transfers,
        gates: Gates,
        clock: Clock,
        backoff: policy.Backoff,
        give_up_after: float,
        key_refused: Callable[[], None],
    ) -> None:
        self._transfers = transfers
        self._gates = gates
        self._clock = clock
        self.backoff = backoff
        self._give_up_after = give_up_after
        self._key_refused = key_refused
        # Not for secrets: jitter only has to spread.
        self._random = random.Random()  # noqa: S311 - jitter, not cryptography
        self.counters = Counters()
        self.telemetry = Telemetry(clock)
        self.closed: Mapping[str, Gate] = {}  # as the runner last saw them
        self.closings = 0  # how often a gate was closed here, or its closing written down
        self.closing: list[Gate] = []  # closed, and not written down yet
        self.stopping = False  # nothing new is to be begun

    async def settle(self, transfer: Transfer, outcome: Outcome, was: State | None = None) -> None:
        """Record what became of a try; `was`: the state it is in, if that is not the one it was claimed in."""
        await self._transfers.settle(transfer, outcome, was=was or transfer.state)

    async def worked(self, lane: str) -> None:
        """Something of this lane was answered well: what was closed on its way opens."""
        self.counters.strikes.pop(lane, None)
        self.counters.unreached.pop(lane.split("/", 1)[0], None)
        if self.closed:
            await self._gates.open(lane, self._clock.now())

    async def close(self, gate: Gate) -> None:
        """Close a gate for all, from this moment on."""
        known = self.closed.get(gate.key)
        if known is None or known.reason != gate.reason:
            log.error("gate_closed", gate.detail, gate=gate.key, reason=str(gate.reason))
        if gate.reason == Reason.KEY:
            self._key_refused()
        self.closed = {**self.closed, gate.key: gate}
        self.closings += 1
        self.closing.append(gate)
        try:
            await self._gates.close(gate)
        finally:
            self.closing.remove(gate)
            self.closings += 1  # whoever read the gates meanwhile may have missed it

    def bars_doubts(self, lane: str) -> bool:
        """Whether a stop, or a gate on the way of `lane` that is closed now, holds for what is in doubt too."""
        now, on_the_way = self._clock.now(), gates_of(lane, self.closed)
        return self.stopping or any(gate.until > now and not gate.lets_doubts_pass for gate in on_the_way)

    def struck(self, transfers: Sequence[Transfer], failure: RemoteError) -> list[policy.FailedAttempt]:
        """Count a failure of one request; what policy must know of it, for each transfer that shared it."""
        lane, remote = transfers[0].target.lane, transfers[0].target.remote
        strikes, unreached = self.counters.strikes, self.counters.unreached
        strikes[lane] = strikes.get(lane, 0) + 1
        unreached[remote] = unreached.get(remote, 0) + 1 if failure.kind == "unreachable" else 0
        return [self._attempt(transfer, failure, unreached[remote]) for transfer in transfers]

    def pause(self, transfer: Transfer) -> float:
        """Seconds until its next try, when nobody asked for more."""
        return self.backoff.pause(transfer.tries + 1, self._random.random())

    def age(self, transfer: Transfer) -> float:
        """Seconds since the last try that may have stored it."""
        return self._clock.now() - (transfer.last_sent or transfer.created)

    def is_expired(self, transfer: Transfer) -> bool:
        return self._clock.now() - transfer.due_since > self._give_up_after

    def given_up(self, detail: str | None) -> Outcome:
        tried = f"tried for {self._give_up_after / 86_400:.3g} days: {detail}; then `docferry retry`"
        return Outcome(State.HELD, Reason.GAVE_UP, tried, fresh_key=True)

    def _attempt(self, transfer: Transfer, failure: RemoteError, strikes: int) -> policy.FailedAttempt:
        lane = transfer.target.lane
        gate = self.closed.get(failure.scope or lane) or self.closed.get(lane.split("/", 1)[0])
        return policy.FailedAttempt(
            lane=lane,
            tries=transfer.tries + 1,
            now=self._clock.now(),
            jitter=self._random.random(),
            gate_tries=self._in_vain(gate),
            strikes=strikes,
            lane_failures=self.counters.strikes.get(lane, 1),
        )

    def _in_vain(self, gate: Gate | None) -> int:
        """Probes of a gate that failed. What was under way when it closed is no probe."""
        if gate is None:
            return 0
        return gate.tries if gate.until <= self._clock.now() else gate.tries - 1
