"""Compare the mapped folders with the documents in the database, and plan new, changed and gone files."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint
from msgspec import Struct, field

from docferry import logs
from docferry.clock import Clock
from docferry.detect.debounce import Debouncer
from docferry.detect.left_out import LeftOut
from docferry.detect.planner import Planner
from docferry.errors import FolderError, SourceUnreadable, StatementRefused
from docferry.files import outbox, scan, sent_files
from docferry.files.folder_thread import run_in_folder
from docferry.files.safe_open import OpenRoot, Root
from docferry.files.scan import Listing
from docferry.model import SeenFile, joined, parted
from docferry.remotes.protocol import Rules
from docferry.settings import Upload
from docferry.settings.outbox import Outbox
from docferry.store.documents import Documents
from docferry.store.downloads import Downloads
from docferry.wakeups import Wakeups

log = logs.get("reconciler")

#: Files of a scan that are compared together, to reduce calls to the database's thread.
COMPARED_AT_ONCE: Final = 4000


#: Files offered to the debouncer before other tasks may run.
OFFERED_AT_ONCE: Final = 256
#: Top-level folders with more quiet files than this are planned after smaller ones.
LARGE_GROUP: Final = 256


class FolderState(Struct):
    """Hold the state of one mapping's folder, for `status`."""

    problem: str | None = None
    root: tuple[int, int] | None = None  # device and inode of a shared folder when it was checked
    watch: str = "not watched yet"
    unwatched: dict[bytes, str] = field(default_factory=dict)  # top-level folders without a watch, with the reason
    last_scan: float | None = None
    reading: float = 0.0  # seconds of the last scan for reading and comparing, without planning
    known: int = 0  # files of the last scan with an unchanged document
    subfolders: dict[bytes, str] = field(default_factory=dict)  # unreadable files and folders, with the reason
    left_out: list[str] = field(default_factory=list)  # sentences about files that are not documents


class WalkResult(Struct):
    """Hold the results of one walk."""

    folders: set[bytes] = field(default_factory=set)  # read completely
    broken: set[bytes] = field(default_factory=set)  # read in part, or not at all
    left_out: LeftOut = field(default_factory=LeftOut)
    known: int = 0  # files with an unchanged document
    seconds: float = 0.0  # of reading and comparing


class Examined(Struct):
    """Hold the files and folders found at some paths."""

    seen: list[SeenFile] = field(default_factory=list)
    folders: list[bytes] = field(default_factory=list)  # to be walked
    absent: list[bytes] = field(default_factory=list)
    unreadable: list[bytes] = field(default_factory=list)  # the disk gave no answer for these


class Reconciler:
    """Bring the database in line with the mapped folders, without any request to a remote."""

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
        self._clock = clock
        self._wakeups = wakeups
        self.debouncer = Debouncer(clock)
        self.planner = Planner(documents, downloads, rules, clock, wakeups, adopt=adopt)
        self.folders: dict[str, FolderState] = {}

    def state(self, mapping: str) -> FolderState:
        """Return the state of a mapping's folder."""
        return self.folders.setdefault(mapping, FolderState())

    async def detect_retarget(self, upload: Upload) -> None:
        """Plan documents again that a changed configuration of the mapping affects: target, patterns or limits."""
        names = f" {upload.object_name}" if upload.to == "wootiv" else ""
        # Hosts may mount a share at different paths.
        folder = upload.folder.removeprefix(str(upload.root)) if upload.shared else upload.folder
        target = f"{upload.to} {folder} {upload.company_id} {upload.connection_id}{names}"
        await self._documents.set_target(upload.name, target)
        rules = [upload.include, upload.exclude, upload.builtin_excludes, upload.max_size]
        written = hashlib.sha256(json.dumps(rules).encode()).hexdigest()
        if await self._documents.have_rules_changed(upload.name, written):
            await self._drop_excluded(upload)
            await self._documents.forget_held_stamps(upload.name)

    async def _drop_excluded(self, upload: Upload) -> None:
        """Mark documents as gone that the configuration no longer includes, in any state."""
        for folder in await self._documents.folders(upload.name):
            known = (await self._documents.known(upload.name, [folder])).get(folder, set())
            paths = [joined(folder, entry[0]) for entry in known]
            await self._documents.mark_gone(upload.name, [path for path in paths if not _is_document(upload, path)])

    # -- scans ---------------------------------------------------------------------------------------------------

    async def scan(self, upload: Upload) -> None:
        """Walk a mapping's folder and plan its changes.

        Raises FolderError if it cannot be read, and StatementRefused if its documents cannot be.
        """
        state = self.state(upload.name)
        self.planner.refused.pop(upload.name, None)
        if isinstance(upload, Outbox) and upload.replaces:
            with contextlib.suppress(OSError):  # the next scan tries again
                await anyio.to_thread.run_sync(outbox.remove_replaced, upload.root)
        try:
            upload.assert_answering()
            walked = await self._walk(upload, scan.WHOLE)
            await self._forget_folders(upload, walked)
        except (FolderError, StatementRefused) as error:
            if state.problem is None:
                log.error("folder_unavailable", str(error), mapping=upload.name)
            state.problem = str(error)
            raise
        if state.problem is not None:
            log.info("folder_available", "the folder can be read again", mapping=upload.name)
        state.problem = None
        state.known, state.reading = walked.known, walked.seconds
        state.subfolders = {folder: why for folder, why in state.subfolders.items() if folder in walked.broken}
        self._report_left_out(upload, state, walked.left_out)
        state.last_scan = self._clock.now()
        self._wakeups.scanned(upload.name)

    async def scan_folders(self, upload: Upload, folders: Iterable[bytes]) -> None:
        """Walk some top-level folders of a mapping and plan their changes. Raises FolderError."""
        starts = sorted(folders)
        if b"" in starts:
            await self.scan(upload)
        elif starts:
            await self._walk(upload, starts)

    async def _walk(self, upload: Upload, starts: Sequence[bytes]) -> WalkResult:
        root, walked = Root.of(upload), WalkResult()
        steps = scan.walk(root, upload, starts=starts, chunk=COMPARED_AT_ONCE)
        began = self._clock.steady()
        while chunk := await run_in_folder(root, next, steps, None):
            if starts is scan.WHOLE and not (walked.folders or walked.broken):
                await self._assert_not_emptied(upload, chunk[0])
            self._report_problems(upload, chunk)
            await self._restore_set_aside(upload, chunk)
            for listing in chunk:
                walked.left_out.add_listing(listing)
            whole = [(listing.folder, listing.files) for listing in chunk if listing.problem is None]
            walked.broken.update(listing.folder for listing in chunk if listing.problem is not None)
            walked.folders.update(folder for folder, _ in whole)
            found = await self._documents.differences(upload.name, whole)
            walked.known += found.known
            if found.gone:
                gone = await run_in_folder(root, _still_absent, root, found.gone, self.state(upload.name).root)
                await self._documents.mark_gone(upload.name, gone)
            walked.seconds += self._clock.steady() - began
            whole.clear()
            # drop the reference: planning takes long, and the list of a large folder would stay in memory
            chunk.clear()
            _small_groups_last(found.fresh)
            while found.fresh:
                await self._offer(upload, found.fresh[-COMPARED_AT_ONCE:], walked.left_out)
                del found.fresh[-COMPARED_AT_ONCE:]
            began = self._clock.steady()
        walked.left_out.documents += walked.known
        self.planner.log_held(upload.name)
        return walked

    async def _assert_not_emptied(self, upload: Upload, root: Listing) -> None:
        if upload.may_be_empty or root.files or root.folders:
            return
        if await self._documents.any_present(upload.name):
            raise FolderError(
                f"{Root.of(upload).shown} is suddenly empty: is its file system mounted? If it was emptied on purpose, "
                f"run `docferry retry --mapping {upload.name}`, or set may_be_empty = true in the mapping"
            )

    def _report_problems(self, upload: Upload, chunk: Sequence[Listing]) -> None:
        state = self.state(upload.name)
        for listing in chunk:
            if listing.problem is None:
                state.subfolders.pop(listing.folder, None)
            elif state.subfolders.get(listing.folder) != listing.problem:
                state.subfolders[listing.folder] = listing.problem
                log.warning("subfolder_unreadable", listing.problem, mapping=upload.name)

    def _report_left_out(self, upload: Upload, state: FolderState, left_out: LeftOut) -> None:
        sentences = left_out.sentences(upload)
        if sentences and not state.left_out:
            log.info("files_left_out", "; ".join(sentences), mapping=upload.name)
        state.left_out = sentences

    async def _restore_set_aside(self, upload: Upload, chunk: Sequence[Listing]) -> None:
        """Restore files that a killed process had set aside to remove after their upload."""
        root = Root.of(upload)
        for listing in chunk:
            for name in listing.hidden:
                if name.startswith(sent_files.ASIDE_PREFIX):
                    restored = await run_in_folder(root, sent_files.restore, root, listing.folder, name)
                    if restored:
                        self._wakeups.check_paths(upload.name, restored)
                        log.info("files_restored", mapping=upload.name, folder=listing.folder, files=len(restored))

    async def _forget_folders(self, upload: Upload, walked: WalkResult) -> None:
        """Mark documents as gone whose folder no longer exists. Skip folders that cannot be read."""
        for folder in await self._documents.folders(upload.name) - walked.folders:
            if any(folder == b or folder.startswith(b + b"/") or b == b"" for b in walked.broken):
                continue
            if await run_in_folder(Root.of(upload), _is_walked, upload, folder, self.state(upload.name).root):
                continue  # created after the walk had read its parent
            known = (await self._documents.known(upload.name, [folder])).get(folder, set())
            await self._documents.mark_gone(upload.name, [joined(folder, entry[0]) for entry in known])

    # -- hints ---------------------------------------------------------------------------------------------------

    async def check_paths(self, upload: Upload, paths: Sequence[bytes], *, large: bool = False) -> None:
        """Examine these paths and plan their changes; with `large`, also large files. Raises FolderError.

        Absent paths are handled first, so that a renamed file keeps its transfer.
        """
        upload.assert_answering()
        root = self.state(upload.name).root
        examined = await run_in_folder(Root.of(upload), _examine, upload, list(paths), root)
        known = await self._documents.stamps(upload.name, [*(s.path for s in examined.seen), *examined.absent])
        await self._documents.mark_gone(upload.name, [path for path in examined.absent if path in known])
        changed = [s for s in examined.seen if known.get(s.path) != s.stamp]
        for path in examined.unreadable:
            self.debouncer.keep(upload.name, path)
        kept = {*(s.path for s in changed), *examined.unreadable}
        for path in paths:
            if path not in kept:
                self.debouncer.forget(upload.name, path)
        await self._offer(upload, changed, large=large)
        if examined.folders:
            await self._walk(upload, examined.folders)
        self.planner.log_held(upload.name)

    async def _offer(
        self, upload: Upload, seen_files: Iterable[SeenFile], left_out: LeftOut | None = None, *, large: bool = False
    ) -> None:
        """Plan the quiet files; the debouncer keeps the others.

        Reading a large file takes as long as planning thousands of others. Without `large`, a large file is deferred to
        a batch of its own.
        """
        wanted, quiet, unwanted_paths = [], [], []
        settle, by_watching, debouncer = upload.settle, upload.poll, self.debouncer
        for number, seen_file in enumerate(seen_files, 1):
            if number % OFFERED_AT_ONCE == 0:
                await checkpoint()  # thousands of files must not block the event loop
            if upload.wanted(seen_file.path):
                wanted.append(seen_file)
                if debouncer.offer(upload.name, seen_file, settle, by_watching=by_watching):
                    quiet.append(seen_file)
            else:
                unwanted_paths.append(seen_file.path)
                debouncer.forget(upload.name, seen_file.path)
        if left_out is not None:
            left_out.documents += len(wanted)
            left_out.add_unwanted(upload, unwanted_paths)
        is_any_unsettled = len(quiet) < len(wanted)
        if not large and (deferred := [s.path for s in quiet if self.planner.is_read_alone(upload, s)]):
            self._wakeups.check_large_paths(upload.name, deferred)
            quiet = [s for s in quiet if not self.planner.is_read_alone(upload, s)]
        incomplete = []
        for group in _by_size(quiet):
            incomplete += await self.planner.enqueue(upload, group)
        for seen_file in incomplete:
            self.debouncer.postpone(upload.name, seen_file, upload.settle, by_watching=upload.poll)
        if incomplete or is_any_unsettled:
            self._wakeups.debounce_changed()


def _small_groups_last(seen_files: list[SeenFile]) -> None:
    """Sort files of small top-level folders last, because the planner takes from the end."""
    sizes = Counter(scan.top_level(s.path) for s in seen_files)
    if len(sizes) > 1:
        seen_files.sort(key=lambda s: -sizes[scan.top_level(s.path)])


def _by_size(seen_files: Sequence[SeenFile]) -> list[list[SeenFile]]:
    """Divide files into those of small top-level folders, and those of each large one, which are planned later."""
    groups: dict[bytes, list[SeenFile]] = {}
    for seen_file in seen_files:
        groups.setdefault(scan.top_level(seen_file.path), []).append(seen_file)
    small = [s for group in groups.values() if len(group) <= LARGE_GROUP for s in group]
    return [small, *(group for group in groups.values() if len(group) > LARGE_GROUP)]


@contextlib.contextmanager
def _opened(root: Root, identity: tuple[int, int] | None) -> Iterator[OpenRoot]:
    """Open a root. Raises FolderError if its identity has changed, so that no document is marked gone."""
    with OpenRoot(root) as opened:
        if identity is not None and opened.identity != identity:
            raise FolderError(f"{root.shown} is another folder than before: was its share unmounted?")
        yield opened


def _examine(upload: Upload, paths: Sequence[bytes], identity: tuple[int, int] | None) -> Examined:
    """Return the content of these paths.

    A new tree causes a hint for each folder; only its topmost folder is walked.
    """
    found = Examined()
    walked = set[bytes]()
    with _opened(Root.of(upload), identity) as opened:
        for path in sorted(paths):  # a folder precedes its content
            parents = _parents(path)
            if not all(upload.enters(folder) for folder in parents):
                continue
            try:
                seen_file = scan.stat_file(opened, path)
            except SourceUnreadable:
                found.unreadable.append(path)  # unknown, neither present nor gone: examine it again
                continue
            is_walked = not walked.isdisjoint(parents)
            if seen_file is not None:
                found.seen += [] if is_walked else [seen_file]
            elif opened.is_folder(path):
                if upload.enters(path) and not is_walked:
                    walked.add(path)
            else:
                found.absent.append(path)
    found.folders = list(walked)
    return found


def _still_absent(root: Root, paths: Sequence[bytes], identity: tuple[int, int] | None) -> list[bytes]:
    """Return the paths, unseen by scans, that are absent now: a file may have appeared and been planned meanwhile."""
    absent = []
    with _opened(root, identity) as opened:
        for path in paths:
            with contextlib.suppress(SourceUnreadable):  # unknown, neither present nor gone: the next scan decides
                if scan.stat_file(opened, path) is None:
                    absent.append(path)
    return absent


def _is_document(upload: Upload, path: bytes) -> bool:
    """Return whether a walk visits this path and the patterns include it."""
    return all(upload.enters(folder) for folder in _parents(path)) and upload.wanted(path)


def _is_walked(upload: Upload, folder: bytes, identity: tuple[int, int] | None) -> bool:
    """Return whether a walk visits this folder now."""
    if not all(upload.enters(each) for each in (folder, *_parents(folder))):
        return False
    with _opened(Root.of(upload), identity) as opened:
        return opened.is_folder(folder)


def _parents(path: bytes) -> list[bytes]:
    found = []
    while path := parted(path)[0]:
        found.append(path)
    return found
