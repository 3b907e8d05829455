"""Compare the remotes and the inbox with the folders of the demo: exactly once, with the exact bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from docferry.cli.demo.stage import OBJECT, Stage
from docferry.cli.output import BAD, FAINT, GOOD, Block, Cell, Table, count, line, size
from docferry.store.reports import AttemptRow, Row

#: The documents that must be held, with the reason.
EXPECTED_HELD = {b"too-large.pdf": "too_large", b"wrong-type.exe": "extension"}
_FOLDERS = {"acme-bank": "acme", "scans": "scans"}
Delivered = Counter[tuple[str, str, str]]  # (mapping, remote name, digest) → number


@dataclass(slots=True)
class Comparison:
    """Hold the tables to print, and the differences found."""

    blocks: list[Block] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def all_came(stage: Stage, rows: Iterable[Row]) -> bool:
    """Return whether the queue knows every file of the outbox, and every download has arrived."""
    known = {(row.mapping, row.path) for row in rows}
    lying = {(mapping, path) for mapping, path, _ in _lying(stage)}
    return lying <= known and len(arrived(stage)) >= len(_expected_down(stage))


def arrived(stage: Stage) -> list[Path]:
    """Return the downloaded files, in order."""
    if not stage.inbox.is_dir():
        return []
    return sorted(path for path in stage.inbox.rglob("*") if path.is_file() and not path.name.startswith("."))


def tries(attempts: Iterable[AttemptRow]) -> list[AttemptRow]:
    """Return the attempts, except leases that were released unused."""
    return [each for each in attempts if each.ended is not None and (each.state != "waiting" or each.detail)]


def verdict(stage: Stage, rows: Sequence[Row], tries: Mapping[int, int]) -> Comparison:
    """Compare everything with the files of the remotes; use no figure of the daemon."""
    verdict = Comparison()
    _judge_sent(stage, rows, tries, verdict)
    _judge_held(rows, verdict)
    _judge_down(stage, verdict)
    if not verdict.problems:
        stored = count(sum(_delivered(stage).values()), "document")
        said = f"Proved against what the remotes have: {stored}, each exactly once and with its exact bytes (SHA-256)."
        verdict.blocks += [line(), line(Cell(said, GOOD))]
    return verdict


def _judge_sent(stage: Stage, rows: Sequence[Row], tries: Mapping[int, int], verdict: Comparison) -> None:
    table = Table(("sent", "to", "size", "tries", "at the remote"), right=frozenset({2, 3}))
    delivered = _delivered(stage)
    by_path = {(row.mapping, row.path): row for row in rows}
    due: set[tuple[str, str]] = set()
    for mapping, path, lying in _lying(stage):
        if path in EXPECTED_HELD:
            continue
        content, row = lying.read_bytes(), by_path.get((mapping, path))
        digest = sha256(content).hexdigest()
        name = path.decode("utf-8", "replace")
        if row is None or row.state != "sent":
            verdict.problems.append(f"{name} was not sent: {row.state if row else 'it was never seen'}")
            continue
        times = delivered[mapping, row.remote_name, digest]
        if times != 1:
            verdict.problems.append(f"{name} is {times} times at the remote")
        first = (mapping, digest) not in due
        due.add((mapping, digest))
        seen = Cell("once, same bytes" if times == 1 else f"{times} times", GOOD if times == 1 else BAD)
        number = str(tries[row.id]) if first else ""
        to = row.remote_name if row.remote_name != name.rpartition("/")[2] else ""
        where = f"{'Codat' if mapping == 'acme-bank' else 'Wootiv'} {to}".strip()
        table.rows.append(
            (name, where, size(len(content)), number, seen if first else Cell("a copy: went once", FAINT))
        )
    for mapping, name, digest in delivered:
        if (mapping, digest) not in due:
            verdict.problems.append(f"{name} is at the remote, but not in the outbox")
    verdict.blocks.append(table)


def _judge_held(rows: Sequence[Row], verdict: Comparison) -> None:
    table = Table(("held", "reason", "what to do"), folds=frozenset({2}))
    found = {row.path: row for row in rows if row.state == "held"}
    for path, row in sorted(found.items()):
        table.rows.append((path, Cell(row.reason or "", BAD), row.detail or ""))
        if EXPECTED_HELD.get(path) != row.reason:
            verdict.problems.append(f"{path.decode()} is held: {row.reason}")
    verdict.problems += [f"{path.decode()} should be held and is not" for path in EXPECTED_HELD.keys() - found.keys()]
    verdict.blocks += [line(), table]


def _judge_down(stage: Stage, verdict: Comparison) -> None:
    table = Table(("came down", "from", "size"), right=frozenset({2}))
    expected = _expected_down(stage)
    for path in arrived(stage):
        content = path.read_bytes()
        where = expected.pop(sha256(content).hexdigest(), None)
        shown = str(path.relative_to(stage.base))
        if where is None:
            verdict.problems.append(f"{shown} came down and should not have")
        table.rows.append((shown, Cell(where or "?", "" if where else BAD), size(len(content))))
    verdict.problems += [f"something did not come down from {where}" for where in expected.values()]
    verdict.blocks += [line(), table]


def _lying(stage: Stage) -> list[tuple[str, bytes, Path]]:
    """Yield every file of the outbox: mapping, path below its folder, absolute path."""
    found = []
    for mapping, folder in _FOLDERS.items():
        root = stage.outbox / folder
        found += [(mapping, bytes(path.relative_to(root)), path) for path in sorted(root.rglob("*")) if path.is_file()]
    return found


def _delivered(stage: Stage) -> Delivered:
    """Return the documents of the remotes. At S3 a PUT may be repeated, so the object counts."""
    found: Delivered = Counter()
    for stored in stage.simulator.stored:
        if stored.remote == "codat" and stored.via == "api":
            found["acme-bank", stored.name, stored.sha256] += 1
    for (_, key), stands in stage.simulator.objects.items():
        if key != OBJECT:
            found["scans", key, stands.sha256] += 1
    return found


def _expected_down(stage: Stage) -> dict[str, str]:
    """Return the source of each expected download, by digest."""
    expected = {each.sha256: "Codat" for each in stage.simulator.stored if each.via == "page"}
    return expected | {stands.sha256: "Wootiv" for (_, key), stands in stage.simulator.objects.items() if key == OBJECT}
