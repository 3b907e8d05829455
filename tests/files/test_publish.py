"""Test that downloads appear complete, at the right place, under a safe name, and replace nothing."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zips
from docferry.errors import FolderError
from docferry.files.placement import Content
from docferry.files.publish import choose, content_of, put, render_layout, safe_name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "inbox"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Provide a folder on another file system than the mapping's."""
    shm = Path("/dev/shm")  # noqa: S108 - wanted for its filesystem
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second filesystem: /dev/shm is not there or not writable")
    folder = Path(tempfile.mkdtemp(prefix="docferry-test-", dir=shm))
    yield folder
    shutil.rmtree(folder)


def _land(root: Path, spool: Path, written: bytes, relative: str) -> Path:
    spool.mkdir(exist_ok=True)
    file = spool / "0001"
    file.write_bytes(written)
    content = content_of(file)
    published = put(file, choose(root, PurePosixPath(relative), content), root, content)
    assert not file.exists()
    return published


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- names -----------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(codec=None), max_size=300) | st.sampled_from((*zips.ODD_NAMES, *zips.LEADING_OUT))


@given(NAMES)
def test_a_safe_name_is_one_plain_segment(name: str) -> None:
    safe = safe_name(name)
    assert safe not in ("", ".", "..")
    assert len(safe.encode()) <= 200
    assert safe.isprintable()
    assert not set(safe) & set('/\\:*?"<>|')
    assert safe == safe.strip(" .")
    assert safe.split(".")[0].strip().lower() not in ("con", "aux", "nul", "prn", "com1", "lpt9")
    assert safe_name(safe) == safe


@given(NAMES, NAMES, st.sampled_from(("{date}/{source}/{name}", "{company_id}/{name}", "x-{source}{name}.d", "{name}")))
def test_a_layout_never_leads_out_of_its_folder(name: str, source: str, layout: str) -> None:
    relative = render_layout(layout, date="2026-01-31", source=source, name=name, company_id="..")
    assert not relative.is_absolute()
    assert ".." not in relative.parts
    assert len(relative.parts) == layout.count("/") + 1


def test_a_suffix_survives_the_cut_and_a_device_its_name() -> None:
    assert safe_name("ä" * 300 + ".pdf").endswith("ä.pdf")
    assert safe_name("aux.pdf") == "_aux.pdf"
    assert safe_name("\u202efdp.exe") == "_fdp.exe"
    assert safe_name("e\u0301.pdf") == "é.pdf"
    assert safe_name("..") == "unnamed"


# -- never over other bytes ------------------------------------------------------------------------------------------


def test_other_bytes_get_a_name_beside_and_the_same_bytes_none(root: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    for content in (b"one", b"two", b"one", b"three", b"two"):
        _land(root, spool, content, "2026/a.pdf")
    assert _bytes_of(root) == {"2026/a.pdf": b"one", "2026/a (2).pdf": b"two", "2026/a (3).pdf": b"three"}


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_no_file_is_not_touched(root: Path, tmp_path: Path, kind: str) -> None:
    root.mkdir()
    victim, other = root / "a.pdf", tmp_path / "other.pdf"
    other.write_bytes(b"same")
    if kind == "pipe":
        os.mkfifo(victim)
    elif kind == "folder":
        victim.mkdir()
    else:
        victim.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    assert _land(root, tmp_path / "spool", b"same", "a.pdf").name == "a (2).pdf"
    assert other.read_bytes() == b"same"
    assert not (tmp_path / "nowhere").exists()


def test_whoever_is_faster_keeps_the_name(root: Path, tmp_path: Path) -> None:
    """Another process takes the chosen name before the rename."""
    file = tmp_path / "0001"
    file.write_bytes(b"ours")
    target = choose(root, PurePosixPath("a.pdf"), content_of(file))
    root.mkdir()
    target.write_bytes(b"theirs")
    assert put(file, target, root, content_of(file)).name == "a (2).pdf"
    assert _bytes_of(root) == {"a.pdf": b"theirs", "a (2).pdf": b"ours"}


def test_many_at_once_lose_nothing(root: Path, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def publish_archive(number: int) -> None:
        try:
            _land(root, tmp_path / f"spool{number}", b"%d" % number, "x/a.pdf")
        except BaseException as error:  # noqa: BLE001 - a thread's error must reach the test
            errors.append(error)

    threads = [threading.Thread(target=publish_archive, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(_bytes_of(root).values()) == sorted(b"%d" % number for number in range(12))


# -- never behind links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_nothing_is_made_behind_a_link(root: Path, tmp_path: Path, when: str) -> None:
    """Whether the link stood there before the place was chosen, or was put there since."""
    root.mkdir()
    outside, file = tmp_path / "outside", tmp_path / "0001"
    outside.mkdir()
    file.write_bytes(b"x")
    content = content_of(file)
    if when == "after":
        target = choose(root, PurePosixPath("a/b/c.pdf"), content)
        (root / "a").symlink_to(outside)
        with pytest.raises(FolderError, match="is a link"):
            put(file, target, root, content)
    else:
        (root / "a").symlink_to(outside)
        with pytest.raises(FolderError, match="is a link"):
            choose(root, PurePosixPath("a/b/c.pdf"), content)
    assert list(outside.iterdir()) == []
    assert file.exists()


@pytest.mark.parametrize("relative", ["../a.pdf", "x/../../a.pdf"])
def test_a_path_that_leads_out_is_refused(root: Path, tmp_path: Path, relative: str) -> None:
    with pytest.raises(FolderError, match="leads out"):
        choose(root, PurePosixPath(relative), Content("", 1))
    (tmp_path / "0001").write_bytes(b"x")
    with pytest.raises(FolderError, match="leads out"):
        put(tmp_path / "0001", root / relative, root, Content("", 1))
    assert not (tmp_path / "a.pdf").exists()


def test_a_file_where_a_folder_is_wanted_is_said(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    (root / "a").write_bytes(b"")
    with pytest.raises(FolderError, match="where a folder is needed"):
        _land(root, tmp_path / "spool", b"x", "a/b.pdf")


# -- other filesystems, and deaths in between ------------------------------------------------------------------------


def test_it_comes_whole_from_another_filesystem_with_its_mode(root: Path, elsewhere: Path) -> None:
    content = os.urandom(3 * 1024 * 1024)
    file = elsewhere / "0001"
    file.write_bytes(content)
    file.chmod(0o640)
    published = put(file, choose(root, PurePosixPath("a/b.pdf"), content_of(file)), root, content_of(file))
    assert _bytes_of(root) == {"a/b.pdf": content}
    assert published.stat().st_mode & 0o777 == 0o640
    assert not file.exists()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_a_mount_of_the_same_filesystem_or_a_strangers_file_is_copied(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Each writable folder of a hardened unit is a separate mount of one device, without links between them."""
    real = os.link

    def link(source: object, name: str, **where: object) -> None:
        if "/proc/self/fd" not in str(source):
            raise OSError(number, os.strerror(number))
        real(source, name, **where)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(os, "link", link)
    assert _land(root, tmp_path / "spool", b"x", "a/b.pdf") == root / "a" / "b.pdf"
    assert _bytes_of(root) == {"a/b.pdf": b"x"}


def test_a_share_without_nameless_files_gets_a_hidden_part(
    root: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_WRONLY)  # as if there were none: EISDIR
    assert _land(root, elsewhere, b"x", "a.pdf") == root / "a.pdf"
    assert _bytes_of(root) == {"a.pdf": b"x"}


def test_a_filesystem_without_links_says_so(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(FolderError, match="has no hard links"):
        _land(root, tmp_path / "spool", b"x", "a.pdf")
    assert _bytes_of(root) == {}
    assert (tmp_path / "spool" / "0001").read_bytes() == b"x"


def test_a_death_between_appearing_and_tidying_up_is_made_good(root: Path, tmp_path: Path) -> None:
    """Killed after the file appeared and before its spool went: the second time it is found there, once."""
    file = tmp_path / "0001"
    file.write_bytes(b"x")
    content = content_of(file)
    target = choose(root, PurePosixPath("a.pdf"), content)
    root.mkdir()
    os.link(file, target)
    again = choose(root, PurePosixPath("a.pdf"), content)
    assert put(file, again, root, content) == target
    assert _bytes_of(root) == {"a.pdf": b"x"}
    assert not file.exists()


@pytest.mark.parametrize("across", [False, True])
def test_killed_at_any_call_it_is_old_or_whole_and_leaves_no_litter(root: Path, elsewhere: Path, across: bool) -> None:
    """A child process dies before its 1st, 2nd, 3rd, … system call."""
    root.mkdir()
    spool = elsewhere if across else root.parent
    content = os.urandom(100_000)
    deaths = 0
    for fatal in range(40):
        file = spool / "0001"
        file.write_bytes(content)
        if _dies(file, root, fatal):
            deaths += 1
        assert _bytes_of(root) in ({}, {"a/b.pdf": content})
    assert deaths >= 4
    assert _bytes_of(root) == {"a/b.pdf": content}


def _dies(file: Path, root: Path, fatal: int) -> bool:
    """Return whether a child was killed while it published the file, before its `fatal`th call."""
    child = os.fork()
    if child == 0:
        left = fatal
        for name in ("mkdir", "open", "link", "fsync", "fchmod", "unlink", "close"):

            def call(*given: object, _real: object = getattr(os, name), **named: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), 9)
                return _real(*given, **named)  # type: ignore[operator]  # whichever call it is

            setattr(os, name, call)
        content = content_of(file)
        put(file, choose(root, PurePosixPath("a/b.pdf"), content), root, content)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0
