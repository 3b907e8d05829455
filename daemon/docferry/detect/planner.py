"""From a quiet file to the queue: judge it, hash it, plan where it goes, and apply the plans."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import anyio
import anyio.to_thread

from docferry import logs
from docferry.clock import Clock
from docferry.errors import SourceError, SourceUnreadable, SourceVanished
from docferry.files.hashing import digests
from docferry.model import Digests, Reason, SeenFile, State, Target, escaped
from docferry.remotes.protocol import Rules
from docferry.settings import Upload
from docferry.store.cursors import Cursors
from docferry.store.documents import Documents
from docferry.store.enqueue import Planned
from docferry.store.old_copy import REASON as OLD_COPY
from docferry.wakeups import Wakeups

log = logs.get("planner")

#: Files hashed in one visit to a thread: few enough that a stop is not kept waiting, by number and by bytes.
HASHED_AT_ONCE = 64
BYTES_AT_ONCE = 16 * 1024 * 1024
#: A file that the disk does not give out is held after so many tries.
READ_TRIES = 4
#: Documents planned in one commit: each one writes most pages of the indexes that are by digest, which lie all about.
PLANNED_AT_ONCE = 1024
#: Large ones are planned sooner, by their bytes: the first are on their way while the next are read.
PLANNED_BYTES = 64 * 1024 * 1024


class Planner:
    """Takes files that are quiet. One that turns out not to be complete yet is told to `wait`."""

    def __init__(
        self,
        *,
        documents: Documents,
        cursors: Cursors,
        rules: Mapping[str, Rules],
        clock: Clock,
        wakeups: Wakeups,
        wait: Callable[[Upload, SeenFile], None],
        adopt: float,
    ) -> None:
        self._documents = documents
        self._cursors = cursors
        self._rules = rules
        self._clock = clock
        self._wakeups = wakeups
        self._wait = wait
        self._adopt = adopt  # a queue was lost: files from before this time (wall seconds) may be at the remote already
        self.unchanged = 0  # files that turned out to be what was known: touched, or copies
        self._hashing = anyio.CapacityLimiter(2)
        self._stumbled: dict[tuple[str, bytes], int] = {}  # how often a file could not be read

    async def admit(self, upload: Upload, seen_files: Sequence[SeenFile]) -> None:
        """Plan them, so many in one commit."""
        for start in range(0, len(seen_files), PLANNED_AT_ONCE):
            await self._admit(upload, seen_files[start : start + PLANNED_AT_ONCE])

    async def _admit(self, upload: Upload, seen_files: Sequence[SeenFile]) -> None:
        planned: list[Planned] = []
        to_hash: list[tuple[SeenFile, Target]] = []
        for seen_file in seen_files:
            verdict = judge(upload, seen_file, self._rules)
            if isinstance(verdict, Planned):
                if verdict.reason is not Reason.EMPTY or not await self._is_open(upload, seen_file):
                    planned.append(verdict)
            else:
                to_hash.append((seen_file, verdict))
        for group in _groups(to_hash):
            planned += await self._hashed(upload, group)
            if sum(each.seen_file.stamp.size for each in planned) >= PLANNED_BYTES:
                await self._apply(upload, planned)
                planned = []
        await self._apply(upload, planned)

    async def _apply(self, upload: Upload, plans: Sequence[Planned]) -> None:
        planned = await self._without_arrivals(upload, plans)
        if not planned:
            return
        applied = await self._documents.apply(upload.name, planned)
        self.unchanged += applied.unchanged
        if applied.held:
            for each in planned:
                if each.state is State.HELD:
                    path = each.seen_file.path
                    log.warning("held", each.detail or "", mapping=upload.name, path=path, reason=str(each.reason))
        log.debug("planned", mapping=upload.name, queued=applied.queued, held=applied.held, unchanged=applied.unchanged)
        self._wakeups.queue_changed()

    async def _hashed(self, upload: Upload, group: Sequence[tuple[SeenFile, Target]]) -> list[Planned]:
        paths = [seen_file.path for seen_file, _ in group]
        read = partial(digests, upload.root, paths, md5=self._rules[upload.to].needs_md5)
        found = await anyio.to_thread.run_sync(read, limiter=self._hashing)
        planned = []
        for (seen_file, target), reading in zip(group, found, strict=True):
            if isinstance(reading, SourceUnreadable):
                if self._may_pass(upload, seen_file, reading):
                    continue
                planned.append(
                    held(upload, seen_file, target, Reason.UNREADABLE, f"{reading}; mend it, then `docferry retry`")
                )
            elif isinstance(reading, SourceVanished):
                continue
            elif isinstance(reading, SourceError) or reading.digests is None:
                # It moved under the hash, or somebody still has it open for writing: not complete yet.
                self._wait(upload, seen_file)
            else:
                self._stumbled.pop((upload.name, seen_file.path), None)
                as_read = seen_file if reading.stamp == seen_file.stamp else replace(seen_file, stamp=reading.stamp)
                planned.append(self._adopted(plan(upload, as_read, target, reading.digests, self._clock.now())))
        return planned

    async def _is_open(self, upload: Upload, seen_file: SeenFile) -> bool:
        """Whether somebody is still about to write the first byte."""
        (found,) = await anyio.to_thread.run_sync(digests, upload.root, [seen_file.path])
        if isinstance(found, SourceError) or found.no_writer is not False:
            return False
        self._wait(upload, seen_file)
        return True

    def _may_pass(self, upload: Upload, seen_file: SeenFile, error: SourceUnreadable) -> bool:
        """Disks and shares stumble: what could not be read for another reason than permission is tried again."""
        key = (upload.name, seen_file.path)
        cause = error.__cause__
        tries = self._stumbled.pop(key, 0) + 1
        if not isinstance(cause, OSError) or cause.errno in (errno.EACCES, errno.EPERM) or tries >= READ_TRIES:
            return False
        self._stumbled[key] = tries
        self._wait(upload, seen_file)
        return True

    def _adopted(self, planned: Planned) -> Planned:
        """After the database was lost a file may be there already: it can have been sent since it was written."""
        stamp = planned.seen_file.stamp
        if stamp.ctime_ns / 1e9 >= self._adopt:
            return planned
        since = min(stamp.mtime_ns, stamp.ctime_ns) / 1e9
        return replace(planned, state=State.DOUBTFUL, reason=OLD_COPY, sent_since=since)

    async def _without_arrivals(self, upload: Upload, planned: Sequence[Planned]) -> list[Planned]:
        """A file that a download brought is known and not sent back."""
        if not await self._cursors.any_arrival():
            return list(planned)
        root = bytes(upload.root)
        absolute = {root + b"/" + each.seen_file.path: each for each in planned}
        came = await self._cursors.came_down(list(absolute))
        return [replace(each, target=None) if (path, each.sha256) in came else each for path, each in absolute.items()]


def plan(upload: Upload, seen_file: SeenFile, target: Target, digests: Digests, now: float) -> Planned:
    """The plan for a file that was read when it looked like this: its name there, and what goes once."""
    uid = secrets.token_hex(16)
    name = upload.remote_name(seen_file.path, token=uid[:8], sha256=digests.sha256, now=now)
    once = digests.sha256
    if upload.dedupe == "name":
        once = "name:" + upload.remote_name(seen_file.path, token="", sha256="", now=0.0)
    return Planned(seen_file, target, uid, name, digests.sha256, once, fingerprint=digests.fingerprint, md5=digests.md5)


def judge(upload: Upload, seen_file: SeenFile, rules: Mapping[str, Rules]) -> Planned | Target:
    """The target of a sighting, or the plan that holds it without a byte read."""
    route = upload.route(seen_file.path)
    if route.target is None:
        return held(
            upload, seen_file, Target(upload.to), Reason.UNROUTABLE, f"{escaped(seen_file.path)} {route.problem}"
        )
    name = seen_file.name.decode("utf-8", "replace")
    broken = rules[upload.to].broken(name, seen_file.stamp.size)
    if broken is None and upload.max_size is not None and seen_file.stamp.size > upload.max_size:
        broken = (
            Reason.TOO_LARGE,
            f"{seen_file.stamp.size:,} bytes are more than this mapping's max_size of {upload.max_size:,}",
        )
    if broken is not None:
        return held(upload, seen_file, route.target, broken[0], broken[1])
    return route.target


def held(upload: Upload, seen_file: SeenFile, target: Target, reason: Reason, detail: str) -> Planned:
    """A plan for a document that a person must see to first."""
    uid = secrets.token_hex(16)
    name = upload.remote_name(seen_file.path, token=uid[:8], sha256="", now=0.0)
    return Planned(seen_file, target, uid, name, None, f"held:{uid}", State.HELD, reason, detail)


def _groups(files: Sequence[tuple[SeenFile, Target]]) -> Iterable[Sequence[tuple[SeenFile, Target]]]:
    group: list[tuple[SeenFile, Target]] = []
    size = 0
    for seen_file, target in files:
        if group and (len(group) >= HASHED_AT_ONCE or size + seen_file.stamp.size > BYTES_AT_ONCE):
            yield group
            group, size = [], 0
        group.append((seen_file, target))
        size += seen_file.stamp.size
    if group:
        yield group
