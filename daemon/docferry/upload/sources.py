"""Open the files of a batch by the present configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from msgspec import Struct, field

from docferry.errors import SourceError, SourceUnreadable, SourceVanished
from docferry.files.safe_open import Root
from docferry.files.source import FileSource, Opener, open_together
from docferry.model import Digests, Outcome, Reason, State, Transfer
from docferry.settings import Upload
from docferry.store.documents import Place
from docferry.store.enqueue import APPROVAL, LATE_PUT_S
from docferry.upload.antivirus import Antivirus
from docferry.upload.batch import Places
from docferry.upload.context import UploadContext
from docferry.upload.gates import GateManager

#: The number of attempts after which an unreadable file is held.
OPEN_TRIES = 5
#: The delay before a file of a shared folder that this host does not see is tried again, seconds. Another host may then
#: claim it.
SHARE_DELAY_S = 10.0


class OpenedSources(Struct):
    """Hold the documents that can be sent, and the outcomes of the others."""

    sources: list[tuple[Transfer, FileSource]] = field(default_factory=list)
    outcomes: list[tuple[Transfer, Outcome]] = field(default_factory=list)


class SourceOpener:
    """Open the files of transfers below the folders of the upload mappings."""

    def __init__(
        self,
        context: UploadContext,
        gate_manager: GateManager,
        openers: Mapping[Root, Opener] | None = None,
        antivirus: Antivirus | None = None,
    ) -> None:
        self._context = context
        self._gate_manager = gate_manager
        self._antivirus = antivirus
        self._holds_for_approval = any(upload.hold_for_approval for upload in context.uploads.values())
        roots = {name: Root.of(upload) for name, upload in context.uploads.items()}
        by_root = openers or {root: Opener(root) for root in set(roots.values())}
        self._openers = {name: by_root[root] for name, root in roots.items() if root in by_root}

    async def open(self, stack: AsyncExitStack, transfers: Sequence[Transfer], places: Places) -> OpenedSources:
        """Open one file for each transfer; `stack` closes them."""
        found = OpenedSources()
        candidates = [self._candidates(transfer, places.get(transfer.id, ())) for transfer in transfers]
        unapproved = await self._unapproved(transfers, candidates)
        first = [each[0][1] for each in candidates if each]
        stay_open = self._context.senders.is_running
        for source in first:
            source.stays_open = stay_open
            stack.callback(source.close)
        await open_together(first)
        for transfer, each in zip(transfers, candidates, strict=True):
            if not transfer.sha256:
                # A rule held it unread, and a person retries: plan it again.
                self._check_again(places.get(transfer.id, ()))
                found.outcomes.append((transfer, Outcome(State.GONE, None, "the file is planned again")))
                continue
            if transfer.id in unapproved:
                found.outcomes.append((transfer, Outcome(State.HELD, Reason.APPROVAL, APPROVAL, costs_a_try=False)))
                continue
            opened = await self._open_first(stack, each)
            if isinstance(opened, SourceError) or opened is None:
                found.outcomes.append((transfer, self._without_bytes(transfer, opened, places.get(transfer.id, ()))))
            elif (outcome := await self._scan(transfer, each, opened)) is not None:
                found.outcomes.append((transfer, outcome))
            else:
                found.sources.append((transfer, opened))
        return found

    def after_change(self, transfer: Transfer, change: SourceError, places: Places, *, shared: bool) -> Outcome:
        """Return the outcome of a transfer whose file did not complete the body.

        `shared`: other documents were in the request, and any of them may have changed.
        """
        if shared:
            return Outcome(State.WAITING, None, str(change))  # from now on it is sent alone
        if isinstance(change, SourceUnreadable):
            return self._unreadable(transfer, change)
        self._check_again(places.get(transfer.id, ()))
        if self._is_decided_elsewhere(change, places.get(transfer.id, ())):
            return _not_seen_here(transfer)
        return Outcome(State.GONE, None, str(change))

    async def _unapproved(
        self, transfers: Sequence[Transfer], candidates: Sequence[Sequence[tuple[Place, FileSource]]]
    ) -> set[int]:
        """Return the transfers that still need the approval of a person, also if they were queued before."""
        if not self._holds_for_approval:
            return set()
        asked = {
            transfer.id
            for transfer, each in zip(transfers, candidates, strict=True)
            if each and all(self._context.uploads[place.mapping].hold_for_approval for place, _ in each)
        }
        return asked - await self._context.queue.transfers.approved(asked) if asked else asked

    async def _scan(
        self, transfer: Transfer, candidates: Sequence[tuple[Place, FileSource]], source: FileSource
    ) -> Outcome | None:
        """Return None for a document that passes the virus scanner or needs none, else its outcome."""
        if self._antivirus is None:
            return None
        mapping = next((p.mapping for p, _ in candidates if self._context.uploads[p.mapping].antivirus), None)
        if mapping is None:
            return None
        try:
            return await self._antivirus.scan(mapping, transfer, source)
        except SourceError as change:
            self._check_again([place for place, _ in candidates])
            return self._without_bytes(transfer, change, [place for place, _ in candidates])

    def _candidates(self, transfer: Transfer, places: Sequence[Place]) -> list[tuple[Place, FileSource]]:
        """Return the files that may be read for a transfer, each with its source."""
        digests = Digests(transfer.sha256, transfer.fingerprint, transfer.md5)
        md5 = self._context.remotes[transfer.target.remote].rules.needs_md5
        return [
            (place, self._openers[place.mapping].source(place.path, place.stamp, digests, md5=md5))
            for place in places
            if (upload := self._context.uploads.get(place.mapping)) and _may_be_sent(upload, place, transfer)
            if place.mapping not in self._context.queue.owners.unreadable
        ]

    async def _open_first(
        self, stack: AsyncExitStack, candidates: Sequence[tuple[Place, FileSource]]
    ) -> FileSource | SourceError | None:
        """Return the first source that opens, else the last error; None without a candidate."""
        trouble: SourceError | None = None
        for place, source in candidates:
            try:
                return await stack.enter_async_context(source)
            except SourceError as error:
                trouble = error
                self._check_again([place])
        return trouble

    def _without_bytes(self, transfer: Transfer, trouble: SourceError | None, places: Sequence[Place]) -> Outcome:
        if isinstance(trouble, SourceUnreadable):
            return self._unreadable(transfer, trouble)
        if self._is_decided_elsewhere(trouble, places):
            return _not_seen_here(transfer)
        if not transfer.target.company_id and transfer.state is State.ASKING:
            # The storage may still apply the doubtful PUT: the next version must come after it.
            wait = LATE_PUT_S - self._gate_manager.age(transfer)
            if wait > 0:
                detail = "the file changed; waiting until the earlier version can no longer arrive"
                return Outcome(State.DOUBTFUL, transfer.reason, detail, delay=wait, costs_a_try=False)
        if trouble is None:
            return Outcome(State.GONE, None, "the file was removed, or the configuration leaves it out now")
        if isinstance(trouble, SourceVanished):
            return Outcome(State.GONE, None, "the file was removed before it was sent")
        return Outcome(State.GONE, None, str(trouble))

    def _is_decided_elsewhere(self, trouble: SourceError | None, places: Sequence[Place]) -> bool:
        """Return whether only the scanning host of a shared folder can decide that a file is gone or changed.

        This host may no longer have the share mounted, or may see an older state of it.
        """
        if trouble is None:
            return any(place.mapping in self._context.queue.owners.unreadable for place in places)
        return any((upload := self._context.uploads.get(place.mapping)) and upload.shared for place in places)

    def _unreadable(self, transfer: Transfer, trouble: SourceUnreadable) -> Outcome:
        if transfer.tries + 1 >= OPEN_TRIES or transfer.state is State.ASKING:
            detail = f"{trouble}; make the file readable, then run `docferry retry`"
            return Outcome(State.HELD, Reason.UNREADABLE, detail)
        return Outcome(State.WAITING, None, str(trouble), delay=self._gate_manager.pause(transfer))

    def _check_again(self, places: Sequence[Place]) -> None:
        for place in places:
            self._context.wakeups.check_paths(place.mapping, [place.path])


def _not_seen_here(transfer: Transfer) -> Outcome:
    detail = "this host does not see the file as it was scanned; the host that scans the shared folder decides"
    if transfer.state is State.ASKING:
        return Outcome(State.DOUBTFUL, transfer.reason, detail, delay=SHARE_DELAY_S, costs_a_try=False)
    return Outcome(State.WAITING, None, detail, delay=SHARE_DELAY_S, costs_a_try=False)


def _may_be_sent(upload: Upload, place: Place, transfer: Transfer) -> bool:
    """Return whether the present configuration allows sending a file to the target of its transfer."""
    if upload.max_size is not None and place.stamp.size > upload.max_size:
        return False
    return upload.wanted(place.path) and upload.route(place.path).target == transfer.target
