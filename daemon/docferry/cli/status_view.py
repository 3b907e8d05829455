"""Format the figures of `status --json` as lines and tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from docferry.cli.output import BAD, FAINT, GOOD, STRONG, WARN, Block, Cell, Content, Table, count, line, span

Figures = dict[str, Any]
Row = Sequence[Content]

#: Files being written for longer are shown, seconds.
LONG_WRITTEN: Final = 60.0
#: Smaller clock offsets of a remote are not shown, seconds.
CLOCK_OFF: Final = 60.0
#: The fix of held documents, by reason.
CURES: Final = {
    "too_large": "split or compress them, or exclude them",
    "extension": "convert them, or exclude them",
    "empty": "write them again, or exclude them",
    "unreadable": "let docferry read them, then `docferry retry --reason unreadable`",
    "unroutable": "rename their folder to the UUID it stands for",
    "refused": "see the reason, fix it, then `docferry retry --reason refused`",
    "gave_up": "`docferry retry --reason gave_up`",
    "name_taken": "rename them, or let names differ (file_name, object_name, dedupe), then `docferry retry`",
    "content": "give them the right extension; `docferry retry ID` sends one as it is",
    "incomplete": "write them again as a whole; `docferry retry ID` sends one as it is",
    "infected": "remove them; they are never sent",
    "unscanned": "let clamd take them (StreamMaxLength, antivirus.max_size), then `docferry retry --reason unscanned`",
    "approval": "check them, then `docferry retry ID`, or `docferry retry --reason approval`",
    "metadata": "copy them again",
    "undecidable": "look at the remote whether they are there; `docferry retry ID` asks it again",
}
_GATE_CURES: Final = {
    "key": "put the right key in place, then `docferry retry --all`",
    "account": "resolve it with the operator of the remote, then `docferry retry --all`",
    "company": "give the key access to the company, then `docferry retry --all`",
    "connection": "is the connection linked and its id right? `docferry check`",
    "redirected": "base_url may be wrong, or a proxy or login page is in between",
    "stranger": "a proxy or web site answers instead of the remote: check base_url and proxies in between",
    "antivirus": "is clamd running, and may docferry use its socket? no document of the mapping is sent until then",
    "storage": "the storage refuses its account, bucket, signer or quota: ask Wootiv",
}
_IN_FLIGHT: Final = ("leased", "sending", "asking")


def blocks(figures: Figures, now: float) -> list[Block]:
    """Return the whole page, with problems that need a person last."""
    page: list[Block] = [_daemon(figures, now)]
    for part in (
        _uploads(figures, now),
        _downloads(figures, now),
        _remotes(figures, now),
        _hosts(figures),
        _due(figures, now),
        _troubles(figures, now),
    ):
        if part:
            page += [line(), *part]
    if not figures["uploads"] and not figures["downloads"]:
        page += [line(), line("no mapping is configured and no document was sent: nothing yet")]
    return page


def _daemon(figures: Figures, now: float) -> Block:
    running = figures["running"]
    if running is None:
        return line(Cell("no daemon runs", FAINT), "(`docferry run` starts it, `docferry sync` makes one pass)")
    since = "" if running["since"] is None else f"for {span(now - _seconds(running['since']))}"
    return line(Cell("docferry runs", GOOD), since, Cell(f"(pid {running['pid']})", FAINT))


def _uploads(figures: Figures, now: float) -> list[Block]:
    if not figures["uploads"]:
        return []
    headings = ("upload", "to", "waiting", "in flight", "doubtful", "sent", "held", "gone", "folder")
    table = Table(headings, right=frozenset(range(2, 8)))
    for row in figures["uploads"]:
        found = row["documents"]
        flying = sum(found[state] for state in _IN_FLIGHT)
        table.rows.append(
            (
                row["mapping"],
                row["to"] or "",
                _number(found["waiting"]),
                _number(flying, GOOD),
                _number(found["doubtful"], WARN),
                _number(found["sent"], GOOD),
                _number(found["held"], BAD),
                _number(found["gone"]),
                _folder(row, now),
            )
        )
    return [table]


def _folder(row: Figures, now: float) -> Cell:
    if not row["configured"]:
        return Cell("no longer configured", WARN)
    if row["problem"]:
        return Cell("see below", BAD)
    words = [row["watch"].partition(":")[0]] if row["watch"] else []
    if row["last_scan"]:
        words.append(f"read {_ago(row['last_scan'], now)}")
    return Cell(", ".join(words) or row["folder"], FAINT)


def _hosts(figures: Figures) -> list[Block]:
    """Return the hosts of a shared queue, with the stopped ones."""
    alive = {row["host"] for row in figures["hosts"] if row["alive"]}
    silent = {row["host"] for row in figures["hosts"]} - alive
    if not alive | silent:
        return []
    found: list[Block] = [line("hosts of the queue:", Cell(", ".join(sorted(alive)) or "none", GOOD))]
    if silent:
        found.append(line("no heartbeat any more:", Cell(", ".join(sorted(silent)), BAD), "(see `docferry hosts`)"))
    return found


def _downloads(figures: Figures, now: float) -> list[Block]:
    if not figures["downloads"]:
        return []
    table = Table(("download", "from", "brought", "folder"), right=frozenset({2}))
    for row in figures["downloads"]:
        if not row["configured"]:
            where = Cell("no longer configured", WARN)
        elif row["problem"]:
            where = Cell("see below", BAD)
        elif row["last_round"]:
            where = Cell(f"asked {_ago(row['last_round'], now)}", FAINT)
        else:
            where = Cell(row["folder"], FAINT)
        table.rows.append((row["mapping"], row["from"] or "", _number(row["brought"], GOOD), where))
    return [table]


def _remotes(figures: Figures, now: float) -> list[Block]:
    known = [row for row in figures["remotes"] if row["last_answer"] or row["in_flight"] or row["limit"] is not None]
    if not known:
        return []
    table = Table(("remote", "in flight", "last answer", "requests left today", "new ones"), right=frozenset({1}))
    for row in known:
        answer = f"{_ago(row['last_answer'], now)}" if row["last_answer"] else "none yet"
        table.rows.append((row["remote"], _number(row["in_flight"], GOOD), answer, _quota(row), _reset(row, now)))
    return [table]


def _due(figures: Figures, now: float) -> list[Block]:
    """Return the due documents of each remote, the oldest due time, and the projected end."""
    table = Table(
        ("due at", "documents", "oldest", "arrives by", "document"), right=frozenset({1}), folds=frozenset({4})
    )
    for row in figures["remotes"]:
        oldest = row["oldest_due"]
        if oldest is not None:
            finish = row["projected_finish"]
            left = Cell("unknown", FAINT) if finish is None else f"in {span(_seconds(finish) - now)}"
            since = f"due for {span(now - _seconds(oldest['since']))}"
            table.rows.append((row["remote"], _number(row["due"]), since, left, f"{oldest['path']} ({oldest['id']})"))
    return [table] if table.rows else []


def _quota(row: Figures) -> Content:
    if row["remaining"] is None:
        return Cell("not told", FAINT)
    if not row["limit"]:
        return f"{row['remaining']:,}"
    style = BAD if row["remaining"] == 0 else WARN if row["remaining"] < row["limit"] / 10 else ""
    return Cell(f"{row['remaining']:,} of {row['limit']:,}", style)


def _reset(row: Figures, now: float) -> str:
    if row["reset"] is None:
        return ""
    left = _seconds(row["reset"]) - now
    return f"in {span(left)}" if left > 0 else ""


def _troubles(figures: Figures, now: float) -> list[Block]:
    rows: list[Row] = [*_held(figures), *_gates(figures, now), *_folders(figures), *_rest(figures, now)]
    if not rows:
        return []
    table = Table(("", "", ""), rows, folds=frozenset({1, 2}))
    return [line(Cell("needs attention", STRONG)), table]


def _held(figures: Figures) -> Iterator[Row]:
    for row in figures["held"]:
        what = f"{count(row['count'], 'document')} held: {row['reason']}"
        cure = CURES.get(row["reason"], "see why")
        yield [Cell(row["mapping"], BAD), what, f"{cure} (docferry list --reason {row['reason']})"]


def _gates(figures: Figures, now: float) -> Iterator[Row]:
    for row in figures["gates"]:
        left = _seconds(row["next_probe"]) - now
        probe = f"next probe in {span(left)}" if left > 0 else "probing now"
        what = f"closed for {span(now - _seconds(row['since']))}: {row['reason']}, {probe}"
        cure = _GATE_CURES.get(row["reason"], "")
        yield [Cell(row["gate"], BAD), what, " ".join(part for part in (row["detail"], cure and f"({cure})") if part)]


def _folders(figures: Figures) -> Iterator[Row]:
    for row in (*figures["uploads"], *figures["downloads"]):
        if row["problem"]:
            yield [Cell(row["mapping"], BAD), "folder" if "to" in row else "download", row["problem"]]
    for row in figures["uploads"]:
        for sentence in row.get("left_out", ()):
            what, _, fix = sentence.partition(": ")
            yield [Cell(row["mapping"], WARN), what, fix]
        watch, _, why = (row["watch"] or "").partition(":")
        if why:
            yield [Cell(row["mapping"], WARN), watch, why.strip()]


def _rest(figures: Figures, now: float) -> Iterator[Row]:
    for row in figures["uploads"]:
        for each in row["unsettled"]:
            age = now - _seconds(each["since"])
            if age >= LONG_WRITTEN:
                yield [Cell(row["mapping"], WARN), f"still being written for {span(age)}", each["path"]]
    for row in figures["remotes"]:
        offset = row["clock_offset"]
        if offset is not None and abs(offset) > CLOCK_OFF:
            where = "behind" if offset > 0 else "ahead of"
            yield [
                Cell(row["remote"], WARN),
                f"this clock is {span(abs(offset))} {where} it",
                "set the clock: timedatectl",
            ]
    if figures["trouble"]:
        yield [Cell("the queue", BAD), "is in trouble", figures["trouble"]]


def _number(number: int, style: str = "") -> Cell:
    return Cell(f"{number:,}", style) if number else Cell("-", FAINT)


def _ago(when: str, now: float) -> str:
    passed = now - _seconds(when)
    return "just now" if passed < 1.5 else f"{span(passed)} ago"


def _seconds(when: str) -> float:
    return datetime.fromisoformat(when).timestamp()
