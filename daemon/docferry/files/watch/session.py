"""Manage the watches of one thread: arm folders, report changes, and restart ended watches."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from docferry.clock import Clock
from docferry.errors import FolderError
from docferry.files.watch.events import Degraded, Hint, Lost
from docferry.files.watch.failures import diagnosis, is_instance_limit, is_undecodable, is_watch_limit
from docferry.files.watch.folder_watch import FolderWatch, WatchReport
from docferry.files.watch.places import (
    Group,
    Place,
    Purpose,
    by_root,
    existing,
    is_left_to_scans,
    largest,
    named_in,
    tell_hints,
    topmost,
)
from docferry.files.watch.tree import WatchedRoot, identity, top_of
from docferry.files.watch.watches import Watches
from docferry.model import joined

ROOT_CHECK_S = 2.0  # between two checks that the roots are still the same folders
GATHER_ROOTS_S: Final = 0.02  # to gather roots that are added together
# A watch that ends before this time ends quickly. After more such ends in a row, its folder is left to the scans.
QUICK_DEATH_S, QUICK_DEATHS = 10.0, 5
TRIES: Final = 5  # to arm folders while some disappear

MODIFIED: Final = 2  # watchfiles.Change.modified
DELETED: Final = 3  # watchfiles.Change.deleted: deleted, or renamed away

#: Processor time for new folders of one top-level folder within a window, seconds; beyond it only scans find them.
MOST_COST_S: Final = 2.0
COST_WINDOW_S: Final = 10.0
#: Changes in one report, half of the kernel's queue (/proc/sys/fs/inotify/max_queued_events).
FLOOD: Final = 8192


class _Addition(Struct, frozen=True):
    """Request to watch a root."""

    root: WatchedRoot


class _Removal(Struct, frozen=True):
    """Request to stop watching a root."""

    root: WatchedRoot


class Session:
    """Manage the watches of one thread, from its start to its end."""

    def __init__(self, clock: Clock, hung: float) -> None:
        self._clock = clock
        self._hung = hung
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._roots: list[WatchedRoot] = []
        self._waiting: list[WatchedRoot] = []  # waiting to be armed
        self._watches = Watches(clock, self._roots, self._inbox)
        # processor time by top-level folder, and the start of its window
        self._costs: dict[Group, tuple[float, float]] = {}
        self._next_check = 0.0
        self._is_stopped = False
        self.at_work: WatchedRoot | None = None  # the root whose folders are being read
        self.beat = clock.steady()
        self.thread = threading.Thread(target=self._run, name="docferry watch", daemon=True)

    def add(self, root: WatchedRoot) -> None:
        """Watch a root."""
        self._inbox.put(_Addition(root))

    def drop(self, root: WatchedRoot) -> None:
        """Stop watching a root."""
        self._inbox.put(_Removal(root))

    def stop(self) -> None:
        """End the thread and its watches."""
        self._is_stopped = True
        for watch in self._watches:
            watch.stop()
        self._inbox.put(None)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        time.sleep(GATHER_ROOTS_S)  # roots that are added together are armed together
        while not self._is_stopped:
            self.beat = self._clock.steady()
            try:
                self._receive(self._inbox.get(timeout=min(ROOT_CHECK_S, self._hung) / 2))
                while not self._inbox.empty() and not self._is_stopped:
                    self._receive(self._inbox.get())
            except queue.Empty:
                pass
            if not self._is_stopped:
                self._arm_waiting()
                self._check()
        self._watches.stop_all()

    def _receive(self, item: object) -> None:
        if isinstance(item, WatchReport):
            if item.watch not in self._watches:
                return
            if item.is_end and item.error is not None:
                self._ended(item.watch, item.error)
            elif item.changes:
                noisy = self._flooded(item.watch, item.changes)
                self._changed(item.changes, noisy)
            else:
                self._armed(item.watch)
        elif isinstance(item, _Addition):
            self._roots.append(item.root)
            self._waiting.append(item.root)
        elif isinstance(item, _Removal):
            self._forget(item.root)
            self._roots.remove(item.root)

    def _arm_waiting(self) -> None:
        """Arm the existing roots together; report a missing root once."""
        now = self._clock.steady()
        ready: list[WatchedRoot] = []
        places: list[Place] = []
        for root in [root for root in self._waiting if now >= root.retry_at]:
            self._waiting.remove(root)
            found = self._find(root)
            if found is None:
                root.retry_at = now + ROOT_CHECK_S / 2
                self._waiting.append(root)
            elif found:
                ready.append(root)
                places += [(root, folder) for folder in found]
        if places:
            self._watches.start(Purpose(places, armed_roots=ready))

    def _find(self, root: WatchedRoot) -> set[bytes] | None:
        """Return the folders of a root, None if it is missing; an empty set if it cannot be watched."""
        self.at_work = root
        root.unwatched = {}
        try:
            if root.resolve():
                root.is_missing = False
                return root.find_folders()
        except FolderError:
            pass
        finally:
            self.at_work = None
        if root.unwatched:
            self._leave_to_scans(root, {b""}, root.unwatched[b""])
            return set()
        if not root.is_missing:
            root.is_missing = True
            root.tell(Lost("the folder is missing; it is watched again as soon as it exists"))
        return None

    def _armed(self, watch: FolderWatch) -> None:
        purpose = self._watches[watch]
        purpose.armed_at = self._clock.steady()
        for old in purpose.replaces:
            self._watches.stop(old)
        late = [] if purpose.announced else [place for root in purpose.armed_roots for place in self._unseen(root, b"")]
        for root, folders in by_root(purpose.announced).items():
            late += self._below(root, folders)
        for root in purpose.armed_roots:
            root.plan_retry(self._clock.steady())
            root.tell_state()
        tell_hints(purpose.announced)
        if late:
            self._watches.start(Purpose(late, announced=late))
        else:
            self._watches.merge()

    def _unseen(self, root: WatchedRoot, start: bytes, most: float = math.inf) -> list[Place]:
        """Return the folders below `start` that are not watched yet: created after their parent was listed.

        A top-level folder whose folders take more than `most` seconds to find stays unwatched.
        """
        self.at_work = root
        try:
            return [(root, folder) for folder in root.find_folders(start, most) - root.folders]
        except FolderError:
            return []
        finally:
            self.at_work = None

    # -- changes -------------------------------------------------------------------------------------------------

    def _flooded(self, watch: FolderWatch, changes: Collection[tuple[int, str]]) -> Group | None:
        """Move the noisiest top-level folder out of a watch whose kernel queue may have overflowed, and return it.

        An overflow silently drops changes of other folders. So the noisy folder gets its own queue; if that overflows
        too, only scans read the folder for a time. A scan must find the changes of the returned folder.
        """
        if len(changes) < FLOOD:
            return None
        counts = self._watches.index.count_changes(path for _, path in changes)
        if not counts:
            return None
        noisy, count = counts.most_common(1)[0]
        places = self._watches.wanted(self._watches[watch])
        self._watches.stop(watch)
        if all((root, top_of(folder)) == noisy for root, folder in places):
            reason = f"{count:,} changes came at once, more than the kernel reports reliably"
            self._leave_to_scans(noisy[0], {noisy[1]}, reason)
            return noisy
        for root in dict.fromkeys(root for root, _ in places):
            root.tell(Lost("so many changes came at once that some may have gone unreported"))
        self._watches.start_apart(places, {noisy})
        return noisy

    def _changed(self, changes: Iterable[tuple[int, str]], noisy: Group | None) -> None:
        self._removed({path for kind, path in changes if kind == DELETED and path in self._watches.index})
        modified: dict[WatchedRoot, set[bytes]] = {}
        others: dict[WatchedRoot, set[bytes]] = {}
        solved: dict[WatchedRoot, None] = {}
        for kind, path in changes:
            above, _, name = path.rpartition("/")
            for root, folder in self._watches.index.at(above or "/"):
                if (root, top_of(folder)) == noisy:
                    continue
                changed = joined(folder, name.encode())
                (modified if kind == MODIFIED else others).setdefault(root, set()).add(changed)
                if kind == DELETED and root.unwatched.pop(changed, None) is not None:
                    solved[root] = None  # an unwatchable top-level folder has disappeared
        for root in solved:
            root.tell_state()
        for root, paths in modified.items():  # no folder is new: no check is needed
            root.tell(Hint(paths))
        self._appeared(others)

    def _appeared(self, changed: Mapping[WatchedRoot, set[bytes]]) -> None:
        """Watch the new folders among these paths, and report the others as hints."""
        new: list[Place] = []
        below: list[Place] = []
        for root, paths in changed.items():
            folders = root.are_folders(path for path in paths if path not in root.folders)
            below += self._below(root, folders)
            if paths - folders:
                root.tell(Hint(paths - folders))
            new += [(root, folder) for folder in folders if not is_left_to_scans(root, folder)]
        if new:
            self._watches.start(Purpose(new + below, announced=new))

    def _below(self, root: WatchedRoot, folders: Iterable[bytes]) -> list[Place]:
        """Return the unseen folders below new ones.

        All roots share this thread, so a top-level folder that exceeds its processor time is left to the scans.
        """
        found: list[Place] = []
        for folder in topmost(folders):
            group, now = (root, top_of(folder)), self._clock.steady()
            self.beat = now
            since, spent = self._costs.get(group, (now, 0.0))
            if now - since > COST_WINDOW_S:
                since, spent = now, 0.0
            began = time.thread_time()
            found += self._unseen(root, folder, MOST_COST_S - spent)
            self._costs[group] = since, spent + time.thread_time() - began
            if group[1] in root.unwatched:
                self._leave_to_scans(root, {group[1]}, root.unwatched[group[1]])
        return [place for place in found if not is_left_to_scans(*place)]

    def _removed(self, paths: Collection[str]) -> None:
        """Remove deleted or renamed folders, and all folders below."""
        for root, gone in by_root(place for path in paths for place in self._watches.index.at(path)).items():
            if b"" in gone:
                self._set_up(root)  # another folder may replace it, even with the same inode
                continue
            below = tuple(folder + b"/" for folder in topmost(gone))
            self._watches.index.drop(root, [each for each in root.folders if each in gone or each.startswith(below)])

    # -- ends ----------------------------------------------------------------------------------------------------

    def _ended(self, watch: FolderWatch, error: Exception) -> None:
        purpose = self._watches.remove(watch)
        places = self._watches.wanted(purpose)
        if watch.is_armed:
            self._died(purpose, places, error)
        elif is_watch_limit(error) or is_instance_limit(error):
            self._limited(purpose, places, error)
        elif isinstance(error, FileNotFoundError | PermissionError) and purpose.tries < TRIES:
            purpose.places, purpose.tries = existing(places), purpose.tries + 1
            self._watches.start(purpose)
        else:
            self._died(purpose, places, error)

    def _died(self, purpose: Purpose, places: Sequence[Place], error: Exception) -> None:
        """Restart an ended watch at once. A top-level folder that keeps ending it is left to the scans."""
        quick = self._clock.steady() - purpose.armed_at < QUICK_DEATH_S or not purpose.armed_at
        named = named_in(str(error), places)
        roots = list(dict.fromkeys(root for root, _ in places))
        for root in roots:
            root.is_armed = False
            root.tell(Lost(diagnosis(error)))
        for root, top in named or {(root, b"") for root in roots}:
            root.deaths[top] = root.deaths[top] + 1 if quick else 1
            if root.deaths[top] > QUICK_DEATHS:
                self._leave_to_scans(root, {top}, diagnosis(error))
        alive = [(root, folder) for root, folder in places if not is_left_to_scans(root, folder)]
        self._watches.start_apart(alive, named if is_undecodable(error) else ())

    def _limited(self, purpose: Purpose, places: Sequence[Place], error: Exception) -> None:
        """Reduce the watches after a refusal of the kernel: scans read the largest folders, one watch the others."""
        if purpose.replaces:
            self._watches.postpone_merge()
            return
        others = [self._watches[watch] for watch in self._watches]
        everything = {place for other in others for place in other.places} | set(places)
        everything = {place for place in everything if place[1] in place[0].folders}
        shed: dict[WatchedRoot, set[bytes]] = {}
        if is_watch_limit(error):
            shed = largest(everything)
        elif not others:
            shed = {root: {b""} for root, _ in everything}
        for root, tops in shed.items():
            self._leave_to_scans(root, tops, diagnosis(error), is_told=False)
        self._watches.stop_all()
        left = [(root, folder) for root, folder in everything if not is_left_to_scans(root, folder)]
        armed = dict.fromkeys(root for root, _ in left)
        for root in shed.keys() - armed.keys():
            root.tell(Degraded(diagnosis(error), frozenset(root.unwatched)))
        self._watches.start(Purpose(left, armed_roots=list(armed)))

    def _leave_to_scans(self, root: WatchedRoot, tops: Collection[bytes], reason: str, is_told: bool = True) -> None:
        """Stop watching top-level folders (b"": all) for a time."""
        root.unwatched |= dict.fromkeys(tops, reason)
        root.plan_retry(self._clock.steady())
        self._watches.index.drop(root, [folder for folder in root.folders if is_left_to_scans(root, folder)])
        if is_told:
            root.tell(Degraded(reason, frozenset(root.unwatched)))

    # -- now and then --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        now = self._clock.steady()
        for watch in self._watches:
            if now - watch.beat > self._hung:
                purpose = self._watches[watch]
                self._watches.stop(watch)
                self._died(purpose, purpose.places, RuntimeError("it hung"))
        if now < self._next_check:
            return
        self._next_check = now + ROOT_CHECK_S
        for root in self._roots:
            if root in self._waiting:
                continue
            if root.folders and identity(root.root) != root.identity:
                root.tell(Lost("the folder was replaced or removed"))
                self._set_up(root)
            elif root.unwatched and now >= root.retry_at:
                self._retry(root)

    def _retry(self, root: WatchedRoot) -> None:
        """Try to watch the top-level folders again that were left to the scans."""
        if b"" in root.unwatched:
            self._set_up(root)
            return
        tops, root.unwatched = root.unwatched, {}
        places = []
        for top in tops:
            places += self._unseen(root, top, MOST_COST_S)
        if root.unwatched.keys() == tops.keys():
            root.plan_retry(self._clock.steady())
        elif places:
            self._watches.start(Purpose(places, announced=places, armed_roots=[root]))
        else:
            root.plan_retry(self._clock.steady())
            root.tell_state()

    def _set_up(self, root: WatchedRoot) -> None:
        """Watch a root as if it were new. Its old watches run until then, but their reports are ignored."""
        failures = root.failures
        self._forget(root)
        root.failures, root.retry_at = failures, 0.0
        self._waiting.append(root)

    def _forget(self, root: WatchedRoot) -> None:
        self._watches.forget(root)
        if root in self._waiting:
            self._waiting.remove(root)
