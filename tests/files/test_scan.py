"""Test that a scan finds every regular file, follows no link, and survives every kind of entry."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from docferry.errors import FolderError
from docferry.files.safe_open import OpenRoot, Root
from docferry.files.scan import EVERY_FOLDER, WHOLE, FolderFilter, Listing, is_empty, stat_file, walk
from docferry.model import SeenFile, Stamp

Unprivileged = Callable[[], AbstractContextManager[None]]


def look(root: Path, path: bytes) -> SeenFile | None:
    with OpenRoot(Root(root)) as opened:
        return stat_file(opened, path)


def is_folder(root: Path, path: bytes) -> bool:
    with OpenRoot(Root(root)) as opened:
        return opened.is_folder(path)


@dataclass
class Without:
    """Enters all folders but these, and records the questions."""

    folders: set[bytes] = field(default_factory=set)
    asked: list[bytes] = field(default_factory=list)

    def enters(self, folder: bytes) -> bool:
        self.asked.append(folder)
        return folder not in self.folders


def listings(root: Path, folders: FolderFilter = EVERY_FOLDER, starts: Iterable[bytes] = WHOLE) -> dict[bytes, Listing]:
    return {one.folder: one for chunk in walk(Root(root), folders, starts=starts) for one in chunk}


def paths(root: Path, folders: FolderFilter = EVERY_FOLDER, starts: Iterable[bytes] = WHOLE) -> set[bytes]:
    return {one.seen_file(seen).path for one in listings(root, folders, starts).values() for seen in one.files}


def test_a_tree_is_found_whole(root: Path) -> None:
    wanted = {
        f"{company}/{connection}/doc {number}.pdf".encode()
        for company in "ab"
        for connection in "xyz"
        for number in range(9)
    }
    for path in wanted:
        target = Path(os.fsdecode(os.fsencode(root) + b"/" + path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path)
    (root / "top.pdf").write_bytes(b"x")
    assert paths(root) == wanted | {b"top.pdf"}
    found = listings(root)
    assert found[b""].folders == 2
    assert found[b"a"].files == []
    name, size, mtime_ns, ctime_ns = next(seen for seen in found[b""].files)
    assert (name, Stamp(size, mtime_ns, ctime_ns)) == (b"top.pdf", Stamp.of((root / "top.pdf").stat()))


def test_each_folder_comes_once_and_in_chunks(root: Path) -> None:
    for folder in range(10):
        (root / f"d{folder}").mkdir()
        for number in range(30):
            (root / f"d{folder}" / f"{number}.pdf").touch()
    chunks = list(walk(Root(root), chunk=60))
    folders = [one.folder for chunk in chunks for one in chunk]
    assert len(folders) == len(set(folders)) == 11
    assert len(chunks) >= 5
    assert all(sum(len(one.files) for one in chunk) <= 90 for chunk in chunks)


def test_only_regular_files_and_no_link_is_followed(root: Path) -> None:
    (root / "secret").mkdir()
    (root / "secret" / "key.pdf").write_bytes(b"key")
    (root / "in").mkdir()
    (root / "in" / "loop").symlink_to(root / "in")
    (root / "in" / "out").symlink_to(root / "secret")
    (root / "in" / "link.pdf").symlink_to(root / "secret" / "key.pdf")
    os.mkfifo(root / "in" / "pipe.pdf")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "in" / "s.pdf"))
        (root / "in" / "plain.pdf").write_bytes(b"x")
        assert paths(root / "in") == {b"plain.pdf"}
        assert listings(root / "in")[b""].folders == 0


def test_the_root_itself_may_be_a_link(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "a.pdf").write_bytes(b"x")
    (root / "alias").symlink_to(root / "real")
    assert paths(root / "alias") == {b"a.pdf"}
    assert look(root / "alias", b"a.pdf") is not None


def test_names_that_are_not_utf8(root: Path) -> None:
    os.mkdir(os.fsencode(root) + b"/\xfe")  # noqa: PTH102 - pathlib takes no bytes
    with open(os.fsencode(root) + b"/\xfe/\xff.pdf", "wb") as file:  # noqa: PTH123 - pathlib takes no bytes
        file.write(b"x")
    assert paths(root) == {b"\xfe/\xff.pdf"}
    seen_file = look(root, b"\xfe/\xff.pdf")
    assert seen_file is not None
    assert (seen_file.folder, seen_file.name, seen_file.stamp.size) == (b"\xfe", b"\xff.pdf", 1)


def test_folders_that_are_not_entered(root: Path) -> None:
    for name in (".git/objects", "a/.cache", "a/b"):
        (root / name).mkdir(parents=True)
        (root / name / "x.pdf").touch()
    chosen = Without({b".git", b"a/.cache"})
    assert paths(root, chosen) == {b"a/b/x.pdf"}
    assert b".git/objects" not in chosen.asked


def test_starting_further_down(root: Path) -> None:
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/c/x.pdf").touch()
    (root / "a/y.pdf").touch()
    assert paths(root, starts=[b"a/b"]) == {b"a/b/c/x.pdf"}
    assert paths(root, starts=[b"a/b"], folders=Without({b"a"})) == set()
    assert paths(root, starts=[b"a/b"], folders=Without({b"a/b/c"})) == set()


@pytest.mark.parametrize("start", [b"gone", b"file.pdf", b"link"])
def test_a_start_that_is_no_folder_is_a_problem_and_no_end(root: Path, start: bytes) -> None:
    (root / "file.pdf").touch()
    (root / "real").mkdir()
    (root / "link").symlink_to(root / "real")
    [[listing]] = walk(Root(root), starts=[start])
    assert listing.files == []
    assert listing.problem is not None
    assert "disappeared" in listing.problem


def test_an_unreadable_subfolder_is_reported_and_picked_up_later(root: Path, unprivileged: Unprivileged) -> None:
    (root / "open").mkdir()
    (root / "open" / "a.pdf").touch()
    (root / "shut").mkdir()
    (root / "shut" / "b.pdf").touch()
    (root / "shut").chmod(0o000)
    with unprivileged():
        found = listings(root)
    assert [seen[0] for seen in found[b"open"].files] == [b"a.pdf"]
    assert found[b"shut"].problem == (
        "shut cannot be read (permission denied): "
        "let the user that runs docferry read it and pass through the folders above it (r and x)"
    )
    (root / "shut").chmod(0o755)
    with unprivileged():
        assert paths(root) == {b"open/a.pdf", b"shut/b.pdf"}


def test_a_folder_that_may_be_listed_but_not_passed_is_a_problem(root: Path, unprivileged: Unprivileged) -> None:
    (root / "half").mkdir()
    (root / "half" / "b.pdf").touch()
    (root / "half").chmod(0o744)
    if os.geteuid() != 0:
        (root / "half").chmod(0o400)
    with unprivileged():
        found = listings(root)
    assert found[b"half"].problem is not None


def test_a_subfolder_that_vanishes_during_the_scan(root: Path) -> None:
    for name in "abc":
        (root / name).mkdir()
        (root / name / "x.pdf").touch()
    scan = walk(Root(root), chunk=1)
    seen = [one.folder for one in next(scan)]
    for name in "abc":
        shutil.rmtree(root / name)
    rest = [one for chunk in scan for one in chunk]
    assert seen == [b""]
    assert {one.folder for one in rest} == {b"a", b"b", b"c"}
    assert all(one.problem and one.files == [] for one in rest)


def test_a_very_deep_tree(root: Path) -> None:
    here = os.open(root, os.O_RDONLY)
    for _ in range(1500):  # deeper than Python's recursion limit, and longer than PATH_MAX is not needed for that
        os.mkdir(b"d", dir_fd=here)
        below = os.open(b"d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open(b"x.pdf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert paths(root) == {b"d/" * 1500 + b"x.pdf"}


@pytest.mark.parametrize(
    "verb", [lambda root: list(walk(Root(root))), lambda root: is_empty(Root(root)), lambda r: look(r, b"a")]
)
def test_a_root_that_is_away_says_so(root: Path, verb: Callable[[Path], object]) -> None:
    with pytest.raises(FolderError, match=r"gone does not exist: create it, mount its file system"):
        verb(root / "gone")
    (root / "file").touch()
    with pytest.raises(FolderError, match="is not a folder"):
        verb(root / "file")


def test_an_unreadable_root_says_so(root: Path, unprivileged: Unprivileged) -> None:
    root.chmod(0o000)
    with unprivileged(), pytest.raises(FolderError, match="permission denied"):
        list(walk(Root(root)))
    root.chmod(0o755)


def test_empty_means_nothing_but_hidden_names(root: Path) -> None:
    assert is_empty(Root(root))
    (root / ".keep").touch()
    assert is_empty(Root(root))
    (root / "a").mkdir()
    assert not is_empty(Root(root))


def test_looking_at_one_file(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "a.pdf").write_bytes(b"abc")
    (root / "way").symlink_to(root / "real")
    (root / "l.pdf").symlink_to(root / "real" / "a.pdf")
    os.mkfifo(root / "p.pdf")
    seen_file = look(root, b"real/a.pdf")
    assert seen_file is not None
    assert seen_file.path == b"real/a.pdf"
    assert seen_file.stamp == Stamp.of((root / "real" / "a.pdf").stat())
    for path in (
        b"way/a.pdf",
        b"l.pdf",
        b"p.pdf",
        b"real",
        b"none",
        b"real/a.pdf/x",
        b"../x",
        b"real/../real/a.pdf",
        b"",
        b"/etc/passwd",
    ):
        assert look(root, path) is None, path
    assert is_folder(root, b"real")
    assert is_folder(root, b"")
    assert not any(is_folder(root, path) for path in (b"way", b"real/a.pdf", b"..", b"none"))


def test_a_scan_leaves_no_descriptor_open(root: Path) -> None:
    (root / "a").mkdir()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - nothing to join
    list(walk(Root(root)))
    abandoned = walk(Root(root), chunk=1)
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]  # walk returns a generator
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - nothing to join
