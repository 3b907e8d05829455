"""Which lanes are served next: gates, shares and one question at a time. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from docferry.model import Gate, Reason
from docferry.store.transfers import Lane, Pick


@dataclass(frozen=True, slots=True)
class SelectionInput:
    """What the choice depends on."""

    now: float
    room: int  # loads that may be claimed
    mappings: Collection[str]
    gates: Mapping[str, Gate]
    in_hand: Mapping[str, int]  # loads we hold, by lane
    company_limit: int  # loads we hold for one company at most
    asking: Collection[str]  # company lanes in which somebody asks now
    batch_size: Callable[[str], int]  # documents in one load of a lane
    wary: Collection[str] = ()  # lanes that fail: one load at a time


def choose(lanes: Sequence[Lane], inputs: SelectionInput) -> list[Pick]:
    """What to claim now, the emptiest companies first. A gate whose time has passed lets one document probe."""
    eligible = [lane for lane in lanes if lane.mapping in inputs.mappings and lane.due <= inputs.now]
    in_hand = dict(inputs.in_hand)
    eligible.sort(key=lambda lane: (not lane.doubtful, _in_company(in_hand, lane.lane), lane.due))
    share = max(1, inputs.room // max(1, len(eligible)))
    picks: list[Pick] = []
    probed: set[str] = set()
    asked = set(inputs.asking)
    room = inputs.room
    for lane in eligible:
        if room <= 0:
            break
        gates = gates_of(lane.lane, inputs.gates)
        if not all(_may_probe(lane, gate, inputs.now, probed, in_hand) for gate in gates):
            continue
        company = company_of(lane.lane)
        batches = min(share, inputs.company_limit - _in_company(in_hand, lane.lane), room)
        if lane.lane in inputs.wary:
            batches = min(batches, 1 - in_hand.get(lane.lane, 0))
        if gates:
            batches = min(batches, 1)
        if lane.doubtful:
            if company in asked:
                continue
            asked.add(company)
            batches = 1
        if batches <= 0:
            continue
        probed |= {gate.key for gate in gates}
        picks.append(
            Pick(lane, QUESTIONS if lane.doubtful else batches * (1 if gates else inputs.batch_size(lane.lane)))
        )
        in_hand[lane.lane] = in_hand.get(lane.lane, 0) + batches
        room -= batches
    return picks


#: Doubts of one connection that one look at the list resolves together.
QUESTIONS = 20


def next_due(lanes: Sequence[Lane], mappings: Collection[str], gates: Mapping[str, Gate]) -> float | None:
    """Wall seconds at which something may next be claimed, None when nothing waits."""
    times = []
    for lane in lanes:
        if lane.mapping in mappings:
            gate = closed_by(lane, gates)
            times.append(lane.due if gate is None else max(lane.due, gate.until))
    return min(times, default=None)


def closed_by(lane: Lane, gates: Mapping[str, Gate]) -> Gate | None:
    """The gate on the way of `lane` that opens last, of those that do not let it pass."""
    barring = (gate for gate in gates_of(lane.lane, gates) if not (lane.doubtful and gate.lets_doubts_pass))
    return max(barring, key=lambda gate: gate.until, default=None)


def gates_of(lane: str, gates: Mapping[str, Gate]) -> list[Gate]:
    """Every gate on the way of `lane`: of its remote, its company, its connection."""
    return [gate for key, gate in gates.items() if lane == key or lane.startswith(key + "/")]


def needs_a_person(gate: Gate) -> bool:
    """Whether a gate opens only after somebody did something, however long one waits."""
    return gate.reason not in {Reason.RATE, Reason.UNREACHABLE, Reason.FAILING}


def company_of(lane: str) -> str:
    """`codat/COMPANY` of `codat/COMPANY/CONNECTION`; `wootiv` of itself."""
    return "/".join(lane.split("/")[:2])


def _in_company(in_hand: Mapping[str, int], lane: str) -> int:
    company = company_of(lane)
    return sum(count for other, count in in_hand.items() if company_of(other) == company)


def _may_probe(lane: Lane, gate: Gate, now: float, probed: Collection[str], in_hand: Mapping[str, int]) -> bool:
    if gate.until > now:
        return lane.doubtful and gate.lets_doubts_pass
    under = any(count and (key == gate.key or key.startswith(gate.key + "/")) for key, count in in_hand.items())
    return gate.key not in probed and not under
