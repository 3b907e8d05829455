"""Test that a source yields all bytes as planned, or does not finish."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from docferry.errors import SourceChanged
from docferry.files.safe_open import BLOCK, Root
from docferry.files.source import FileSource, OpenedFile, Opener
from docferry.model import Digests
from files.reading import descriptors, digests_of, drop_from_cache, fill

pytestmark = pytest.mark.anyio


def planned(root: Path, name: str = "a.pdf", *, md5: bool = False, read_small: bool = True) -> FileSource:
    source = Opener(Root(root)).source(name.encode(), *digests_of(root, name, md5=md5), md5)
    source.stays_open = not read_small
    return source


async def drain(source: FileSource, each: Callable[[bytes], None]) -> None:
    async with source:
        async for block in source.blocks():
            each(block)


class TestSource:
    @pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5])
    @pytest.mark.parametrize("md5", [False, True])
    @pytest.mark.parametrize("read_small", [False, True])
    @pytest.mark.parametrize("cached", [False, True])
    async def test_all_bytes_in_order_as_often_as_asked(
        self, root: Path, size: int, md5: bool, read_small: bool, cached: bool
    ) -> None:
        content = fill(root / "a.pdf", size)
        before = descriptors()
        async with planned(root, md5=md5, read_small=read_small) as source:
            assert source.size == size
            for _ in range(2):
                if not cached:
                    drop_from_cache(root / "a.pdf")
                assert b"".join([block async for block in source.blocks()]) == content
            assert source.md5 == (hashlib.md5(content, usedforsecurity=False).hexdigest() if md5 else None)
        assert descriptors() == before

    @pytest.mark.parametrize("size", [10, 3 * BLOCK])
    async def test_a_file_that_changed_since_it_was_planned_is_not_even_opened(self, root: Path, size: int) -> None:
        fill(root / "a.pdf", size)
        source = planned(root)
        os.utime(root / "a.pdf", ns=(0, 0))
        before = descriptors()
        with pytest.raises(SourceChanged):
            await source.__aenter__()
        assert descriptors() == before

    @pytest.mark.parametrize("size", [10, 3 * BLOCK])
    async def test_another_fingerprint_never_makes_a_whole_body(self, root: Path, size: int) -> None:
        fill(root / "a.pdf", size)
        given: list[bytes] = []
        stamp, digests = digests_of(root)
        source = Opener(Root(root)).source(b"a.pdf", stamp, replace(digests, fingerprint="0" * 32))
        with pytest.raises(SourceChanged):
            await drain(source, lambda block: given.append(block))
        assert len(b"".join(given)) < size

    @pytest.mark.parametrize("size", [10, 3 * BLOCK])
    async def test_what_an_older_docferry_planned_is_proved_by_its_sha256(self, root: Path, size: int) -> None:
        content = fill(root / "a.pdf", size)
        stamp, digests = digests_of(root)
        given: list[bytes] = []
        async with Opener(Root(root)).source(b"a.pdf", stamp, Digests(digests.sha256), md5=True) as source:
            assert source.md5 == hashlib.md5(content, usedforsecurity=False).hexdigest()
            given = [block async for block in source.blocks()]
        assert b"".join(given) == content
        with pytest.raises(SourceChanged, match="other bytes"):
            await drain(Opener(Root(root)).source(b"a.pdf", stamp, Digests("0" * 64)), lambda _: pytest.fail("a byte"))

    @pytest.mark.parametrize("change", ["rewrite", "grow", "shrink", "touch", "unlink"])
    @pytest.mark.parametrize("cached", [False, True])
    async def test_a_change_while_it_is_sent_withholds_the_last_block(
        self, root: Path, change: str, cached: bool
    ) -> None:
        """C5, C6, C7: the body is never completed, not even where mtime is put back."""
        path = root / "a.pdf"
        fill(path, 4 * BLOCK)
        times = path.stat()
        given: list[bytes] = []

        def meddle(block: bytes) -> None:
            given.append(block)
            if len(given) > 1:
                return
            with path.open("r+b") as file:
                if change == "rewrite":
                    os.pwrite(file.fileno(), b"other", 3 * BLOCK)
                elif change in ("grow", "shrink"):
                    file.truncate((5 if change == "grow" else 2) * BLOCK)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if not cached:
                drop_from_cache(path)
            if change == "unlink":
                path.unlink()

        with pytest.raises(SourceChanged):
            await drain(planned(root), meddle)
        assert 0 < len(b"".join(given)) < 4 * BLOCK

    @pytest.mark.parametrize("change", ["rewrite", "touch", "shrink"])
    async def test_a_small_file_that_is_read_late_is_proved_then(self, root: Path, change: str) -> None:
        path = root / "a.pdf"
        fill(path, 1_000)
        async with planned(root, read_small=False) as source:
            with path.open("r+b") as file:
                if change == "shrink":
                    file.truncate(10)
                elif change == "rewrite":
                    file.write(b"other")
            os.utime(path, ns=(0, 0))
            with pytest.raises(SourceChanged):
                await anext(source.blocks())

    async def test_errors_of_the_sender_come_out_as_they_are(self, root: Path) -> None:
        fill(root / "a.pdf", 4 * BLOCK)
        before = descriptors()

        def reset(_block: bytes) -> None:
            raise ConnectionResetError("mine")

        with pytest.raises(ConnectionResetError, match="mine"):
            await drain(planned(root), reset)
        assert descriptors() == before

    async def test_a_cancelled_sender_leaves_nothing_behind(self, root: Path) -> None:
        fill(root / "a.pdf", 4 * BLOCK)
        before = descriptors()
        with anyio.CancelScope() as scope:
            async with planned(root) as source:
                async for _block in source.blocks():
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert descriptors() == before

    async def test_a_sender_that_stops_and_starts_again(self, root: Path) -> None:
        content = fill(root / "a.pdf", 4 * BLOCK)
        async with planned(root) as source:
            first = source.blocks()
            assert await anext(first) == content[:BLOCK]
            assert b"".join([block async for block in source.blocks()]) == content
            assert await anext(first) == content[BLOCK : 2 * BLOCK]

    async def test_who_is_cancelled_first_in_line_takes_nobody_along(self, root: Path) -> None:
        """The first waiting task opens all sources in the thread, or none if it is cancelled at that moment."""
        contents = {name: fill(root / name, 10) for name in ("busy.pdf", "first.pdf", "second.pdf")}
        opener, scope, got = Opener(Root(root)), anyio.CancelScope(), []

        def source(name: str) -> FileSource:
            return opener.source(name.encode(), *digests_of(root, name))

        async def busy() -> None:
            await opener.open(source("busy.pdf"))
            scope.cancel()  # the line has passed to the first, which has not run yet

        async def first() -> None:
            with scope:
                await opener.open(source("first.pdf"))

        async def second() -> None:
            async with source("second.pdf") as opened:
                got.append(b"".join([block async for block in opened.blocks()]))

        async with anyio.create_task_group() as group:
            for each in (busy, first, second):
                group.start_soon(each)
        assert scope.cancelled_caught
        assert got == [contents["second.pdf"]]

    async def test_blocks_outside_of_the_opening_are_a_mistake(self, root: Path) -> None:
        fill(root / "a.pdf", 2 * BLOCK)
        with pytest.raises(RuntimeError, match="async with"):
            await anext(planned(root).blocks())

    async def test_memory_is_flat(self, root: Path) -> None:
        """Only a few blocks of a 256 MiB source are in memory at any time."""
        with (root / "a.pdf").open("wb") as file:
            file.truncate(256 * BLOCK)
        stamp, digests = digests_of(root)
        code = (
            "import anyio, resource, sys\n"
            "from pathlib import Path\n"
            "from docferry.files.safe_open import Root\n"
            "from docferry.files.source import Opener\n"
            "from docferry.model import Digests, Stamp\n"
            "async def main():\n"
            "    stamp = Stamp(*map(int, sys.argv[3:6]))\n"
            "    digests = Digests('', sys.argv[2])\n"
            "    async with Opener(Root(Path(sys.argv[1]))).source(b'a.pdf', stamp, digests) as source:\n"
            "        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "        total = sum([len(block) async for block in source.blocks()])\n"
            "    print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
            "anyio.run(main)\n"
        )
        looks = [str(part) for part in (stamp.size, stamp.mtime_ns, stamp.ctime_ns)]
        done = await anyio.run_process([sys.executable, "-c", code, root, digests.fingerprint or "", *looks])
        total, grown_kib = map(int, done.stdout.split())
        assert total == 256 * BLOCK
        assert grown_kib < 12 * 1024


class TestPageCache:
    """A small file that another process sends: it is read at once where the kernel has its bytes in memory."""

    def test_bytes_are_taken_from_memory_or_not_at_all(self, root: Path) -> None:
        content = fill(root / "a.pdf", BLOCK)
        file = opened(root)
        if file.read_cached():  # not on a tmpfs
            assert file.whole == content
        else:
            assert file.whole is None
        file.close()

    @pytest.mark.parametrize("change", [b"", b"shorter", bytes(BLOCK), bytes(BLOCK + 1)])
    def test_other_bytes_than_planned_are_never_taken(self, root: Path, change: bytes) -> None:
        fill(root / "a.pdf", BLOCK)
        file = opened(root)
        (root / "a.pdf").write_bytes(change)
        with contextlib.suppress(SourceChanged):
            assert not file.read_cached()
        assert file.whole is None
        with pytest.raises(SourceChanged):
            file.read_small()
        file.close()


def opened(root: Path) -> OpenedFile:
    stamp, digests = digests_of(root, "a.pdf", md5=False)
    assert digests.fingerprint is not None
    return OpenedFile(os.open(root / "a.pdf", os.O_RDONLY), b"a.pdf", stamp, digests.fingerprint)
