"""Plan quiet files as rows of the queue: validate and hash them, plan their transfers, and commit the plans."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final
from unicodedata import normalize

import anyio
import anyio.to_thread
from msgspec.structs import replace

from docferry import logs
from docferry.clock import Clock
from docferry.detect.screening import Screening, inspector
from docferry.errors import SourceError, SourceUnreadable, SourceVanished
from docferry.files.folder_thread import run_in_folder
from docferry.files.hashing import HashedFile, hash_files
from docferry.files.safe_open import Root
from docferry.model import Digests, Reason, SeenFile, State, Target, escaped
from docferry.remotes.protocol import Rules
from docferry.settings import Upload
from docferry.store.documents import Documents
from docferry.store.downloads import DownloadedFile, Downloads
from docferry.store.enqueue import OBJECT_KEY
from docferry.store.old_copy import adopted
from docferry.store.plan_table import Exclusion, Planned
from docferry.wakeups import Wakeups

log = logs.get("planner")

#: Files and bytes that one call in a thread hashes: few, so that callers alternate and a stop is prompt.
HASHED_AT_ONCE: Final = 64
BYTES_AT_ONCE: Final = 16 * 1024 * 1024
#: Failed reads of a file before it is held; missing permission holds it at once.
READ_TRIES: Final = 4
#: Documents of one commit. With a million rows it writes almost two pages of the index by digest for each of them; more
#: documents exceed the page cache, and transitions wait longer for the writer than the prefetched documents last.
PLANNED_AT_ONCE: Final = 512
#: Bytes of one commit: large documents are sent while the next ones are read.
PLANNED_BYTES: Final = 64 * 1024 * 1024
#: The longest dedupe key, bytes: an entry of PostgreSQL's index has at most 2,704.
LONGEST_KEY: Final = 2_000
#: The log message of a document whose remote name is taken by another document.
NAME_TAKEN: Final = "its name at the remote is taken by another file or version; rename it, or let names differ"
#: The number of held documents of one mapping and reason that are logged singly; the others are only counted.
LOGGED_SINGLY: Final = 5


class Planner:
    """Plan the transfers of quiet files."""

    def __init__(
        self,
        documents: Documents,
        downloads: Downloads,
        rules: Mapping[str, Rules],
        clock: Clock,
        wakeups: Wakeups,
        *,
        adopt: float = 0.0,
    ) -> None:
        self._documents = documents
        self._downloads = downloads
        self._rules = rules
        self._clock = clock
        self._wakeups = wakeups
        # The database was lost or is old: the remote may already have files from before this wall time.
        self._adopt = adopt
        self.unchanged = 0  # files found to be known already: touched, renamed or copied
        self.refused: dict[str, dict[bytes, str]] = {}  # why files are not queued, since the last scan of a mapping
        self._screening = Screening(clock)
        self._hashing = anyio.CapacityLimiter(2)  # first come, first served: top-level folders alternate
        self._hashing_large = anyio.CapacityLimiter(1)  # large files never occupy both threads
        self._failed_reads: Counter[tuple[str, bytes]] = Counter()
        self._held: Counter[tuple[str, str]] = Counter()  # by mapping and reason, since this process started
        self._unlogged: Counter[tuple[str, str]] = Counter()

    async def enqueue(self, upload: Upload, seen_files: Sequence[SeenFile]) -> list[SeenFile]:
        """Plan quiet files, and return the incomplete ones. Raises FolderError."""
        incomplete: list[SeenFile] = []
        for start in range(0, len(seen_files), PLANNED_AT_ONCE):
            await self._enqueue(upload, seen_files[start : start + PLANNED_AT_ONCE], incomplete)
        return incomplete

    def is_read_alone(self, upload: Upload, seen_file: SeenFile) -> bool:
        """Return whether a file takes long to read, so that others should not wait for it.

        A rule may hold it unread.
        """
        return seen_file.stamp.size > BYTES_AT_ONCE and isinstance(validate(upload, seen_file, self._rules), Target)

    def log_held(self, mapping: str) -> None:
        """Log the number of held documents that were not logged singly."""
        for key in [key for key in self._unlogged if key[0] == mapping]:
            count = self._unlogged.pop(key)
            advice = f"{count:,} more documents are held; list them: docferry list --state held --reason {key[1]}"
            log.warning("held", advice, mapping=mapping, reason=key[1], documents=count)

    async def _enqueue(self, upload: Upload, seen_files: Sequence[SeenFile], incomplete: list[SeenFile]) -> None:
        planned: list[Planned] = []
        to_hash: list[tuple[SeenFile, Target]] = []
        empty: list[Planned] = []
        for seen_file in seen_files:
            if self._screening.awaits(upload, seen_file):
                incomplete.append(seen_file)
                continue
            validated = validate(upload, seen_file, self._rules)
            if isinstance(validated, Target):
                to_hash.append((seen_file, validated))
            elif validated.reason is Reason.EMPTY:
                empty.append(validated)
            else:
                planned.append(validated)
        planned += await self._without_writer(upload, empty, incomplete)
        for group in _groups(to_hash):
            planned += await self._hash_and_plan(upload, group, incomplete)
            if sum(each.seen_file.stamp.size for each in planned) >= PLANNED_BYTES:
                incomplete += await self._apply(upload, planned)
                planned = []
        incomplete += await self._apply(upload, planned)

    async def _apply(self, upload: Upload, plans: Sequence[Planned]) -> Sequence[SeenFile]:
        """Commit plans, and return the files that must wait until their earlier version is sent."""
        planned = await self._without_downloads(upload, plans)
        if not planned:
            return ()
        applied = await self._documents.apply(upload.name, planned)
        self.unchanged += applied.unchanged
        if applied.held:
            for each in planned:
                if each.state is State.HELD and each.target is not None:
                    self._log_held(upload.name, each.seen_file.path, each.reason, each.detail)
        for seen_file, why in applied.refused:
            self.refused.setdefault(upload.name, {})[seen_file.path] = f"{escaped(seen_file.path)} is not queued: {why}"
        for seen_file in applied.taken:
            self._log_held(upload.name, seen_file.path, Reason.NAME_TAKEN, NAME_TAKEN)
        log.debug("planned", mapping=upload.name, queued=applied.queued, held=applied.held, unchanged=applied.unchanged)
        self._wakeups.queue_changed()
        return applied.deferred

    def _log_held(self, mapping: str, path: bytes, reason: str | None, detail: str | None) -> None:
        key = (mapping, str(reason))
        self._held[key] += 1
        if self._held[key] <= LOGGED_SINGLY:
            log.warning("held", detail or "", mapping=mapping, path=path, reason=key[1])
        else:
            self._unlogged[key] += 1

    async def _hash_and_plan(
        self, upload: Upload, group: Sequence[tuple[SeenFile, Target]], incomplete: list[SeenFile]
    ) -> list[Planned]:
        found = await self._hash(upload, [seen_file for seen_file, _ in group])
        planned = []
        for (seen_file, target), hashed in zip(group, found, strict=True):
            if isinstance(hashed, SourceVanished):
                continue
            if isinstance(hashed, SourceUnreadable):
                if self._may_recover(upload, seen_file, hashed):
                    incomplete.append(seen_file)
                else:
                    detail = f"{hashed}; repair it, then run `docferry retry`"
                    planned.append(held(upload, seen_file, target, Reason.UNREADABLE, detail))
            elif isinstance(hashed, SourceError) or hashed.digests is None:
                incomplete.append(seen_file)  # it changed while it was read, or a program has it open for writing
            else:
                self._failed_reads.pop((upload.name, seen_file.path), None)
                as_read = seen_file if hashed.stamp == seen_file.stamp else replace(seen_file, stamp=hashed.stamp)
                made = plan(upload, as_read, target, hashed.digests, self._clock.now())
                screened = self._screening.screen(upload, made, hashed.fault)
                if screened is None:
                    incomplete.append(as_read)
                else:
                    planned.append(adopted(screened, self._adopt))
        return planned

    async def _hash(self, upload: Upload, seen_files: Sequence[SeenFile]) -> list[HashedFile | SourceError]:
        paths = [seen_file.path for seen_file in seen_files]
        needs_md5 = self._rules[upload.to].needs_md5
        work = partial(hash_files, Root.of(upload), paths, md5=needs_md5, inspect=inspector(upload))
        if seen_files[0].stamp.size <= BYTES_AT_ONCE:
            return await run_in_folder(Root.of(upload), work, limiter=self._hashing)
        async with self._hashing_large:
            return await run_in_folder(Root.of(upload), work, limiter=self._hashing)

    async def _without_writer(
        self, upload: Upload, empty: Sequence[Planned], incomplete: list[SeenFile]
    ) -> list[Planned]:
        """Return the plans of files that are still empty and that no program has open for writing."""
        planned = []
        for start in range(0, len(empty), HASHED_AT_ONCE):
            group = empty[start : start + HASHED_AT_ONCE]
            found = await self._hash(upload, [each.seen_file for each in group])
            for each, hashed in zip(group, found, strict=True):
                if isinstance(hashed, SourceVanished):
                    continue
                if isinstance(hashed, HashedFile):  # a writer may have filled and closed it since the scan
                    is_empty = hashed.no_writer is not False and hashed.stamp == each.seen_file.stamp
                else:
                    is_empty = isinstance(hashed, SourceUnreadable)
                if is_empty:
                    planned.append(each)
                else:
                    incomplete.append(each.seen_file)
        return planned

    def _may_recover(self, upload: Upload, seen_file: SeenFile, error: SourceUnreadable) -> bool:
        """Return whether to retry an unreadable file: disks and shares fail temporarily, permissions do not."""
        key = (upload.name, seen_file.path)
        self._failed_reads[key] += 1
        cause = error.__cause__
        denied = not isinstance(cause, OSError) or cause.errno in (errno.EACCES, errno.EPERM)
        if denied or self._failed_reads[key] >= READ_TRIES:
            del self._failed_reads[key]
            return False
        return True

    async def _without_downloads(self, upload: Upload, planned: Sequence[Planned]) -> list[Planned]:
        """Remove the target from plans whose bytes came from a download, so that they are not sent back.

        At Codat the digest decides, wherever a person moved or copied the file below a folder of the company. At Wootiv
        an object belongs to its name, so the path must match, too.
        """
        digests = {each.sha256 for each in planned if each.sha256 is not None}
        if not digests or not await self._downloads.exist():
            return list(planned)
        files: dict[str, list[DownloadedFile]] = {}
        for file in await self._downloads.with_digests(digests):
            files.setdefault(file.sha256, []).append(file)
        if not files:
            return list(planned)
        return await run_in_folder(Root.of(upload), _without_targets, upload, planned, files)


def _without_targets(
    upload: Upload, planned: Sequence[Planned], files: Mapping[str, Sequence[DownloadedFile]]
) -> list[Planned]:
    root = os.path.realpath(Root.of(upload).raw)

    def is_downloaded(each: Planned, file: DownloadedFile) -> bool:
        company = each.target.company_id if each.target else None
        if company is not None and file.origin.startswith(f"{company}/"):
            return True
        path = os.path.join(root, each.seen_file.path)  # noqa: PTH118 - paths of bytes
        return file.path is not None and os.path.realpath(file.path) == path

    return [
        replace(each, target=None)
        if any(is_downloaded(each, file) for file in files.get(each.sha256 or "", ()))
        else each
        for each in planned
    ]


def plan(upload: Upload, seen_file: SeenFile, target: Target, digests: Digests, now: float) -> Planned:
    """Return the plan of a file that was read with this stamp, with its remote name and dedupe key."""
    uid = secrets.token_hex(16)
    name = upload.remote_name(seen_file.path, token=uid[:8], sha256=digests.sha256, now=now)
    key, exclusion = _dedupe(upload, seen_file, name, digests.sha256)
    return Planned(
        seen_file,
        target,
        uid,
        name,
        digests.sha256,
        _shortened(key),
        fingerprint=digests.fingerprint,
        md5=digests.md5,
        exclusion=exclusion,
    )


def _dedupe(upload: Upload, seen_file: SeenFile, remote_name: str, sha256: str) -> tuple[str, Exclusion]:
    """Return the dedupe key of a document, and its scope.

    At Wootiv an object holds the bytes of one file at a time. Object names are compared without case, because a file
    system without case may receive copies. At Codat the setting `dedupe` decides.
    """
    if upload.to == "wootiv":
        volatile = upload.remote_name(seen_file.path, token="", sha256=sha256, now=0.0) != remote_name
        return OBJECT_KEY + normalize("NFC", remote_name).casefold(), "volatile" if volatile else "object"
    if upload.dedupe == "content":
        return sha256, "content"
    name = upload.remote_name(seen_file.path, token="", sha256="", now=0.0)
    return (f"name:{name}", "name") if upload.dedupe == "name" else (f"file:{name}:{sha256}", "content")


def _shortened(key: str) -> str:
    """Return a dedupe key that fits into an index: a long name becomes its digest, after a slash as in no name."""
    if len(key) <= LONGEST_KEY // 4 or len(written := key.encode("utf-8", "surrogateescape")) <= LONGEST_KEY:
        return key
    return f"{key.partition(':')[0]}:/{hashlib.sha256(written).hexdigest()}"


def validate(upload: Upload, seen_file: SeenFile, rules: Mapping[str, Rules]) -> Planned | Target:
    """Return the target of a file, or the plan that holds it for breaking a rule. Read no byte of the file."""
    route = upload.route(seen_file.path)
    if route.target is None:
        detail = f"{escaped(seen_file.path)} {route.problem}"
        return held(upload, seen_file, Target(upload.to), Reason.UNROUTABLE, detail)
    name = seen_file.name.decode("utf-8", "replace")
    size = seen_file.stamp.size
    broken = rules[upload.to].broken(name, size)
    if broken is None and upload.max_size is not None and size > upload.max_size:
        broken = Reason.TOO_LARGE, f"{size:,} bytes are more than this mapping's max_size of {upload.max_size:,}"
    if broken is not None:
        return held(upload, seen_file, route.target, broken[0], broken[1])
    return route.target


def held(upload: Upload, seen_file: SeenFile, target: Target, reason: Reason, detail: str) -> Planned:
    """Return a plan that holds a document until a person acts."""
    uid = secrets.token_hex(16)
    name = upload.remote_name(seen_file.path, token=uid[:8], sha256="", now=0.0)
    return Planned(seen_file, target, uid, name, None, f"held:{uid}", State.HELD, reason, detail)


def _groups(files: Sequence[tuple[SeenFile, Target]]) -> Iterable[Sequence[tuple[SeenFile, Target]]]:
    """Divide files into groups of at most HASHED_AT_ONCE files and BYTES_AT_ONCE bytes.

    A larger file is its own group.
    """
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
