"""Count consecutive failures, and close and open the affected gates (circuit breakers)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum

from msgspec.structs import replace

from docferry import logs, policy
from docferry.clock import Clock
from docferry.errors import RemoteError, StatementRefused
from docferry.model import Gate, Outcome, Reason, State, Transfer
from docferry.store.gates import Gates
from docferry.store.refusals import refusal_logged
from docferry.upload.selection import blocking_gates, gates_of, is_of_lookups

log = logs.get("gates")

#: Consecutive failures after which a lane gets one batch at a time.
FAILING_AFTER = 2
#: The longest interval between two probes of a closed gate, seconds.
PROBE_INTERVAL_S = 3600.0


class Activity(StrEnum):
    """Name the kinds of requests. Failures of sends and of lookups are counted separately."""

    SEND = "send"
    LOOKUP = "lookup"


class GateManager:
    """Manage the gates of one process and the consecutive failures that close them."""

    def __init__(self, gates: Gates, clock: Clock, retry: policy.RetryPolicy) -> None:
        self._gates = gates
        self._clock = clock
        self.retry = retry
        # Not for secrets: jitter only has to spread the retries.
        self.random = random.Random()  # noqa: S311 - jitter, not cryptography
        self.stopping = False  # no request may start any more
        self.closed: Mapping[str, Gate] = {}  # as last read; `until` is at most the next hourly probe
        # consecutive failures, by lane
        self._failures: dict[Activity, Counter[str]] = {each: Counter() for each in Activity}
        self._unreachable: dict[Activity, Counter[str]] = {each: Counter() for each in Activity}  # by remote
        self._strangers: dict[Activity, Counter[str]] = {each: Counter() for each in Activity}  # by remote
        self._closed_by_lookup: set[str] = set()
        # steady seconds of the next hourly probe, by gate: the wall clock may jump
        self._probe_at: dict[str, float] = {}
        self._stored_until: dict[str, float] = {}  # `until` in the database, by gate
        self._changes = 0  # number of closings by this process, counted again at their commit
        self._closing: list[Gate] = []  # closed, but not committed yet
        self._unstored: dict[str, Gate] = {}  # closed, and refused by the database

    async def prepare(self) -> None:
        """Shorten gates that are closed for longer than any quota lasts."""
        with refusal_logged("gates are limited"):
            await self._gates.limit(self._clock.now() + policy.MAX_QUOTA_RESET_S)

    # -- reading -------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Read the gates of all processes."""
        changes, gates = -1, dict[str, Gate]()
        while changes != self._changes:  # a gate that was closed during the read must stay closed
            changes = self._changes
            gates = await self._gates.all()
        gates |= {gate.key: gate for gate in (*self._unstored.values(), *self._closing)}
        for key in self._probe_at.keys() - gates.keys():
            del self._probe_at[key]
        self._closed_by_lookup &= gates.keys()
        self.closed = {key: self._with_probe(gate) for key, gate in gates.items()}

    def blocks(self, lane: str, *, is_lookup: bool) -> bool:
        """Return whether a closed gate now forbids a lookup, or a send."""
        if not self.closed:
            return False
        now = self._clock.now()
        return any(gate.until > now for gate in blocking_gates(lane, self.closed, is_lookup=is_lookup))

    def blocks_resend(self, lane: str) -> bool:
        """Return whether a stop or a closed gate forbids sending a resolved doubt again.

        The gate of a quota does not count, because the reserve of the quota is for doubts.
        """
        if self.stopping:
            return True
        now, gates = self._clock.now(), blocking_gates(lane, self.closed, is_lookup=False)
        return any(gate.until > now and not gate.lets_doubts_pass for gate in gates)

    def is_failing(self, lane: str) -> bool:
        """Return whether consecutive sends of a lane failed so often that it gets one batch at a time."""
        return self._failures[Activity.SEND].get(lane, 0) >= FAILING_AFTER

    def failing_lanes(self) -> set[str]:
        """Return the lanes that get one batch at a time."""
        return {lane for lane, count in self._failures[Activity.SEND].items() if count >= FAILING_AFTER}

    # -- recording -----------------------------------------------------------------------------------------------

    async def record_success(self, lane: str, activity: Activity) -> None:
        """Reset the failures of a lane and open its due gates.

        A lookup opens only gates that lookups closed, because it proves nothing about sends. A request that began
        before the closing does not open a gate before its time.
        """
        remote = lane.split("/", 1)[0]
        self._failures[activity].pop(lane, None)
        self._unreachable[activity].pop(remote, None)
        self._strangers[activity].pop(remote, None)
        if not self.closed:
            return
        now = self._clock.now()
        due = {
            gate.key: self._stored_until.get(gate.key, gate.until)
            for gate in gates_of(lane, self.closed)
            if gate.until <= now and self._may_open(gate, lane, activity)
        }
        if due:
            with refusal_logged("gates are open"):
                await self._gates.open(due)
            self._unstored = {key: gate for key, gate in self._unstored.items() if key not in due}
            self.closed = {key: gate for key, gate in self.closed.items() if key not in due}

    def _may_open(self, gate: Gate, lane: str, activity: Activity) -> bool:
        """Return whether a success of an activity disproves a gate."""
        if is_of_lookups(gate, lane):
            return activity is Activity.LOOKUP
        return activity is Activity.SEND or gate.key in self._closed_by_lookup

    def record_failure(
        self, transfers: Sequence[Transfer], failure: RemoteError, activity: Activity
    ) -> list[policy.FailedAttempt]:
        """Count a failed request; return an attempt for each transfer that shared it."""
        lane, remote = transfers[0].target.lane, transfers[0].target.remote
        lanes, unreachable, strangers = (
            each[activity] for each in (self._failures, self._unreachable, self._strangers)
        )
        lanes[lane] += 1
        unreachable[remote] = unreachable[remote] + 1 if failure.kind == "unreachable" else 0
        strangers[remote] = strangers[remote] + 1 if failure.kind == "not_ours" else 0
        counts = policy.FailureCounts(lanes[lane], unreachable[remote], strangers[remote])
        return [self._attempt(transfer, failure, counts) for transfer in transfers]

    async def close(self, gate: Gate, activity: Activity = Activity.SEND) -> None:
        """Close a gate for all documents: in this process at once, in others with the commit."""
        known = self.closed.get(gate.key)
        if known is None or known.reason != gate.reason:
            log.error("gate_closed", gate.detail, gate=gate.key, reason=str(gate.reason))
        if activity is Activity.SEND:
            self._closed_by_lookup.discard(gate.key)
        elif known is None:
            self._closed_by_lookup.add(gate.key)
        self._probe_at[gate.key] = self._clock.steady() + PROBE_INTERVAL_S
        self.closed = {**self.closed, gate.key: self._with_probe(gate)}
        self._changes += 1
        self._closing.append(gate)
        try:
            await self._gates.close(gate)
            self._unstored.pop(gate.key, None)
        except StatementRefused:
            self._unstored[gate.key] = gate
        finally:
            self._closing.remove(gate)
            self._changes += 1  # a concurrent read of the gates may have missed it

    async def open(self, key: str) -> None:
        """Open one gate whose cause has ended."""
        self._unstored.pop(key, None)
        with refusal_logged(f"the gate {key} is open"):
            await self._gates.open_one(key)
        self.closed = {other: gate for other, gate in self.closed.items() if other != key}

    def next_gate(self, key: str, reason: Reason, detail: str) -> Gate:
        """Return a gate to close, for longer with each failed probe."""
        now = self._clock.now()
        tries = self._failed_probes(self.closed.get(key)) + 1
        pause = self.retry.backoff.pause(tries, self.random.random())
        return Gate(key, reason, detail, now + pause, tries, now)

    # -- one transfer --------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the present wall seconds by the clock of the gates."""
        return self._clock.now()

    def pause(self, transfer: Transfer) -> float:
        """Return the seconds until the next attempt of a transfer if the remote requested no pause."""
        return self.retry.backoff.pause(transfer.tries + 1, self.random.random())

    def age(self, transfer: Transfer) -> float:
        """Return the seconds since the last attempt that may have stored a transfer."""
        return self._clock.now() - (transfer.last_sent or transfer.created)

    def is_expired(self, transfer: Transfer) -> bool:
        """Return whether a transfer was tried for longer than `give_up_after`."""
        return self._clock.now() - transfer.due_since > self.retry.give_up_after

    def given_up(self, detail: str | None) -> Outcome:
        """Return the outcome of a transfer that was tried for too long."""
        days = f"{self.retry.give_up_after / 86_400:.3g} days"
        sentence = f"tried for {days}: {detail}; remove the cause, then run `docferry retry`"
        return Outcome(State.HELD, Reason.GAVE_UP, sentence, fresh_key=True)

    def _attempt(self, transfer: Transfer, failure: RemoteError, counts: policy.FailureCounts) -> policy.FailedAttempt:
        lane = transfer.target.lane
        gate = self.closed.get(failure.scope or lane) or self.closed.get(lane.split("/", 1)[0])
        return policy.FailedAttempt(
            lane, transfer.tries + 1, self._clock.now(), self.random.random(), self._failed_probes(gate), counts
        )

    def _failed_probes(self, gate: Gate | None) -> int:
        """Return the number of failed probes of a gate. A request that was in flight at its closing is no probe."""
        if gate is None:
            return 0
        return gate.tries if gate.until <= self._clock.now() else gate.tries - 1

    def _with_probe(self, gate: Gate) -> Gate:
        """Return the gate with the time of this process: one document probes it at least every hour."""
        self._stored_until[gate.key] = gate.until
        steady = self._clock.steady()
        probe_at = self._clock.now() + self._probe_at.setdefault(gate.key, steady + PROBE_INTERVAL_S) - steady
        return gate if gate.until <= probe_at else replace(gate, until=probe_at)
