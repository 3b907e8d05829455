"""Check that the remotes still have all sent documents, without changing anything there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import anyio
from msgspec import Struct

from docferry import logs
from docferry.clock import Clock
from docferry.errors import RemoteError
from docferry.model import Found as Presence
from docferry.model import KnownUploads, Target, Transfer
from docferry.remotes.codat.client import Codat
from docferry.remotes.codat.reconcile import ListedUpload, Members, same
from docferry.remotes.protocol import NOTHING, Remote
from docferry.remotes.wootiv.client import Wootiv
from docferry.remotes.wootiv.s3 import ObjectStat
from docferry.store.transfers import Transfers
from docferry.store.verification import Result, Round, Verdict, Verifications

log = logs.get("verify")

#: Concurrent requests for Wootiv's objects, and objects recorded in one step.
AT_ONCE: Final = 4
OBJECTS_AT_ONCE: Final = 40
#: Responses that concern one company or object; others stop the round, which continues at the next run.
_OWN_TROUBLE: Final = frozenset({400, 401, 402, 403, 404, 422})

_LISTED: Final = Result(Verdict.PRESENT, "Codat lists its name")


class RoundReport(Struct, frozen=True):
    """Report the progress of a round; the database has the verdicts. `stopped`: the reason for an early stop."""

    progress: Round
    stopped: str | None = None


class _Stopped(Exception):
    """Report that the round cannot continue now; the text gives the reason."""


class VerifyView(Protocol):
    """Show the progress of a verification."""

    def add(self, documents: int) -> None:
        """Add this number of verified documents to the progress."""


class Verifier:
    """Verify in recorded steps, so that a stopped round can continue."""

    def __init__(
        self,
        remotes: Mapping[str, Remote],
        transfers: Transfers,
        rows: Verifications,
        clock: Clock,
        reserve: Mapping[str, float],
    ) -> None:
        self._remotes = remotes
        self._transfers = transfers
        self._rows = rows
        self._clock = clock
        self._view: VerifyView | None = None
        self._reserve = reserve  # the share of the daily quota reserved for doubts, by remote

    async def run(
        self,
        mapping: str | None = None,
        since: float | None = None,
        *,
        with_bytes: bool = False,
        view: VerifyView | None = None,
    ) -> RoundReport:
        """Continue the round with these options, or begin one. `view` gets the documents of each step."""
        progress = await self._rows.open_round(mapping, since, with_bytes=with_bytes)
        try:
            self._view = view
            await self._codat(progress)
            await self._wootiv(progress)
        except _Stopped as stopped:
            return RoundReport(progress, str(stopped))
        progress.done = True
        await self._rows.record({}, progress)
        return RoundReport(progress)

    def _show(self, documents: int) -> None:
        if self._view is not None:
            self._view.add(documents)

    # -- Codat ---------------------------------------------------------------------------------------------------------

    async def _codat(self, progress: Round) -> None:
        codat = self._remotes.get("codat")
        for company in await self._rows.companies(progress) if isinstance(codat, Codat) else ():
            assert isinstance(codat, Codat)  # noqa: S101 - for mypy
            sent = await self._rows.sent_to(company)
            try:
                found = await self._company(codat, company, sent, with_bytes=progress.with_bytes)
            except RemoteError as error:
                found = dict.fromkeys((each.id for each in sent), self._trouble(error))
            wanted = {each.id for each in sent if _is_wanted(each, progress)}
            progress.company = company
            await self._rows.record({each: found[each] for each in wanted}, progress)
            self._show(len(wanted))

    async def _company(
        self, codat: Codat, company: str, sent: Sequence[Transfer], *, with_bytes: bool
    ) -> dict[int, Result]:
        """Return a result for each document sent to a company."""
        self._require_quota("codat")
        listed = await codat.listing(company)
        fresh_since = self._clock.now() - codat.absent_after
        names = Counter(same(each.file_name or "") for each in listed)
        found: dict[int, Result] = {}
        suspects: list[Transfer] = []
        for name, group in _by_name(sent).items():
            if names[name] >= len(group):
                found |= dict.fromkeys((each.id for each in group), _LISTED)
            else:
                suspects += group
        if with_bytes:
            members = Members()
            offset = codat.health.clock_offset or 0.0
            rows = [ListedUpload.read(each.file_name, each.uploaded, offset) for each in listed]
            for day in _days(sent, rows):
                self._require_quota("codat")
                members.update(await codat.read_zip(company, day))
            found, suspects = _by_bytes(sent, members)
        fresh = [each for each in suspects if _sent_at(each) >= fresh_since]
        found |= dict.fromkeys((each.id for each in fresh), Result(Verdict.UNKNOWN, "it was sent only just now"))
        old = [each for each in suspects if _sent_at(each) < fresh_since]
        if old and not listed and len(sent) > 1:
            why = f"Codat's list is empty, although {len(sent):,} documents were sent: that proves nothing"
            return found | dict.fromkeys((each.id for each in old), Result(Verdict.UNKNOWN, why))
        return found | await self._looked_up(codat, company, old, fresh_since)

    async def _looked_up(
        self, codat: Codat, company: str, suspects: Sequence[Transfer], fresh_since: float
    ) -> dict[int, Result]:
        """Decide like for doubts: by list and ZIPs, with all known data of other uploads."""
        if not suspects:
            return {}
        self._require_quota("codat")
        target, since = Target("codat", company), codat.lookback(suspects)
        accounted = await self._transfers.accounted(
            target, names_since=since.names, digests_since=since.digests, until=fresh_since
        )
        unsettled = await self._transfers.unsettled(target, sent_since=fresh_since, apart_from=[])
        findings = await codat.lookup(suspects, _without(accounted, suspects), unsettled)
        verdicts = {
            Presence.PRESENT: Verdict.PRESENT,
            Presence.ABSENT: Verdict.MISSING,
            Presence.UNSURE: Verdict.UNKNOWN,
        }
        return {each: Result(verdicts[finding.found], finding.detail) for each, finding in findings.items()}

    # -- Wootiv --------------------------------------------------------------------------------------------------------

    async def _wootiv(self, progress: Round) -> None:
        wootiv = self._remotes.get("wootiv")
        if not isinstance(wootiv, Wootiv):
            return
        ids = await self._rows.object_ids(progress)
        for start in range(0, len(ids), OBJECTS_AT_ONCE):
            found = await self._objects(wootiv, await self._rows.objects(ids[start : start + OBJECTS_AT_ONCE]))
            progress.object_id = ids[min(start + OBJECTS_AT_ONCE, len(ids)) - 1]
            await self._rows.record(found, progress)
            self._show(len(found))

    async def _objects(self, wootiv: Wootiv, step: Sequence[tuple[Transfer, str | None]]) -> dict[int, Result]:
        """Return the results of one step. Raises _Stopped if the storage or Wootiv cannot be reached."""
        slots, found, stopped = anyio.Semaphore(AT_ONCE), dict[int, Result](), list[_Stopped]()

        async def ask(transfer: Transfer, etag: str | None) -> None:
            async with slots:
                try:
                    if not stopped:
                        found[transfer.id] = await self._object(wootiv, transfer, etag)
                except _Stopped as error:
                    stopped.append(error)

        async with anyio.create_task_group() as group:
            for transfer, etag in step:
                group.start_soon(ask, transfer, etag)
        if stopped:
            raise stopped[0]
        return found

    async def _object(self, wootiv: Wootiv, transfer: Transfer, etag: str | None) -> Result:
        try:
            stat = await wootiv.stat(transfer.remote_name)
        except RemoteError as error:
            return self._trouble(error)
        found = _compare(stat, transfer, etag)
        if found.verdict is not Verdict.PRESENT and await self._rows.is_being_replaced(transfer):
            return Result(Verdict.UNKNOWN, "another version of the object is on its way")
        return found

    # -- both ----------------------------------------------------------------------------------------------------------

    def _require_quota(self, remote: str) -> None:
        health = self._remotes[remote].health
        if health.limit and health.remaining is not None:
            reserve = health.limit * self._reserve.get(remote, 0.0)
            reset = health.reset
            if health.remaining <= reserve and (reset is None or reset > self._clock.now()):
                raise _Stopped(f"{health.remaining} of {health.limit} requests are left at {remote} today")

    @staticmethod
    def _trouble(error: RemoteError) -> Result:
        """Return the result for an error with one company or object; any other error stops the round."""
        if error.kind == "answer" and error.status in _OWN_TROUBLE:
            return Result(Verdict.UNKNOWN, str(error))
        raise _Stopped(str(error)) from error


def _compare(stat: ObjectStat | None, transfer: Transfer, etag: str | None) -> Result:
    """Compare an object with the sent document, by ETag and size."""
    if stat is None:
        return Result(Verdict.MISSING, "the storage says that there is no such object")
    if stat.size is not None and stat.size != transfer.size:
        return Result(Verdict.CHANGED, f"the object has {stat.size:,} bytes, {transfer.size:,} were sent")
    if stat.md5 is not None and transfer.md5 is not None and stat.md5 != transfer.md5:
        return Result(Verdict.CHANGED, f"its ETag is {stat.etag}, the MD5 of what was sent {transfer.md5}")
    if etag is not None and stat.etag != etag and (stat.md5 is None or transfer.md5 is None):
        return Result(Verdict.CHANGED, f"its ETag is {stat.etag}, that of the upload was {etag}")
    return Result(Verdict.PRESENT, "size and ETag are those of the upload")


def _by_name(sent: Sequence[Transfer]) -> dict[str, list[Transfer]]:
    groups: dict[str, list[Transfer]] = {}
    for each in sent:
        groups.setdefault(same(each.remote_name), []).append(each)
    return groups


def _by_bytes(sent: Sequence[Transfer], members: Members) -> tuple[dict[int, Result], list[Transfer]]:
    """Return the results that follow from the digests in the ZIPs, and the undecided documents."""
    left, found, suspects = Counter(members.digests), dict[int, Result](), list[Transfer]()
    ours = {each.sha256 for each in sent}
    foreign = {name for digest, names in members.names_of.items() if digest not in ours for name in names}
    for each in sent:
        if left[each.sha256] > 0:
            left[each.sha256] -= 1
            found[each.id] = Result(Verdict.PRESENT, "Codat's ZIP has its bytes")
        elif same(each.remote_name) in foreign:
            found[each.id] = Result(Verdict.CHANGED, "Codat's ZIP has other bytes under its name")
        else:
            suspects.append(each)
    return found, suspects


def _days(sent: Sequence[Transfer], rows: Sequence[ListedUpload]) -> list[str]:
    """Return the dates whose ZIPs contain the sent documents, by the list and by the queue."""
    names = {same(each.remote_name) for each in sent}
    days = {datetime.fromtimestamp(_sent_at(each), UTC).date() for each in sent}
    days.update(day for row in rows if row.name in names for day in row.days)
    return [day.isoformat() for day in sorted(days)]


def _without(known: KnownUploads, suspects: Sequence[Transfer]) -> KnownUploads:
    """Remove suspects from the uploads that SENT transfers explain, because these explanations are in question."""
    if not suspects:
        return NOTHING
    names = Counter(known.names) - Counter(each.remote_name for each in suspects)
    digests = Counter(known.digests) - Counter(each.sha256 for each in suspects)
    return KnownUploads(dict(names), dict(digests))


def _sent_at(transfer: Transfer) -> float:
    return transfer.last_sent if transfer.last_sent is not None else transfer.created


def _is_wanted(transfer: Transfer, progress: Round) -> bool:
    in_time = progress.since is None or _sent_at(transfer) >= progress.since
    return in_time and progress.mapping in (None, transfer.mapping)
