"""Test that the watcher survives limits, errors and hangs, and reports each."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from docferry.clock import SystemClock
from docferry.files.watch import tree
from docferry.files.watch.failures import diagnosis
from docferry.files.watch.watcher import Armed, Degraded, Hint, Lost, Watcher
from files.watched import touch, watching, write_until_hinted

Unprivileged = Callable[[], AbstractContextManager[None]]


pytestmark = pytest.mark.anyio


real = watchfiles.watch


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


async def test_a_customer_whose_names_end_the_watch_ends_it_for_nobody_else(root: Path) -> None:
    """After the first name that is not UTF-8, the folder of this customer has a watch of its own."""
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


def test_every_ailment_has_its_cure() -> None:
    assert "ulimit -n" in diagnosis(RuntimeError("Error creating recommended watcher: Too many open files"))
    assert "not UTF-8" in diagnosis(UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"))
    assert diagnosis(RuntimeError("a\x1b[31mb")) == "the watcher failed: a\\x1b[31mb"
