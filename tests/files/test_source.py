"""Bytes are given out whole and as planned, or not to the end; nothing but a plain file beneath the root is opened."""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from xxhash import xxh3_128

from docferry.errors import FolderError, SourceChanged, SourceError, SourceUnreadable, SourceVanished
from docferry.files.digest import Reading, digest, digests
from docferry.files.lease import at_rest
from docferry.files.plain import BLOCK, Visit
from docferry.files.source import FileSource, Opener
from docferry.model import Digests, Stamp

Unprivileged = Callable[[], AbstractContextManager[None]]
pytestmark = pytest.mark.anyio


def fill(path: Path, size: int) -> bytes:
    content = os.urandom(size)
    path.write_bytes(content)
    return content


def digests_of(root: Path, name: str = "a.pdf", *, md5: bool = False) -> tuple[Stamp, Digests]:
    known = digest(root, name.encode(), md5=md5)
    assert known.digests is not None
    return known.stamp, known.digests


def planned(root: Path, name: str = "a.pdf", *, md5: bool = False) -> FileSource:
    return Opener(root).source(name.encode(), *digests_of(root, name, md5=md5), md5)


def look_into(root: Path, path: bytes) -> None:
    with Visit(root) as visit:
        os.close(visit.open(path))


async def drain(source: FileSource, each: Callable[[bytes], None]) -> None:
    async with source:
        async for block in source.blocks():
            each(block)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class TestOpening:
    def test_links_are_refused_wherever_they_stand(self, root: Path) -> None:
        (root / "real").mkdir()
        fill(root / "real" / "a.pdf", 10)
        (root / "way").symlink_to(root / "real")
        (root / "l.pdf").symlink_to(root / "real" / "a.pdf")
        look_into(root, b"real/a.pdf")
        for path in (
            b"way/a.pdf",
            b"l.pdf",
            b"real/../real/a.pdf",
            b"../x",
            b"/etc/passwd",
            b"none",
            b"none/a",
            b"a\0b",
        ):
            with pytest.raises(SourceVanished):
                look_into(root, path)

    def test_what_is_no_file_is_refused_and_never_blocks(self, root: Path) -> None:
        os.mkfifo(root / "pipe.pdf")
        (root / "folder.pdf").mkdir()
        before = descriptors()
        for name in (b"pipe.pdf", b"folder.pdf"):
            with pytest.raises(SourceUnreadable, match="not a regular file"):
                digest(root, name)
        assert descriptors() == before

    def test_the_person_is_told_what_to_do(self, root: Path, unprivileged: Unprivileged) -> None:
        fill(root / "a.pdf", 10)
        (root / "a.pdf").chmod(0o000)
        with unprivileged(), pytest.raises(SourceUnreadable, match=r"a\.pdf may not be read: let the user"):
            digest(root, b"a.pdf")

    def test_a_missing_root_is_not_a_missing_file(self, root: Path) -> None:
        with pytest.raises(FolderError):
            digest(root / "gone", b"a.pdf")

    @pytest.mark.parametrize("swapped", ["file", "folder"])
    def test_a_racing_swapper_never_gets_a_secret_out(self, root: Path, swapped: str) -> None:
        """W12: now a plain file stands there, now a link to a secret, as fast as renames go."""
        for name, content in (("good", b"good"), ("bad", b"secret")):
            (root / name).mkdir()
            (root / name / "x.pdf").write_bytes(content)
        place = root / ("x.pdf" if swapped == "file" else "in")
        stop = threading.Event()

        def swap() -> None:
            while not stop.is_set():
                if swapped == "file":
                    (root / "new.pdf").write_bytes(b"good")
                    (root / "new.pdf").rename(place)
                    (root / "new.pdf").symlink_to(root / "bad" / "x.pdf")
                    (root / "new.pdf").rename(place)
                else:
                    place.symlink_to(root / "bad")
                    place.unlink()
                    (root / "good").rename(place)
                    place.rename(root / "good")

        swapper = threading.Thread(target=swap)
        swapper.start()
        path = b"x.pdf" if swapped == "file" else b"in/x.pdf"
        outcomes: set[str] = set()
        try:
            for _ in range(4000):
                try:
                    outcomes.add(digests_of(root, path.decode())[1].sha256)
                except SourceError as error:
                    outcomes.add(type(error).__name__)
        finally:
            stop.set()
            swapper.join()
        assert hashlib.sha256(b"secret").hexdigest() not in outcomes
        assert "SourceVanished" in outcomes


class TestRest:
    def test_an_open_writer_is_noticed_until_it_closes(self, root: Path) -> None:
        fill(root / "a.pdf", 10)
        with opened(root / "a.pdf", os.O_RDONLY) as reader:
            assert at_rest(reader) is True
            with opened(root / "a.pdf", os.O_WRONLY):
                assert at_rest(reader) is False
            assert at_rest(reader) is True

    def test_a_writer_in_another_program(self, root: Path) -> None:
        fill(root / "a.pdf", 10)
        code = "import sys; f = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read(1)"
        with subprocess.Popen(
            [sys.executable, "-c", code, root / "a.pdf"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            found = digest(root, b"a.pdf")
            assert (found.at_rest, found.digests) == (False, None)
            writer.communicate(b"x")
        assert digest(root, b"a.pdf").at_rest is True

    def test_a_mapped_writer_that_has_closed_its_descriptor(self, root: Path) -> None:
        fill(root / "a.pdf", 4096)
        with (root / "a.pdf").open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 4096)
        assert digest(root, b"a.pdf").at_rest is False
        mapped.close()
        assert digest(root, b"a.pdf").at_rest is True

    def test_where_no_lease_can_be_had(self, root: Path, unprivileged: Unprivileged) -> None:
        if os.geteuid() != 0:
            pytest.skip("without root there is no file of somebody else's to ask about")
        content = fill(root / "a.pdf", 10)
        (root / "a.pdf").chmod(0o644)
        with unprivileged():
            found = digest(root, b"a.pdf")
        assert found.at_rest is None
        assert found.digests is not None
        assert found.digests.sha256 == hashlib.sha256(content).hexdigest()

    def test_a_writer_that_breaks_the_lease_does_not_kill_the_program(self, root: Path) -> None:
        """SIGIO's default action ends a program, and the kernel sends it when a lease is broken."""
        fill(root / "a.pdf", 10)
        code = (
            "import os, sys, time\n"
            "from docferry.files.lease import at_rest\n"
            "reader = os.open(sys.argv[1], os.O_RDONLY)\n"
            "print('ready', flush=True)\n"
            "until = time.monotonic() + 1\n"
            "seen = set()\n"
            "while time.monotonic() < until:\n"
            "    seen.add(at_rest(reader))\n"
            "print(sorted(map(str, seen)), flush=True)\n"
        )
        with subprocess.Popen([sys.executable, "-c", code, root / "a.pdf"], stdout=subprocess.PIPE) as asking:
            assert asking.stdout is not None
            asking.stdout.readline()
            while asking.poll() is None:
                with opened(root / "a.pdf", os.O_WRONLY):
                    pass
            assert asking.returncode == 0
            assert asking.stdout.read().strip() == b"['False', 'True']"


class TestDigest:
    @pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
    def test_one_pass_gives_all_digests(self, root: Path, size: int) -> None:
        content = fill(root / "a.pdf", size)
        digests = Digests(
            hashlib.sha256(content).hexdigest(),
            xxh3_128(content).hexdigest(),
            hashlib.md5(content, usedforsecurity=False).hexdigest(),
        )
        stamp = Stamp.of((root / "a.pdf").stat())
        assert digest(root, b"a.pdf", md5=True) == Reading(stamp, True, digests)
        assert digest(root, b"a.pdf") == Reading(stamp, True, replace(digests, md5=None))

    def test_many_in_one_call_each_with_its_own_outcome(self, root: Path) -> None:
        fill(root / "a.pdf", 10)
        fill(root / "c.pdf", 20)
        before = descriptors()
        first, second, third = digests(root, [b"a.pdf", b"b.pdf", b"c.pdf"])
        assert isinstance(second, SourceVanished)
        assert not isinstance(first, SourceError)
        assert not isinstance(third, SourceError)
        assert (first.stamp.size, third.stamp.size) == (10, 20)
        assert descriptors() == before

    def test_one_visit_to_several_folders(self, root: Path) -> None:
        """A folder's descriptor is shared by what lies in it, and by nothing else."""
        places = ["top.pdf", "a/1.pdf", "a/2.pdf", "a/b/3.pdf", "none/4.pdf", "c/5.pdf", "top2.pdf", "a/6.pdf"]
        there = [place for place in places if not place.startswith("none")]
        for place in there:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            fill(root / place, 10)
        (root / "way").symlink_to(root / "a")
        before = descriptors()
        found = digests(root, [os.fsencode(place) for place in [*places, "way/1.pdf"]])
        assert descriptors() == before
        by_place = dict(zip([*places, "way/1.pdf"], found, strict=True))
        assert isinstance(by_place.pop("none/4.pdf"), SourceVanished)
        assert isinstance(by_place.pop("way/1.pdf"), SourceVanished)
        assert by_place == {place: digest(root, os.fsencode(place)) for place in there}

    def test_a_file_that_changes_while_it_is_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(root / "a.pdf", 3 * BLOCK)
        read = os.pread

        def read_and_touch(descriptor: int, length: int, offset: int) -> bytes:
            if offset == BLOCK:
                os.utime(root / "a.pdf")
            return read(descriptor, length, offset)

        monkeypatch.setattr(os, "pread", read_and_touch)
        with pytest.raises(SourceChanged):
            digest(root, b"a.pdf")

    def test_a_writer_that_comes_while_it_is_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(root / "a.pdf", 2 * BLOCK)
        read, writers = os.pread, []

        def read_and_open(descriptor: int, length: int, offset: int) -> bytes:
            if offset == BLOCK:
                writers.append(os.open(root / "a.pdf", os.O_WRONLY))
            return read(descriptor, length, offset)

        monkeypatch.setattr(os, "pread", read_and_open)
        assert digest(root, b"a.pdf").at_rest is False
        os.close(writers[0])

    def test_a_writer_of_a_small_file_waits_while_it_is_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever would be let in could write between two stamps of one tick of the kernel's clock."""
        fill(root / "a.pdf", 10)
        read = os.pread

        def read_and_open(descriptor: int, length: int, offset: int) -> bytes:
            with pytest.raises(BlockingIOError):  # without O_NONBLOCK it would wait
                os.open(root / "a.pdf", os.O_WRONLY | os.O_NONBLOCK)
            return read(descriptor, length, offset)

        monkeypatch.setattr(os, "pread", read_and_open)
        assert digest(root, b"a.pdf").at_rest is False
        monkeypatch.undo()
        with opened(root / "a.pdf", os.O_WRONLY | os.O_NONBLOCK):
            pass
        assert digest(root, b"a.pdf").at_rest is True


class TestSource:
    @pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5])
    @pytest.mark.parametrize("md5", [False, True])
    async def test_all_bytes_in_order_as_often_as_asked(self, root: Path, size: int, md5: bool) -> None:
        content = fill(root / "a.pdf", size)
        before = descriptors()
        async with planned(root, md5=md5) as source:
            assert source.size == size
            for _ in range(2):
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
        source = Opener(root).source(b"a.pdf", stamp, replace(digests, fingerprint="0" * 32))
        with pytest.raises(SourceChanged):
            await drain(source, lambda block: given.append(block))
        assert len(b"".join(given)) < size

    @pytest.mark.parametrize("size", [10, 3 * BLOCK])
    async def test_what_an_older_docferry_planned_is_proved_by_its_sha256(self, root: Path, size: int) -> None:
        content = fill(root / "a.pdf", size)
        stamp, digests = digests_of(root)
        given: list[bytes] = []
        async with Opener(root).source(b"a.pdf", stamp, Digests(digests.sha256), md5=True) as source:
            assert source.md5 == hashlib.md5(content, usedforsecurity=False).hexdigest()
            given = [block async for block in source.blocks()]
        assert b"".join(given) == content
        with pytest.raises(SourceChanged, match="other bytes"):
            await drain(Opener(root).source(b"a.pdf", stamp, Digests("0" * 64)), lambda _: pytest.fail("a byte"))

    @pytest.mark.parametrize("change", ["rewrite", "grow", "shrink", "touch", "unlink"])
    async def test_a_change_while_it_is_sent_withholds_the_last_block(self, root: Path, change: str) -> None:
        """C5, C6, C7: the body is never completed, not even where mtime is put back."""
        path = root / "a.pdf"
        fill(path, 4 * BLOCK)
        times = path.stat()
        given: list[bytes] = []

        def meddle(block: bytes) -> None:
            given.append(block)
            if len(given) > 1:
                return
            if change == "unlink":
                path.unlink()
                return
            with path.open("r+b") as file:
                if change == "rewrite":
                    os.pwrite(file.fileno(), b"other", 3 * BLOCK)
                elif change != "touch":
                    file.truncate((5 if change == "grow" else 2) * BLOCK)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

        with pytest.raises(SourceChanged):
            await drain(planned(root), meddle)
        assert 0 < len(b"".join(given)) < 4 * BLOCK

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
        """Of those that wait for the thread the first takes all there, or, cancelled in that moment, none."""
        contents = {name: fill(root / name, 10) for name in ("busy.pdf", "first.pdf", "second.pdf")}
        opener, scope, got = Opener(root), anyio.CancelScope(), []

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
        """A 256 MiB file through a source: at no time are more than a few blocks alive."""
        with (root / "a.pdf").open("wb") as file:
            file.truncate(256 * BLOCK)
        stamp, digests = digests_of(root)
        code = (
            "import anyio, resource, sys\n"
            "from pathlib import Path\n"
            "from docferry.files.source import Opener\n"
            "from docferry.model import Digests, Stamp\n"
            "async def main():\n"
            "    stamp = Stamp(*map(int, sys.argv[3:6]))\n"
            "    digests = Digests('', sys.argv[2])\n"
            "    async with Opener(Path(sys.argv[1])).source(b'a.pdf', stamp, digests) as source:\n"
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


def test_disk_errors_say_where_to_look(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C8: the kernel's own errors; libfiu causes them for real in the fault matrix."""
    import errno

    def fails(_descriptor: int, _length: int, _offset: int) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    fill(root / "a.pdf", 10)
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(SourceUnreadable, match=r"a\.pdf cannot be read \(stale file handle\): check the disk"):
        digest(root, b"a.pdf")
