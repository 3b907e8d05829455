"""Test that the watcher triggers scans, reports its failures, and restarts after each."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import watchfiles

from docferry.clock import SystemClock
from docferry.files import scan
from docferry.files.safe_open import OpenRoot, Root
from docferry.files.scan import EVERY_FOLDER
from docferry.files.watch import session, tree
from docferry.files.watch.events import WatchEvents
from docferry.files.watch.failures import diagnosis
from docferry.files.watch.watcher import Armed, Degraded, Hint, Lost, Watcher, WatchEvent, watch

Unprivileged = Callable[[], AbstractContextManager[None]]
pytestmark = pytest.mark.anyio
real = watchfiles.watch


class Ear:
    """Records the events of one root's watch."""

    def __init__(self) -> None:
        self.events: list[WatchEvent] = []
        self._news = anyio.Event()

    async def listen(self, watch: AbstractAsyncContextManager[WatchEvents]) -> None:
        """Record all events of a watch, until cancelled."""
        async with watch as events:
            async for event in events:
                self.events.append(event)
                self._news.set()

    @property
    def hinted(self) -> set[bytes]:
        return {path for event in self.events if isinstance(event, Hint) for path in event.paths}

    def clear(self) -> None:
        self.events.clear()

    async def until(self, told: Callable[[Ear], object], seconds: float = 60) -> None:
        with anyio.fail_after(seconds):
            while not told(self):
                self._news = anyio.Event()
                await self._news.wait()

    async def hints(self, *paths: bytes) -> None:
        await self.until(lambda ear: ear.hinted >= set(paths))

    async def kinds(self, *kinds: type[WatchEvent], seconds: float = 60) -> None:
        """Wait for these events in this order, among any others."""

        def told(ear: Ear) -> bool:
            rest = iter(ear.events)
            return all(any(isinstance(event, kind) for event in rest) for kind in kinds)

        await self.until(told, seconds)


@asynccontextmanager
async def watching(*roots: Path, watcher: Watcher | None = None) -> AsyncIterator[list[Ear]]:
    watcher = watcher or Watcher(SystemClock())
    ears = [Ear() for _ in roots]
    async with anyio.create_task_group() as group:
        for root, ear in zip(roots, ears, strict=True):
            group.start_soon(ear.listen, watcher.watch(Root(root)))
        yield ears
        group.cancel_scope.cancel()


async def write_until_hinted(ear: Ear, path: Path, seconds: float = 60) -> None:
    """Write files until one is reported; a scan covers the time before."""
    with anyio.fail_after(seconds):
        while os.fsencode(path.name) not in {name.rpartition(b"/")[2] for name in ear.hinted}:
            touch(path)
            await anyio.sleep(0.1)  # the time a watcher has for one report


def touch(path: Path | bytes) -> None:
    with open(path, "wb") as file:  # noqa: PTH123 - pathlib takes no bytes
        file.write(b"x")


def watch_threads() -> int:
    return sum(thread.name == "docferry watch" for thread in threading.enumerate())


def folder_watches() -> int:
    return sum(thread.name == "docferry watch folders" for thread in threading.enumerate())


async def test_changes_are_hinted(root: Path) -> None:
    (root / "old").mkdir()
    (root / "old" / "gone.pdf").touch()
    async with watching(root) as [ear]:
        await ear.kinds(Armed)
        (root / "a.pdf").write_bytes(b"x")
        (root / "old" / "b.pdf").write_bytes(b"x")
        (root / "new").mkdir()
        (root / "old" / "gone.pdf").unlink()
        await ear.hints(b"a.pdf", b"old/b.pdf", b"new", b"old/gone.pdf")
        await write_until_hinted(ear, root / "new" / "c.pdf")
    assert not [event for event in ear.events if isinstance(event, Lost | Degraded)]


async def test_a_hint_comes_soon(root: Path) -> None:
    delays = []
    async with watching(root) as [ear]:
        await ear.kinds(Armed)
        for number in range(20):
            name = b"%d.pdf" % number
            began = time.perf_counter()
            (root / os.fsdecode(name)).write_bytes(b"x")
            await ear.hints(name)
            delays.append(time.perf_counter() - began)
    assert min(delays) < 0.25  # the load of the machine decides the others


async def test_it_stops_at_once_and_leaves_no_thread(root: Path) -> None:
    async with watching(root) as [ear]:
        await ear.kinds(Armed)
        assert watch_threads() == 1
        began = time.perf_counter()
    assert time.perf_counter() - began < 3  # without the stop event it takes 4.3 s
    assert watch_threads() == 0


async def test_a_name_that_is_not_utf8(root: Path) -> None:
    """W10: the watch ends and is back at once; the scan finds the file."""
    async with watching(root) as [ear]:
        await ear.kinds(Armed)
        began = time.perf_counter()
        touch(os.fsencode(root) + b"/\xff.pdf")
        await ear.kinds(Armed, Lost, Armed)
        assert time.perf_counter() - began < tree.WATCH_RETRY_S
        assert "not UTF-8" in next(event.reason for event in ear.events if isinstance(event, Lost))
        await write_until_hinted(ear, root / "b.pdf")


async def test_names_that_end_the_watch_time_after_time(root: Path) -> None:
    """A scan opens the folder, which ends the watch; the end must not cause another scan endlessly."""
    other = root / "other"
    bad = root / "bad"
    other.mkdir()
    bad.mkdir()
    os.mkdir(os.fsencode(bad) + b"/\xff")  # noqa: PTH102 - pathlib takes no bytes

    async def scan_when_told() -> None:
        while not any(isinstance(event, Degraded) for event in ear.events):
            for _ in scan.walk(Root(bad)):
                pass
            await anyio.sleep(0.05)  # a scan that is asked for again and again

    async with watching(bad, other, watcher=Watcher(SystemClock())) as [ear, another]:
        with anyio.fail_after(15):
            await scan_when_told()
        lost = [event for event in ear.events if isinstance(event, Lost)]
        assert 1 <= len(lost) <= session.QUICK_DEATHS + 1
        await write_until_hinted(another, other / "a.pdf")
        await anyio.sleep(1.2)  # the thread's next sign of life
    assert isinstance(ear.events[-1], Degraded), "it is said to be watched, and is not"


async def test_a_root_that_is_removed_and_made_again(root: Path) -> None:
    """W6: inode numbers are reused at once, so the number alone proves nothing."""
    watched = root / "in"
    watched.mkdir()
    async with watching(watched) as [ear]:
        await ear.kinds(Armed)
        for number in range(5):
            ear.clear()
            shutil.rmtree(watched)
            watched.mkdir()
            await ear.kinds(Armed, seconds=5)
            await write_until_hinted(ear, watched / f"{number}.pdf")


async def test_a_root_that_is_renamed_and_another_put_in_its_place(root: Path) -> None:
    watched = root / "in"
    watched.mkdir()
    async with watching(watched) as [ear]:
        await ear.kinds(Armed)
        watched.rename(root / "away")
        await ear.kinds(Armed, Lost, seconds=5)
        ear.clear()
        watched.mkdir()
        await ear.kinds(Armed, seconds=5)
        await write_until_hinted(ear, watched / "a.pdf")


async def test_a_folder_above_the_root_that_is_exchanged(root: Path) -> None:
    """The watched inodes do not change, so only device and inode of the path show the change."""
    watched = root / "above" / "in"
    watched.mkdir(parents=True)
    async with watching(watched) as [ear]:
        await ear.kinds(Armed)
        (root / "above").rename(root / "away")
        watched.mkdir(parents=True)
        await ear.kinds(Armed, Lost, Armed, seconds=5)
        await write_until_hinted(ear, watched / "a.pdf")


async def test_a_root_that_appears_later_and_others_meanwhile(root: Path) -> None:
    """W8."""
    (root / "there").mkdir()
    later = root / "later"
    async with watching(root / "there", later, root / "never") as [there, ear, never]:
        await there.kinds(Armed)
        await ear.kinds(Lost)
        await write_until_hinted(there, root / "there" / "a.pdf")
        later.mkdir()
        await ear.kinds(Lost, Armed, seconds=5)
        await write_until_hinted(ear, later / "b.pdf")
        await write_until_hinted(there, root / "there" / "c.pdf")
    assert [type(event) for event in never.events] == [Lost]


async def test_an_unreadable_subfolder_leaves_the_others_watched(root: Path, unprivileged: Unprivileged) -> None:
    """W9: such a folder is not watched, and is reported; other roots of the thread are watched."""
    roots = [root / str(number) for number in range(5)]
    for one in roots:
        one.mkdir()
    (roots[0] / "shut").mkdir(mode=0o000)
    with unprivileged():
        async with watching(*roots) as [shut, *others]:
            await shut.kinds(Degraded)
            for ear in others:
                await ear.kinds(Armed)
    assert "let the user that runs docferry read it" in next(e.reason for e in shut.events if isinstance(e, Degraded))
    assert not any(isinstance(event, Degraded) for ear in others for event in ear.events)


async def test_the_largest_folder_yields_when_watches_run_out_and_is_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One customer's thousand folders do not end the watches of others."""
    monkeypatch.setattr(tree, "WATCH_RETRY_S", 0.5)
    most = 20

    def watch_function(*places: str, **options: Any) -> Iterator[set[Any]]:
        if len(places) > most:
            raise OSError(errno.ENOSPC, "OS file watch limit reached.")
        yield from real(*places, **options)

    monkeypatch.setattr(watchfiles, "watch", watch_function)

    for number in range(50):
        (root / "large" / str(number)).mkdir(parents=True)
    (root / "small").mkdir()
    async with watching(root, watcher=Watcher(SystemClock())) as [ear]:
        await ear.kinds(Armed, Degraded)
        [told] = [event for event in ear.events if isinstance(event, Degraded)]
        assert told.folders == {b"large"}
        assert "sysctl fs.inotify.max_user_watches" in told.reason
        await write_until_hinted(ear, root / "small" / "a.pdf")
        most = 100
        ear.clear()
        await ear.kinds(Armed)
        await write_until_hinted(ear, root / "large" / "7" / "b.pdf")


async def test_links_are_not_followed_and_cost_no_watch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link to a tree of many folders exists before the watch is armed."""
    for number in range(200):
        (root / "other" / str(number)).mkdir(parents=True)
    mine = root / "mine"
    (mine / "box").mkdir(parents=True)
    (mine / "box" / "link").symlink_to(root / "other")
    (mine / "top").symlink_to("/")
    asked: list[str] = []

    def watch_function(*places: str, **options: Any) -> Iterator[set[Any]]:
        asked.extend(places)
        yield from real(*places, **options)

    monkeypatch.setattr(watchfiles, "watch", watch_function)

    async with watching(mine, watcher=Watcher(SystemClock())) as [ear]:
        await ear.kinds(Armed)
        (root / "other" / "7" / "theirs.pdf").touch()
        await write_until_hinted(ear, mine / "box" / "a.pdf")
    assert set(asked) == {str(mine), str(mine / "box")}
    assert ear.hinted == {b"box/a.pdf"}


async def test_a_customer_whose_names_end_the_watch_ends_it_for_nobody_else(root: Path) -> None:
    """After her first name that is not UTF-8 her folder has a watch of its own."""
    for name in ("hers", "others"):
        (root / name).mkdir()
    async with watching(root) as [ear]:
        await ear.kinds(Armed)
        touch(os.fsencode(root) + b"/hers/\xff.pdf")
        await ear.kinds(Armed, Lost, Armed)
        for number in range(20):
            touch(os.fsencode(root) + b"/hers/\xff%d.pdf" % number)
            (root / "others" / f"{number}.pdf").touch()
            await ear.hints(b"others/%d.pdf" % number)
        await ear.until(lambda ear: any(isinstance(event, Degraded) for event in ear.events))
        assert {event.folders for event in ear.events if isinstance(event, Degraded)} == {frozenset({b"hers"})}
        await write_until_hinted(ear, root / "others" / "last.pdf")


async def test_many_new_folders_are_watched_and_few_threads_do_it(root: Path) -> None:
    async with watching(root) as [ear]:
        await ear.kinds(Armed)
        for number in range(40):
            (root / f"t{number}" / "a" / "b").mkdir(parents=True)
            await anyio.sleep(0.12)  # each comes in a batch of its own
        for number in range(40):
            await write_until_hinted(ear, root / f"t{number}" / "a" / "b" / f"{number}.pdf", 30)
        with anyio.fail_after(30):
            while folder_watches() > 8:  # noqa: ASYNC110 - nothing announces the end of a thread
                await anyio.sleep(0.1)
    with anyio.fail_after(20):
        while folder_watches():  # noqa: ASYNC110 - nothing announces the end of a thread
            await anyio.sleep(0.05)


async def test_a_folder_that_is_renamed_is_watched_under_its_new_name(root: Path) -> None:
    (root / "a" / "sub").mkdir(parents=True)
    async with watching(root) as [ear]:
        await ear.kinds(Armed)
        (root / "a").rename(root / "b")
        await ear.hints(b"b")
        await write_until_hinted(ear, root / "b" / "sub" / "x.pdf")
        (root / "a" / "sub").mkdir(parents=True)
        await write_until_hinted(ear, root / "a" / "sub" / "y.pdf")


async def test_a_watcher_that_raises_comes_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W14."""
    calls = 0

    def watch_function(*places: str, **options: Any) -> Iterator[set[Any]]:
        nonlocal calls
        calls += 1
        for changes in real(*places, **options):
            yield changes
            if calls == 1:
                raise RuntimeError("out of the blue")

    monkeypatch.setattr(watchfiles, "watch", watch_function)

    async with watching(root, watcher=Watcher(SystemClock())) as [ear]:
        await ear.kinds(Armed)
        (root / "a.pdf").touch()
        await ear.kinds(Armed, Lost, Armed)
        await write_until_hinted(ear, root / "b.pdf")
    assert "out of the blue" in next(event.reason for event in ear.events if isinstance(event, Lost))


async def test_a_watcher_that_hangs_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W14."""
    let_go = threading.Event()
    calls = 0

    def watch_function(*places: str, **options: Any) -> Iterator[set[Any]]:
        nonlocal calls
        calls += 1
        if calls == 1:
            let_go.wait()
        yield from real(*places, **options)

    monkeypatch.setattr(watchfiles, "watch", watch_function)

    try:
        async with watching(root, watcher=Watcher(SystemClock(), hung=0.4)) as [ear]:
            await ear.kinds(Lost, Armed)
            await write_until_hinted(ear, root / "a.pdf")
            assert [type(event) for event in ear.events if not isinstance(event, Hint)] == [Lost, Armed]
    finally:
        let_go.set()


async def test_links_lead_nowhere(root: Path) -> None:
    """W11: watchfiles follows links to folders; its paths are inside the root, where no file is found."""
    (root / "in").mkdir()
    (root / "out").mkdir()
    (root / "in" / "before").symlink_to(root / "out")
    (root / "in" / "loop").symlink_to(root / "in")
    async with watching(root / "in") as [ear]:
        await ear.kinds(Armed)
        (root / "in" / "after").symlink_to(root / "out")
        (root / "out" / "secret.pdf").write_bytes(b"x")
        await write_until_hinted(ear, root / "in" / "a.pdf")
    with OpenRoot(Root(root / "in")) as opened:
        seen = [scan.stat_file(opened, path) for path in ear.hinted]
    assert {seen_file.path for seen_file in seen if seen_file} == {b"a.pdf"}


async def test_a_root_that_is_a_link(root: Path) -> None:
    (root / "real").mkdir()
    (root / "alias").symlink_to(root / "real")
    async with watching(root / "alias") as [ear]:
        await ear.kinds(Armed)
        await write_until_hinted(ear, root / "alias" / "a.pdf")
    assert ear.hinted == {b"a.pdf"}


async def test_a_mapping_inside_another(root: Path) -> None:
    (root / "inner").mkdir()
    watcher = Watcher(SystemClock())
    async with watching(root, root / "elsewhere", root / "inner", watcher=watcher) as [outer, _, inner]:
        await outer.kinds(Armed)
        await inner.kinds(Armed)
        (root / "inner" / "a.pdf").write_bytes(b"x")
        await inner.hints(b"a.pdf")
        await outer.hints(b"inner/a.pdf")


async def test_many_mappings_few_threads(root: Path) -> None:
    roots = [root / f"{number}" for number in range(200)]
    for one in roots:
        one.mkdir()
    async with watching(*roots) as ears:
        for ear in ears:
            await ear.kinds(Armed)
        assert watch_threads() == 2
        for one in roots:
            (one / "a.pdf").touch()
        for ear in ears:
            await ear.hints(b"a.pdf")
            assert ear.hinted == {b"a.pdf"}
    assert watch_threads() == 0


async def test_one_run_shares_its_watcher(root: Path) -> None:
    ears = [Ear() for _ in range(4)]
    roots = [root / f"{number}" for number in range(4)]
    async with anyio.create_task_group() as group:
        for one, ear in zip(roots, ears, strict=True):
            one.mkdir()
            group.start_soon(ear.listen, watch(Root(one), EVERY_FOLDER, SystemClock()))
        for ear in ears:
            await ear.kinds(Armed)
        assert watch_threads() == 2
        await write_until_hinted(ears[0], roots[0] / "a.pdf")
        group.cancel_scope.cancel()


def test_every_ailment_has_its_cure() -> None:
    assert "ulimit -n" in diagnosis(RuntimeError("Error creating recommended watcher: Too many open files"))
    assert "not UTF-8" in diagnosis(UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"))
    assert diagnosis(RuntimeError("a\x1b[31mb")) == "the watcher failed: a\\x1b[31mb"
