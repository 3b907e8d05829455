"""Test that the watcher reports changes in every folder of its roots."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
from docferry.files.watch.watcher import Armed, Degraded, Lost, Watcher, watch
from files.watched import Ear, folder_watches, touch, watch_threads, watching, write_until_hinted

Unprivileged = Callable[[], AbstractContextManager[None]]
pytestmark = pytest.mark.anyio
real = watchfiles.watch


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
