"""Derive the conditions that need a person from a snapshot of facts. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct, field

from docferry.clock import iso
from docferry.logs import redacted
from docferry.model import Gate, Reason, escaped

#: The allowed difference to a remote's clock, seconds. Signed URLs fail at a difference of minutes.
CLOCK_OFFSET_S: Final = 60.0
#: The largest length of a quoted text of a remote, characters.
LONGEST_DETAIL: Final = 300

#: The advice for each event. `{}` stands for the mapping or remote.
_ADVICE: Final[Mapping[str, str]] = {
    "held": "See why with `docferry list --state held --mapping {}`, fix the cause, then `docferry retry`.",
    "gate": "See `docferry status`. One document at a time probes; `docferry retry` opens the gate now.",
    "key": "Put a valid API key in place; docferry reads it again by itself.",
    "overdue": "See `docferry list --state waiting --mapping {}` and `docferry status`.",
    "folder": "See `docferry check`. The mapping continues by itself once its folder can be read.",
    "still_written": "Find the program that keeps the files open or changes them; `docferry status` names the files.",
    "disk": "Free space on the file system of the state folder.",
    "queue": "Free disk space, or end the program that locks the database; nothing is lost.",
    "clock": "Set the clock of this machine, and keep it right with NTP.",
    "unanchored": "See `docferry receipts verify` and the anchors of [receipts].",
    "missing": "See `docferry verify --mapping {}`; `docferry retry --missing` sends missing documents again.",
    "old_copy": "Put the newest copy of the state folder back, or follow docs/recovery.md.",
    "projected_late": "See `docferry status` for rate limit and quota.",
    "host": "See `docferry hosts`. Start docferry on {} again, or stop it there properly.",
}


class Facts(Struct, frozen=True):
    """Hold the facts of one moment. None means unknown, which neither begins nor ends a condition.

    Times are wall seconds, sizes are bytes, and mappings are keyed by the name of a mapping or remote.
    """

    held: Sequence[tuple[str, str, int]] | None = None  # mapping, reason, documents
    # number of documents due for too long, and since when the oldest is due
    overdue: Mapping[str, tuple[int, float]] | None = None
    gates: Sequence[Gate] | None = None
    missing_keys: Mapping[str, str] | None = None  # remotes without a key, with the reason
    folders: Mapping[str, str] | None = None  # mappings whose folder has a problem
    still_written: Mapping[str, int] | None = None  # files that have been unsettled for too long
    missing: Mapping[str, int] | None = None  # sent documents that are missing or changed at the remote
    disk_free: int | None = None
    queue_problem: str | None = None
    clock_offsets: Mapping[str, float] | None = None  # seconds by which a remote's clock is ahead
    projected_finish: Mapping[str, float] | None = None
    # hosts of a shared queue without a heartbeat, and the time of the last one
    silent_hosts: Mapping[str, float] | None = None
    notices: Mapping[str, str] = field(default_factory=dict)  # event (`unanchored`, `old_copy`) → sentence


class Limits(Struct, frozen=True):
    """Hold the thresholds at which a fact becomes a condition."""

    oldest_due: float  # seconds
    disk_free: int  # bytes


class Condition(Struct, frozen=True):
    """Describe one problem. `labels` identify it and hold only names from the configuration."""

    event: str
    labels: tuple[tuple[str, str], ...]
    summary: str
    advice: str

    @property
    def key(self) -> str:
        """Return the event and the values of the labels, such as `held/acme-bank/too_large`."""
        return "/".join([self.event, *(value for _, value in self.labels)])


class Observation(Struct, frozen=True):
    """Hold the conditions of one moment, and the events for which the facts are unknown."""

    conditions: tuple[Condition, ...]
    unknown: frozenset[str]


def observe(facts: Facts, limits: Limits, now: float) -> Observation:
    """Return the conditions that follow from the facts."""
    found = [
        *_held(facts),
        *_gates(facts),
        *_overdue(facts, limits),
        *_by_mapping("folder", facts.folders),
        *_still_written(facts, limits),
        *_absent(facts),
        *_disk(facts, limits),
        *_clocks(facts),
        *_projected(facts, limits, now),
        *_hosts(facts),
        *(_condition(event, sentence) for event, sentence in facts.notices.items()),
    ]
    if facts.queue_problem is not None:
        found.append(_condition("queue", facts.queue_problem))
    return Observation(tuple(found), _unknown(facts))


def _unknown(facts: Facts) -> frozenset[str]:
    sources = {
        "held": facts.held,
        "overdue": facts.overdue,
        "gate": facts.gates,
        "key": facts.gates if facts.gates is None else facts.missing_keys,
        "folder": facts.folders,
        "still_written": facts.still_written,
        "missing": facts.missing,
        "disk": facts.disk_free,
        "clock": facts.clock_offsets,
        "projected_late": facts.projected_finish,
        "host": facts.silent_hosts,
    }
    return frozenset(event for event, source in sources.items() if source is None)


def _held(facts: Facts) -> Iterator[Condition]:
    for mapping, reason, number in facts.held or ():
        sentence = f"{_documents(number)} of {mapping} {'is' if number == 1 else 'are'} held as {reason}"
        yield _condition("held", sentence, mapping=mapping, reason=reason)


def _gates(facts: Facts) -> Iterator[Condition]:
    """Yield one condition for all gates of a remote that are closed for one reason: labels name no company."""
    closed: dict[tuple[str, str], list[Gate]] = {}
    for gate in facts.gates or ():
        closed.setdefault((gate.key.partition("/")[0], str(gate.reason)), []).append(gate)
    keyless = dict(facts.missing_keys or {})
    for (remote, reason), gates in sorted(closed.items()):
        if reason == Reason.KEY:
            first = min(gates, key=lambda gate: gate.since)
            keyless.setdefault(remote, f"{remote} refuses the API key since {iso(first.since)}: {first.detail}")
        else:
            yield _condition("gate", _gate_sentence(remote, reason, gates), remote=remote, reason=reason)
    for remote, sentence in sorted(keyless.items()):
        yield _condition("key", sentence, remote=remote)


def _gate_sentence(remote: str, reason: str, gates: Sequence[Gate]) -> str:
    first = min(gates, key=lambda gate: gate.since)
    what = first.key if len(gates) == 1 else f"{len(gates)} gates of {remote}"
    verb = "is" if len(gates) == 1 else "are"
    return f"{what} {verb} closed ({reason}) since {iso(first.since)}: {first.detail}"


def _overdue(facts: Facts, limits: Limits) -> Iterator[Condition]:
    for mapping, (number, since) in sorted((facts.overdue or {}).items()):
        sentence = (
            f"{_documents(number)} of {mapping} {'is' if number == 1 else 'are'} due, the oldest since {iso(since)}, "
            f"which is longer than {_span(limits.oldest_due)}"
        )
        yield _condition("overdue", sentence, mapping=mapping)


def _still_written(facts: Facts, limits: Limits) -> Iterator[Condition]:
    for mapping, number in sorted((facts.still_written or {}).items()):
        files = "1 file" if number == 1 else f"{number:,} files"
        sentence = f"{files} of {mapping} have been changing or open for {_span(limits.oldest_due)}"
        yield _condition("still_written", sentence, mapping=mapping)


def _absent(facts: Facts) -> Iterator[Condition]:
    for mapping, number in sorted((facts.missing or {}).items()):
        sentence = f"the remote does not have {_documents(number)} of {mapping} as it was sent"
        yield _condition("missing", sentence, mapping=mapping)


def _by_mapping(event: str, problems: Mapping[str, str] | None) -> Iterator[Condition]:
    for mapping, problem in sorted((problems or {}).items()):
        yield _condition(event, f"{mapping}: {problem}", mapping=mapping)


def _disk(facts: Facts, limits: Limits) -> Iterator[Condition]:
    if facts.disk_free is not None and facts.disk_free < limits.disk_free:
        free, least = _size(facts.disk_free), _size(limits.disk_free)
        yield _condition("disk", f"{free} are free for the state folder, less than {least}")


def _clocks(facts: Facts) -> Iterator[Condition]:
    for remote, offset in sorted((facts.clock_offsets or {}).items()):
        if abs(offset) > CLOCK_OFFSET_S:
            side = "behind" if offset > 0 else "ahead of"
            yield _condition("clock", f"this clock is {abs(offset):,.0f} s {side} the clock of {remote}", remote=remote)


def _projected(facts: Facts, limits: Limits, now: float) -> Iterator[Condition]:
    for remote, finish in sorted((facts.projected_finish or {}).items()):
        if finish > now + limits.oldest_due:
            sentence = f"the due documents for {remote} will not all be sent before {iso(finish)}"
            yield _condition("projected_late", sentence, remote=remote)


def _hosts(facts: Facts) -> Iterator[Condition]:
    for host, since in sorted((facts.silent_hosts or {}).items()):
        sentence = f"{host} has sent no heartbeat since {iso(since)}; other hosts do its work where they can"
        yield _condition("host", sentence, silent_host=host)


def _condition(event: str, sentence: str, **labels: str) -> Condition:
    """Return a condition whose texts contain neither secrets nor control characters."""
    advice = _ADVICE[event].format(escaped(next(iter(labels.values()), "")))
    shown = tuple((name, clean(value)) for name, value in labels.items())
    return Condition(event, shown, clean(sentence, LONGEST_DETAIL), advice)


def clean(text: str, longest: int = 200) -> str:
    """Return the text without secrets, at most `longest` characters; redacted first, as cut secrets are not found."""
    found = redacted(escaped(text))
    return found if len(found) <= longest else found[: longest - 1] + "…"


def _documents(number: int) -> str:
    return "1 document" if number == 1 else f"{number:,} documents"


def _size(octets: int) -> str:
    return f"{octets / 1e9:.1f} GB" if octets >= 1e9 else f"{octets / 1e6:.1f} MB"


def _span(seconds: float) -> str:
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
