"""Test hashing: each regular file below the root is read once, while nobody writes to it."""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from xxhash import xxh3_128

from docferry.errors import FolderError, SourceChanged, SourceError, SourceUnreadable, SourceVanished
from docferry.files.hashing import HashedFile, hash_file, hash_files
from docferry.files.safe_open import BLOCK, OpenRoot, Root
from docferry.files.write_lease import no_writer
from docferry.model import Digests, Stamp
from files.reading import descriptors, digests_of, fill

Unprivileged = Callable[[], AbstractContextManager[None]]


def look_into(root: Path, path: bytes) -> None:
    with OpenRoot(Root(root)) as opened:
        os.close(opened.open_file(path))


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
                hash_file(Root(root), name)
        assert descriptors() == before

    def test_the_person_is_told_what_to_do(self, root: Path, unprivileged: Unprivileged) -> None:
        fill(root / "a.pdf", 10)
        (root / "a.pdf").chmod(0o000)
        with (
            unprivileged(),
            pytest.raises(SourceUnreadable, match=r"a\.pdf cannot be read .*: let the user"),
        ):
            hash_file(Root(root), b"a.pdf")

    def test_a_missing_root_is_not_a_missing_file(self, root: Path) -> None:
        with pytest.raises(FolderError):
            hash_file(Root(root / "gone"), b"a.pdf")

    @pytest.mark.parametrize("swapped", ["file", "folder"])
    def test_a_racing_swapper_never_gets_a_secret_out(self, root: Path, swapped: str) -> None:
        """W12: a file and a link to a secret replace each other as fast as renames allow."""
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
            assert no_writer(reader) is True
            with opened(root / "a.pdf", os.O_WRONLY):
                assert no_writer(reader) is False
            assert no_writer(reader) is True

    def test_a_writer_in_another_program(self, root: Path) -> None:
        fill(root / "a.pdf", 10)
        code = "import sys; f = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read(1)"
        with subprocess.Popen(
            [sys.executable, "-c", code, root / "a.pdf"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            found = hash_file(Root(root), b"a.pdf")
            assert (found.no_writer, found.digests) == (False, None)
            writer.communicate(b"x")
        assert hash_file(Root(root), b"a.pdf").no_writer is True

    def test_a_mapped_writer_that_has_closed_its_descriptor(self, root: Path) -> None:
        fill(root / "a.pdf", 4096)
        with (root / "a.pdf").open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 4096)
        assert hash_file(Root(root), b"a.pdf").no_writer is False
        mapped.close()
        assert hash_file(Root(root), b"a.pdf").no_writer is True

    def test_where_no_lease_can_be_had(self, root: Path, unprivileged: Unprivileged) -> None:
        if os.geteuid() != 0:
            pytest.skip("without root there is no file of somebody else's to ask about")
        content = fill(root / "a.pdf", 10)
        (root / "a.pdf").chmod(0o644)
        with unprivileged():
            found = hash_file(Root(root), b"a.pdf")
        assert found.no_writer is None
        assert found.digests is not None
        assert found.digests.sha256 == hashlib.sha256(content).hexdigest()

    def test_a_writer_that_breaks_the_lease_does_not_kill_the_program(self, root: Path) -> None:
        """SIGIO's default action ends a program, and the kernel sends it when a lease is broken."""
        fill(root / "a.pdf", 10)
        code = (
            "import os, sys, time\n"
            "from docferry.files.write_lease import no_writer\n"
            "reader = os.open(sys.argv[1], os.O_RDONLY)\n"
            "print('ready', flush=True)\n"
            "until = time.monotonic() + 1\n"
            "seen = set()\n"
            "while time.monotonic() < until:\n"
            "    seen.add(no_writer(reader))\n"
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
    @pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, 32 * BLOCK + 5])
    def test_one_pass_gives_all_digests(self, root: Path, size: int) -> None:
        content = fill(root / "a.pdf", size)
        digests = Digests(
            hashlib.sha256(content).hexdigest(),
            xxh3_128(content).hexdigest(),
            hashlib.md5(content, usedforsecurity=False).hexdigest(),
        )
        stamp = Stamp.of((root / "a.pdf").stat())
        assert hash_file(Root(root), b"a.pdf", md5=True) == HashedFile(stamp, True, digests)
        assert hash_file(Root(root), b"a.pdf") == HashedFile(stamp, True, replace(digests, md5=None))

    def test_many_in_one_call_each_with_its_own_outcome(self, root: Path) -> None:
        fill(root / "a.pdf", 10)
        fill(root / "c.pdf", 20)
        before = descriptors()
        first, second, third = hash_files(Root(root), [b"a.pdf", b"b.pdf", b"c.pdf"])
        assert isinstance(second, SourceVanished)
        assert not isinstance(first, SourceError)
        assert not isinstance(third, SourceError)
        assert (first.stamp.size, third.stamp.size) == (10, 20)
        assert descriptors() == before

    def test_one_visit_to_several_folders(self, root: Path) -> None:
        """Each folder has its own descriptor, shared only by its files."""
        places = ["top.pdf", "a/1.pdf", "a/2.pdf", "a/b/3.pdf", "none/4.pdf", "c/5.pdf", "top2.pdf", "a/6.pdf"]
        there = [place for place in places if not place.startswith("none")]
        for place in there:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            fill(root / place, 10)
        (root / "way").symlink_to(root / "a")
        before = descriptors()
        found = hash_files(Root(root), [os.fsencode(place) for place in [*places, "way/1.pdf"]])
        assert descriptors() == before
        by_place = dict(zip([*places, "way/1.pdf"], found, strict=True))
        assert isinstance(by_place.pop("none/4.pdf"), SourceVanished)
        assert isinstance(by_place.pop("way/1.pdf"), SourceVanished)
        assert by_place == {place: hash_file(Root(root), os.fsencode(place)) for place in there}

    def test_a_file_that_changes_while_it_is_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(root / "a.pdf", 3 * BLOCK)
        read = os.pread

        def read_and_touch(descriptor: int, length: int, offset: int) -> bytes:
            if offset == BLOCK:
                os.utime(root / "a.pdf")
            return read(descriptor, length, offset)

        monkeypatch.setattr(os, "pread", read_and_touch)
        with pytest.raises(SourceChanged):
            hash_file(Root(root), b"a.pdf")

    def test_a_writer_that_comes_while_it_is_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(root / "a.pdf", 2 * BLOCK)
        read, writers = os.pread, []

        def read_and_open(descriptor: int, length: int, offset: int) -> bytes:
            if offset == BLOCK:
                writers.append(os.open(root / "a.pdf", os.O_WRONLY))
            return read(descriptor, length, offset)

        monkeypatch.setattr(os, "pread", read_and_open)
        assert hash_file(Root(root), b"a.pdf").no_writer is False
        os.close(writers[0])

    def test_a_writer_of_a_small_file_waits_while_it_is_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Otherwise it could write between two stamps of one tick of the kernel's clock."""
        fill(root / "a.pdf", 10)
        read = os.pread

        def read_and_open(descriptor: int, length: int, offset: int) -> bytes:
            with pytest.raises(BlockingIOError):  # without O_NONBLOCK it would wait
                os.open(root / "a.pdf", os.O_WRONLY | os.O_NONBLOCK)
            return read(descriptor, length, offset)

        monkeypatch.setattr(os, "pread", read_and_open)
        assert hash_file(Root(root), b"a.pdf").no_writer is False
        monkeypatch.undo()
        with opened(root / "a.pdf", os.O_WRONLY | os.O_NONBLOCK):
            pass
        assert hash_file(Root(root), b"a.pdf").no_writer is True


def test_disk_errors_say_where_to_look(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C8: the kernel's own errors; libfiu causes them for real in the fault matrix."""
    import errno

    def fails(_descriptor: int, _length: int, _offset: int) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    fill(root / "a.pdf", 10)
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(SourceUnreadable, match=r"a\.pdf cannot be read \(stale file handle\): check the disk"):
        hash_file(Root(root), b"a.pdf")
