"""From a sighting to the queue: compare with what is known, wait for quiet, hash, plan, apply."""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.to_thread

from docferry import logs
from docferry.clock import Clock
from docferry.errors import FolderError, SourceError, SourceUnreadable, SourceVanished
from docferry.files import scan
from docferry.files.quiet import Quiet
from docferry.files.scan import Listing
from docferry.files.source import Digest, digests
from docferry.model import Reason, Sighting, State, Target, escaped
from docferry.remotes.base import Rules
from docferry.settings import Upload
from docferry.store.bookmarks import Bookmarks
from docferry.store.documents import Documents, Planned

log = logs.get("intake")

#: Files hashed in one visit to a thread: few enough that a stop is not kept waiting, by number and by bytes.
HASHED_AT_ONCE = 64
BYTES_AT_ONCE = 16 * 1024 * 1024
#: A file that the disk does not give out is held after so many tries.
READ_TRIES = 4
#: Documents planned in one commit.
PLANNED_AT_ONCE = 512


@dataclass(slots=True)
class FolderState:
    """What is known of one mapping's folder, for `status`."""

    problem: str | None = None
    watch: str = "not watched yet"
    last_scan: float | None = None
    known: int = 0  # files of the last scan that were known as they are
    subfolders: dict[bytes, str] = field(default_factory=dict)  # unreadable ones


class Intake:
    """Brings what lies in the mapped folders into the queue. Nothing here touches a remote."""

    def __init__(
        self,
        *,
        documents: Documents,
        bookmarks: Bookmarks,
        rules: Mapping[str, Rules],
        clock: Clock,
        queued: Callable[[], None],
        watching: Callable[[], None],
        adopt: bool = False,
    ) -> None:
        self._documents = documents
        self._bookmarks = bookmarks
        self._rules = rules
        self._clock = clock
        self._queued = queued
        self._watching = watching
        self._adopt = adopt  # the database was lost: what is new to us may be at the remote already
        self.unchanged = 0  # files that turned out to be what was known: touched, or copies
        self._hashing = anyio.CapacityLimiter(2)
        self.quiet = Quiet(clock)
        self.folders: dict[str, FolderState] = {}
        self._stumbled: dict[tuple[str, bytes], int] = {}  # how often a file could not be read

    def state(self, mapping: str) -> FolderState:
        return self.folders.setdefault(mapping, FolderState())

    async def follow(self, upload: Upload) -> None:
        """Where a mapping leads is part of what was planned: when it leads elsewhere, everything is planned again."""
        subject = f"mapping/{upload.name}"
        leads = f"{upload.to} {upload.folder} {upload.company_id} {upload.connection_id}"
        known = await self._bookmarks.mark(subject)
        if known is not None and known != leads:
            await self._documents.looked_otherwise(upload.name)
        if known != leads:
            await self._bookmarks.note(subject, leads)

    # -- the truth: a scan ---------------------------------------------------------------------------------------

    async def scan(self, upload: Upload, start: bytes = b"") -> None:
        """Walk a mapping's folder, or the part below `start`, and plan what is new. FolderError stops this mapping."""
        state = self.state(upload.name)
        try:
            await self._scan(upload, start, state)
        except FolderError as error:
            if state.problem is None:
                log.error("folder_stopped", str(error), mapping=upload.name)
            state.problem = str(error)
            raise
        if not start:
            if state.problem is not None:
                log.info("folder_back", mapping=upload.name)
            state.problem = None
            state.last_scan = self._clock.now()

    async def _scan(self, upload: Upload, start: bytes, state: FolderState) -> None:
        steps = scan.walk(upload.root, enters=upload.enters, start=start)
        visited: set[bytes] = set()
        broken: list[bytes] = []
        known_files = 0
        first = True
        while chunk := await anyio.to_thread.run_sync(next, steps, None):
            if first and not start:
                await self._assert_not_emptied(upload, chunk[0])
            first = False
            known = await self._documents.known(upload.name, [listing.folder for listing in chunk])
            fresh: list[Sighting] = []
            gone: list[bytes] = []
            for listing in chunk:
                self._report(upload, listing, state)
                if listing.problem is not None:
                    broken.append(listing.folder)
                    continue
                visited.add(listing.folder)
                before = known.get(listing.folder, set())
                now = set(listing.files)
                known_files += len(before & now) if before else 0
                names = {look[0] for look in now}
                gone += [_join(listing.folder, look[0]) for look in before if look[0] not in names]
                fresh += [listing.sighting(look) for look in now - before]
            await self._documents.vanished(upload.name, gone)
            await self.sighted(upload, fresh)
        if not start:
            state.known = known_files
            await self._forget_folders(upload, visited, broken)

    async def _assert_not_emptied(self, upload: Upload, root: Listing) -> None:
        if not root.files and not root.folders and await self._documents.any_present(upload.name):
            raise FolderError(
                f"{upload.root} is suddenly empty: is it mounted? If you emptied it yourself, "
                f"`docferry retry --mapping {upload.name}` says so"
            )

    def _report(self, upload: Upload, listing: Listing, state: FolderState) -> None:
        if listing.problem is None:
            state.subfolders.pop(listing.folder, None)
        elif state.subfolders.get(listing.folder) != listing.problem:
            state.subfolders[listing.folder] = listing.problem
            log.warning("subfolder_unreadable", listing.problem, mapping=upload.name)

    async def _forget_folders(self, upload: Upload, visited: set[bytes], broken: Sequence[bytes]) -> None:
        """What lay in folders that are no longer there went with them; what can't be read is not touched."""
        for folder in await self._documents.folders(upload.name) - visited:
            if any(folder == b or folder.startswith(b + b"/") or b == b"" for b in broken):
                continue
            known = (await self._documents.known(upload.name, [folder])).get(folder, set())
            await self._documents.vanished(upload.name, [_join(folder, look[0]) for look in known])

    # -- the hint: some paths ------------------------------------------------------------------------------------

    async def look(self, upload: Upload, paths: Iterable[bytes]) -> None:
        """Look at these paths now: what vanished first, so that a renamed file is followed."""
        seen, folders, absent = await anyio.to_thread.run_sync(_look_at, upload, list(paths))
        known = await self._documents.known(
            upload.name, list({s.folder for s in seen} | {_split(p)[0] for p in absent})
        )
        gone = [path for path in absent if any(look[0] == _split(path)[1] for look in known.get(_split(path)[0], ()))]
        await self._documents.vanished(upload.name, gone)
        fresh = [s for s in seen if (s.name, *_numbers(s)) not in known.get(s.folder, ())]
        await self.sighted(upload, fresh)
        for folder in folders:
            await self.scan(upload, start=folder)

    # -- quiet ---------------------------------------------------------------------------------------------------

    async def sighted(self, upload: Upload, sightings: Iterable[Sighting]) -> None:
        """Plan those that are quiet; the others are watched until they are."""
        wanted = [s for s in sightings if upload.wanted(s.path)]
        ready = [s for s in wanted if self.quiet.offer(upload.name, s, upload.settle, by_watching=upload.poll)]
        if len(ready) < len(wanted):
            self._watching()
        for start in range(0, len(ready), PLANNED_AT_ONCE):
            await self._admit(upload, ready[start : start + PLANNED_AT_ONCE])

    async def ripen(self, uploads: Mapping[str, Upload]) -> None:
        """Look again at files whose time has come."""
        by_mapping: dict[str, list[Sighting]] = {}
        ripe = self.quiet.ripe()
        looked = await anyio.to_thread.run_sync(
            lambda: [_seen(uploads[w.mapping].root, w.path) if w.mapping in uploads else None for w in ripe]
        )
        for watched, sighting in zip(ripe, looked, strict=True):
            if self.quiet.again(watched, None if sighting is None else sighting.stamp) and sighting is not None:
                by_mapping.setdefault(watched.mapping, []).append(sighting)
        for mapping, sightings in by_mapping.items():
            with contextlib.suppress(FolderError):  # the next scan says what is wrong, and finds them when it is over
                for start in range(0, len(sightings), PLANNED_AT_ONCE):
                    await self._admit(uploads[mapping], sightings[start : start + PLANNED_AT_ONCE])

    # -- plan and apply ------------------------------------------------------------------------------------------

    async def _admit(self, upload: Upload, sightings: Sequence[Sighting]) -> None:
        planned: list[Planned] = []
        to_hash: list[tuple[Sighting, Target]] = []
        for sighting in sightings:
            verdict = judge(upload, sighting, self._rules)
            if isinstance(verdict, Planned):
                if verdict.reason is not Reason.EMPTY or not await self._is_open(upload, sighting):
                    planned.append(verdict)
            else:
                to_hash.append((sighting, verdict))
        for group in _groups(to_hash):
            planned += await self._hashed(upload, group)
        planned = await self._without_arrivals(upload, planned)
        if not planned:
            return
        applied = await self._documents.apply(upload.name, planned)
        self.unchanged += applied.unchanged
        if applied.held:
            for each in planned:
                if each.state is State.HELD:
                    path = each.sighting.path
                    log.warning("held", each.detail or "", mapping=upload.name, path=path, reason=str(each.reason))
        log.debug("planned", mapping=upload.name, queued=applied.queued, held=applied.held, unchanged=applied.unchanged)
        self._queued()

    async def _hashed(self, upload: Upload, group: Sequence[tuple[Sighting, Target]]) -> list[Planned]:
        paths = [sighting.path for sighting, _ in group]
        found = await anyio.to_thread.run_sync(digests, upload.root, paths, limiter=self._hashing)
        planned = []
        for (sighting, target), digest in zip(group, found, strict=True):
            if isinstance(digest, SourceUnreadable):
                if self._may_pass(upload, sighting, digest):
                    continue
                planned.append(
                    held(upload, sighting, target, Reason.UNREADABLE, f"{digest}; mend it, then `docferry retry`")
                )
            elif isinstance(digest, SourceVanished):
                continue
            elif isinstance(digest, SourceError) or digest.at_rest is False:
                # It moved under the hash, or somebody still has it open for writing: not complete yet.
                self._wait(upload, sighting)
            else:
                self._stumbled.pop((upload.name, sighting.path), None)
                planned.append(self._adopted(plan(upload, sighting, target, digest, self._clock.now())))
        return planned

    async def _is_open(self, upload: Upload, sighting: Sighting) -> bool:
        """Whether somebody is still about to write the first byte."""
        (found,) = await anyio.to_thread.run_sync(digests, upload.root, [sighting.path])
        if isinstance(found, SourceError) or found.at_rest is not False:
            return False
        self._wait(upload, sighting)
        return True

    def _may_pass(self, upload: Upload, sighting: Sighting, error: SourceUnreadable) -> bool:
        """Disks and shares stumble: what could not be read for another reason than permission is tried again."""
        key = (upload.name, sighting.path)
        cause = error.__cause__
        tries = self._stumbled.pop(key, 0) + 1
        if not isinstance(cause, OSError) or cause.errno in (errno.EACCES, errno.EPERM) or tries >= READ_TRIES:
            return False
        self._stumbled[key] = tries
        self._wait(upload, sighting)
        return True

    def _wait(self, upload: Upload, sighting: Sighting) -> None:
        """Look at it again later."""
        self.quiet.busy(upload.name, sighting, upload.settle, by_watching=upload.poll)
        self._watching()

    def _adopted(self, planned: Planned) -> Planned:
        """After the database was lost a file may be there already: it can have been sent since it was written."""
        if not self._adopt:
            return planned
        stamp = planned.sighting.stamp
        since = min(stamp.mtime_ns, stamp.ctime_ns) / 1e9
        return replace(planned, state=State.DOUBTFUL, sent_since=since)

    async def _without_arrivals(self, upload: Upload, planned: Sequence[Planned]) -> list[Planned]:
        """A file that a download brought is known and not sent back."""
        if not await self._bookmarks.any_arrival():
            return list(planned)
        root = bytes(upload.root)
        absolute = {_join(root, each.sighting.path): each for each in planned}
        came = await self._bookmarks.came_down(list(absolute))
        return [replace(each, target=None) if (path, each.sha256) in came else each for path, each in absolute.items()]


def plan(upload: Upload, sighting: Sighting, target: Target, digest: Digest, now: float) -> Planned:
    """The plan for a file that was read: its name there, and what goes once."""
    uid = secrets.token_hex(16)
    name = upload.remote_name(sighting.path, token=uid[:8], sha256=digest.sha256, now=now)
    once = digest.sha256
    if upload.dedupe == "name":
        once = "name:" + upload.remote_name(sighting.path, token="", sha256="", now=0.0)
    seen = Sighting(sighting.folder, sighting.name, digest.stamp)
    return Planned(seen, target, uid, name, digest.sha256, once)


def judge(upload: Upload, sighting: Sighting, rules: Mapping[str, Rules]) -> Planned | Target:
    """The target of a sighting, or the plan that holds it without a byte read."""
    route = upload.route(sighting.path)
    if route.target is None:
        return held(upload, sighting, Target(upload.to), Reason.UNROUTABLE, f"{escaped(sighting.path)} {route.problem}")
    name = sighting.name.decode("utf-8", "replace")
    broken = rules[upload.to].broken(name, sighting.stamp.size)
    if broken is None and upload.max_size is not None and sighting.stamp.size > upload.max_size:
        broken = (
            Reason.TOO_LARGE,
            f"{sighting.stamp.size:,} bytes are more than this mapping's max_size of {upload.max_size:,}",
        )
    if broken is not None:
        return held(upload, sighting, route.target, broken[0], broken[1])
    return route.target


def held(upload: Upload, sighting: Sighting, target: Target, reason: Reason, detail: str) -> Planned:
    """A plan for a document that a person must see to first."""
    uid = secrets.token_hex(16)
    name = upload.remote_name(sighting.path, token=uid[:8], sha256="", now=0.0)
    return Planned(sighting, target, uid, name, None, f"held:{uid}", State.HELD, reason, detail)


def _look_at(upload: Upload, paths: Sequence[bytes]) -> tuple[list[Sighting], list[bytes], list[bytes]]:
    """What lies at these paths: files, folders to be walked, and paths where nothing is."""
    seen, folders, absent = [], [], []
    for path in paths:
        if not all(upload.enters(folder) for folder in _parents(path)):
            continue
        try:
            sighting = scan.look(upload.root, path)
        except SourceUnreadable:
            continue  # neither there nor gone: the next scan tells
        if sighting is not None:
            seen.append(sighting)
        elif scan.is_folder(upload.root, path):
            if upload.enters(path):
                folders.append(path)
        else:
            absent.append(path)
    return seen, folders, absent


def _seen(root: Path, path: bytes) -> Sighting | None:
    """How a file looks; one that cannot be looked at now is for the next scan to tell of."""
    try:
        return scan.look(root, path)
    except (FolderError, SourceUnreadable):
        return None


def _groups(files: Sequence[tuple[Sighting, Target]]) -> Iterable[Sequence[tuple[Sighting, Target]]]:
    group: list[tuple[Sighting, Target]] = []
    size = 0
    for sighting, target in files:
        if group and (len(group) >= HASHED_AT_ONCE or size + sighting.stamp.size > BYTES_AT_ONCE):
            yield group
            group, size = [], 0
        group.append((sighting, target))
        size += sighting.stamp.size
    if group:
        yield group


def _numbers(sighting: Sighting) -> tuple[int, int, int]:
    return sighting.stamp.size, sighting.stamp.mtime_ns, sighting.stamp.ctime_ns


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _split(path: bytes) -> tuple[bytes, bytes]:
    folder, _, name = path.rpartition(b"/")
    return folder, name


def _parents(path: bytes) -> Iterable[bytes]:
    folder = _split(path)[0]
    while folder:
        yield folder
        folder = _split(folder)[0]
