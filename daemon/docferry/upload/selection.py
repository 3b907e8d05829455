"""Select the lanes to serve next by gates, fair shares and one lookup per company. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec import Struct

from docferry.model import Gate, Reason
from docferry.store.claims import Lane, Pick, company_of

#: Doubts of one connection in one lookup.
DOUBTS_PER_LOOKUP = 20


class SelectionInput(Struct, frozen=True):
    """Hold the facts that decide a selection."""

    now: float  # wall seconds
    room: int  # the number of batches that may be claimed
    mappings: Collection[str]
    gates: Mapping[str, Gate]
    in_hand: Mapping[str, int]  # batches that this process holds, by lane
    company_limit: int  # batches that this process may hold for one company
    in_lookup: Collection[str]  # company lanes with a running lookup
    batch_size: Callable[[str], int]  # documents in one batch of a lane
    failing: Collection[str] = ()  # failing lanes: one batch at a time


def select(lanes: Sequence[Lane], inputs: SelectionInput) -> list[Pick]:
    """Return the picks to claim now, companies with the fewest batches in hand first.

    After its time, a gate lets one document probe.
    """
    eligible = [lane for lane in lanes if lane.mapping in inputs.mappings and lane.due <= inputs.now]
    in_hand = dict(inputs.in_hand)
    eligible.sort(key=lambda lane: (not lane.doubtful, _in_company(in_hand, lane.lane), lane.due))
    share = max(1, inputs.room // max(1, len(eligible)))
    picks: list[Pick] = []
    probed: set[str] = set()
    in_lookup = set(inputs.in_lookup)
    room = inputs.room
    for lane in eligible:
        if room <= 0:
            break
        gates = blocking_gates(lane.lane, inputs.gates, is_lookup=lane.doubtful, mapping=lane.mapping)
        if not all(_may_probe(gate, inputs.now, probed, in_hand) for gate in gates):
            continue
        company = company_of(lane.lane)
        if lane.doubtful and company in in_lookup:
            continue
        batches = min(_batches_for(lane, inputs, in_hand, bool(gates)), share, room)
        if batches <= 0:
            continue
        if lane.doubtful:
            in_lookup.add(company)
        probed |= {gate.key for gate in gates}
        most = batches * (1 if gates else inputs.batch_size(lane.lane))
        picks.append(Pick(lane, DOUBTS_PER_LOOKUP if lane.doubtful else most))
        in_hand[lane.lane] = in_hand.get(lane.lane, 0) + batches
        room -= batches
    return picks


def _batches_for(lane: Lane, inputs: SelectionInput, in_hand: Mapping[str, int], is_probe: bool) -> int:
    """Return the number of further batches that a lane may get."""
    batches = inputs.company_limit - _in_company(in_hand, lane.lane)
    if lane.lane in inputs.failing:
        batches = min(batches, 1 - in_hand.get(lane.lane, 0))
    return min(batches, 1) if is_probe or lane.doubtful else batches


def next_due(lanes: Sequence[Lane], mappings: Collection[str], gates: Mapping[str, Gate]) -> float | None:
    """Return the wall time of the next possible claim, None if nothing waits."""
    times = []
    for lane in lanes:
        if lane.mapping in mappings:
            gate = last_gate(lane, gates)
            times.append(lane.due if gate is None else max(lane.due, gate.until))
    return min(times, default=None)


def last_gate(lane: Lane, gates: Mapping[str, Gate]) -> Gate | None:
    """Return the gate that blocks a lane for longest, None if none does."""
    blocking = blocking_gates(lane.lane, gates, is_lookup=lane.doubtful, mapping=lane.mapping)
    return max(blocking, key=lambda gate: gate.until, default=None)


def gates_of(lane: str, gates: Mapping[str, Gate]) -> list[Gate]:
    """Return the gates of a lane's remote, company and connection."""
    return [gate for key, gate in gates.items() if lane == key or lane.startswith(key + "/")]


def antivirus_gate(mapping: str) -> str:
    """Return the key of the gate that closes while documents of a mapping cannot be scanned."""
    return f"antivirus/{mapping}"


def blocking_gates(lane: str, gates: Mapping[str, Gate], *, is_lookup: bool, mapping: str | None = None) -> list[Gate]:
    """Return the gates of a lane, and of a mapping in it, that apply to a lookup, or a send."""
    found = gates_of(lane, gates)
    if is_lookup:
        return [gate for gate in found if not gate.lets_doubts_pass]
    scanner = gates.get(antivirus_gate(mapping)) if mapping is not None else None
    return [gate for gate in found if not is_of_lookups(gate, lane)] + ([scanner] if scanner else [])


def is_of_lookups(gate: Gate, lane: str) -> bool:
    """Return whether only failed lookups closed a gate: lists belong to companies, sends to connections."""
    return gate.reason == Reason.FAILING and gate.key != lane


def needs_a_person(gate: Gate) -> bool:
    """Return whether time alone does not open a gate."""
    passing = Reason.RATE, Reason.UNREACHABLE, Reason.FAILING, Reason.STRANGER, Reason.STORAGE, Reason.ANTIVIRUS
    return gate.reason not in passing


def _in_company(in_hand: Mapping[str, int], lane: str) -> int:
    company = company_of(lane)
    return sum(count for other, count in in_hand.items() if company_of(other) == company)


def _may_probe(gate: Gate, now: float, probed: Collection[str], in_hand: Mapping[str, int]) -> bool:
    if gate.until > now:
        return False
    under = any(count and (key == gate.key or key.startswith(gate.key + "/")) for key, count in in_hand.items())
    return gate.key not in probed and not under
