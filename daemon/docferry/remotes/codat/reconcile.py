"""Decide whether doubtful documents are at Codat, from its list, its ZIPs and the uploads of other transfers. Pure.

Codat may change a name, the list may lag, and other people may upload the same name. So the list alone proves "present"
only for a name with a token. It proves "absent" only if it shows every known upload and no unexplained row. The digests
in the ZIPs decide all other cases.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote

from msgspec import Struct, field

from docferry.model import Finding, Found, KnownUploads, Transfer
from docferry.remotes.protocol import Lookback

#: The largest assumed offset of the remote's clock, seconds.
MARGIN_S: Final = 300.0
#: The largest offset of a time without a zone, seconds.
VAGUE_S: Final = 15 * 3600.0
#: The longest time between the storing of an upload and the end of its attempt, seconds.
_LONGEST_ATTEMPT_S: Final = 3600.0
#: The shortest prefix that may be a cut name, characters.
_SHORTEST_CUT: Final = 16
_DAY: Final = timedelta(days=1)
#: The largest number of dated ZIPs in a lookup; beyond it, the ZIP of all days is read.
MAX_DATED_ZIPS: Final = 40
#: The days whose uploads may be missing in a lagging list.
_LAGGING: Final = timedelta(days=3)


class ListedUpload(Struct, frozen=True):
    """Describe one upload in the list.

    `days` are the dates whose ZIP may contain it, none if its time cannot be read.
    """

    name: str
    at: float | None
    vague: bool
    days: frozenset[date]

    @classmethod
    def read(cls, name: str | None, uploaded: str, offset: float) -> ListedUpload:
        """Read a row; `offset` is the number of seconds by which the remote's clock is ahead."""
        try:
            moment = datetime.fromisoformat(uploaded)
            there = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            if len(uploaded) <= len("2022-10-23"):
                there += timedelta(hours=24)  # a date without a time
            days = {moment.date(), there.astimezone(UTC).date()}
            if moment.tzinfo is None:
                days |= {moment.date() - _DAY, moment.date() + _DAY}
        except (ValueError, OverflowError):
            return cls(same(name or ""), None, True, frozenset())
        return cls(same(name or ""), there.timestamp() - offset, moment.tzinfo is None, frozenset(days))


class Members(Struct):
    """Count the members of ZIPs by digest and by name, and keep the names of each digest."""

    digests: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    names_of: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, path: str, sha256: str) -> None:
        """Add a member."""
        name = same(path.rpartition("/")[2])
        self.digests[sha256] += 1
        self.names[name] += 1
        self.names_of[sha256].add(name)

    def update(self, other: Members) -> None:
        """Add all members of another ZIP."""
        self.digests.update(other.digests)
        self.names.update(other.names)
        for sha256, names in other.names_of.items():
            self.names_of[sha256] |= names


def lookback(doubts: Sequence[Transfer]) -> Lookback:
    """Return the times from which other transfers are relevant.

    Names are relevant since just before the first attempt, digests since the first day whose ZIP may be read.
    """
    first = min(_begun(each) for each in doubts)
    day = datetime.fromtimestamp(first - VAGUE_S, UTC).date() - _DAY
    return Lookback(first - MARGIN_S, datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


class Reconciliation:
    """Decide the doubts of one company by its list, the ZIPs, and the known uploads of other transfers."""

    def __init__(
        self,
        doubts: Sequence[Transfer],
        accounted: KnownUploads,
        unsettled: KnownUploads,
        rows: Sequence[ListedUpload],
        now: float,
    ) -> None:
        self._doubts = doubts
        self._accounted = accounted
        self._unsettled = unsettled
        self._now = now
        self._lookback = lookback(doubts)
        self._ours = {same(each.remote_name) for each in doubts}
        self._rows = rows
        self._recent = [row for row in rows if self._is_recent(row)]
        self._shows_all = self._shows_all_settled()
        self._unexplained = self._without_explained()
        self._open: list[Transfer] = []
        self.days: frozenset[date] = frozenset()  # the dates whose ZIPs are needed
        self.needs_everything = False  # the ZIP of all dates is needed instead of dated ones

    def by_list(self) -> dict[int, Finding]:
        """Return the findings that follow from the list; `days` are the dates whose ZIPs the other doubts need."""
        found: dict[int, Finding] = {}
        for doubt in self._doubts:
            finding = self._by_list(doubt)
            if finding is None:
                self._open.append(doubt)
            else:
                found[doubt.id] = finding
        if self._open:
            days = frozenset(self._days())
            self.needs_everything = len(days) > MAX_DATED_ZIPS
            self.days = frozenset() if self.needs_everything else days
        return found

    def by_archive(self, members: Members) -> dict[int, Finding]:
        """Return the other findings, by digest. A copy found for one document does not count for the next."""
        found: dict[int, Finding] = {}
        taken: Counter[str] = Counter()
        complete = self._is_complete(members)
        for doubt in sorted(self._open, key=lambda each: same(each.remote_name) not in members.names_of[each.sha256]):
            finding = self._by_archive(doubt, members.digests[doubt.sha256] - taken[doubt.sha256], complete)
            taken[doubt.sha256] += finding.found is Found.PRESENT
            found[doubt.id] = finding
        return found

    # the list

    def _by_list(self, doubt: Transfer) -> Finding | None:
        name = same(doubt.remote_name)
        # After a loss of the database the token is new: an earlier copy has the old one.
        adopted = doubt.first_sent is not None and doubt.first_sent < doubt.created
        if doubt.token in doubt.remote_name and not adopted:
            if any(row.name == name for row in self._rows):
                return Finding(Found.PRESENT, "Codat lists its name, and the token in it is unique", "list")
            maybe = any(_is_cut(row.name, name) for row in self._unexplained)
        else:
            maybe = bool(self._unexplained) or any(row.name == name for row in self._recent)
        if maybe or not self._shows_all:
            return None
        return Finding(Found.ABSENT, "since it was sent Codat lists only uploads of other documents", "list")

    def _is_recent(self, row: ListedUpload) -> bool:
        slack = VAGUE_S if row.vague else 0.0
        return row.at is None or row.at >= self._lookback.names - slack

    def _shows_all_settled(self) -> bool:
        """Return whether the list shows every known upload; a stale list does not prove absence."""
        shown = Counter(row.name for row in self._rows if self._is_recent(row) or self._is_edge(row))
        missing = {name: count for name, count in self._settled().items() if shown[name] < count}
        return all(any(_is_cut(row, name) for row in shown) for name in missing)

    def _without_explained(self) -> list[ListedUpload]:
        """Return the recent rows that no other transfer explains by name; the oldest rows are explained first.

        The name of a doubt is explained only by transfers that were certainly sent.
        """
        settled, loose = self._settled(), Counter(map(same, _each(self._unsettled.names)))
        groups: defaultdict[str, list[ListedUpload]] = defaultdict(list)
        for row in self._rows:
            if self._is_recent(row) or (self._is_edge(row) and row.name in settled):
                groups[row.name].append(row)
        left = []
        for name, rows in groups.items():
            explained = settled[name] + (0 if name in self._ours else loose[name])
            left += sorted(rows, key=lambda row: row.at or self._now)[explained:]
        return self._without_cut(left, [name for name in settled + loose if name not in groups])

    def _without_cut(self, rows: list[ListedUpload], names: Iterable[str]) -> list[ListedUpload]:
        """Remove rows whose name is a prefix of an explained name, unless they may be a doubt."""
        for name in names:
            cut = next((row for row in rows if row.name not in self._ours and _is_cut(row.name, name)), None)
            if cut is not None and not any(_is_cut(cut.name, ours) for ours in self._ours):
                rows.remove(cut)
        return rows

    def _is_edge(self, row: ListedUpload) -> bool:
        return row.at is not None and self._lookback.names - _LONGEST_ATTEMPT_S <= row.at < self._lookback.names

    def _settled(self) -> Counter[str]:
        return Counter(map(same, _each(self._accounted.names)))

    # the ZIPs

    def _by_archive(self, doubt: Transfer, count: int, complete: bool) -> Finding:
        settled, loose = (each.digests.get(doubt.sha256, 0) for each in (self._accounted, self._unsettled))
        if count > settled + loose:
            return Finding(
                Found.PRESENT, "its bytes are in Codat's ZIP, and no other document accounts for them", "zip"
            )
        if count > settled:
            # List and ZIP belong to the company: neither names the connection of a copy.
            copies = "one copy" if count - settled == 1 else f"{count - settled} copies"
            return Finding(
                Found.UNSURE,
                f"Codat's ZIP has {copies} of its bytes that may be its own, but {loose + 1} documents of this company "
                "may have brought them, perhaps to different connections: which of them did is unknown",
                "zip",
            )
        if complete:
            return Finding(Found.ABSENT, "Codat's ZIP has every listed file, and its bytes are not among them", "zip")
        if not self._rows and self._accounted.names:
            return Finding(Found.UNSURE, "Codat's list is empty, although uploads are known to be there", "list")
        return Finding(Found.UNSURE, "Codat's list and ZIP do not show every known upload yet", "zip")

    def _days(self) -> Iterator[date]:
        """Yield the dates of unexplained rows, and of rows with the name of a doubt.

        If other transfers have the same bytes, or the list is stale, yield every date since these transfers count.
        Otherwise a copy of theirs could be counted as ours, or hide ours.
        """
        for row in self._unexplained:
            yield from row.days
        for row in self._recent:
            if row.name in self._ours:
                yield from row.days
        counted = self._accounted.digests.keys() | self._unsettled.digests.keys()
        wide = not self._shows_all or any(doubt.sha256 in counted for doubt in self._open)
        undated = any(not row.days for row in self._recent)
        if wide or undated:
            first = self._lookback.digests if wide else min(map(_begun, self._open))
            yield from self._days_since(first)

    def _days_since(self, first: float) -> Iterator[date]:
        """Yield the dates since a wall time; for a long period, only the listed, the first and the last dates.

        The time of an adopted document may be decades ago.
        """
        start, now = (datetime.fromtimestamp(each, UTC).date() for each in (first, self._now))
        end = now + _DAY
        if end - start <= MAX_DATED_ZIPS * _DAY:
            yield from _each_day(start, end)
            return
        yield from (day for row in self._rows for day in row.days if start <= day <= end)
        yield from _each_day(start, start + _LAGGING)
        yield from _each_day(end - _LAGGING, end)

    def _is_covered(self, row: ListedUpload) -> bool:
        return self.needs_everything or row.days <= self.days

    def _is_complete(self, members: Members) -> bool:
        """Return whether the ZIPs contain all listed rows of their dates, or at least all unexplained rows."""
        if not self._shows_all:
            settled = self._accounted.digests.items()
            return bool(settled) and all(members.digests[sha256] >= count for sha256, count in settled)
        dated = [row for row in self._rows if row.days and not row.vague and self._is_covered(row)]
        if sum(members.digests.values()) >= len(dated) and not any(row.vague for row in self._unexplained):
            return True
        wanted = Counter(row.name for row in self._unexplained)
        wanted.update(row.name for row in self._recent if row.name in self._ours and row.name not in wanted)
        return all(members.names[name] >= count for name, count in wanted.items())


def _each_day(first: date, last: date) -> Iterator[date]:
    for number in range((last - first).days + 1):
        yield first + number * _DAY


def same(name: str) -> str:
    """Return the comparable form of a name, without the changes that servers make."""
    if "%" in name:
        name = unquote(name)
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _is_cut(short: str, long: str) -> bool:
    """Return whether `short` may be a cut form of `long`, with or without its suffix."""
    if not _SHORTEST_CUT <= len(short) < len(long):
        return False
    path = PurePosixPath(short)
    with_suffix = path.suffix == PurePosixPath(long).suffix and len(path.stem) >= _SHORTEST_CUT
    return long.startswith(short) or (with_suffix and long.startswith(path.stem))


def _begun(transfer: Transfer) -> float:
    return transfer.first_sent if transfer.first_sent is not None else transfer.created


def _each(counts: dict[str, int]) -> Iterator[str]:
    return (name for name, count in counts.items() for _ in range(count))
