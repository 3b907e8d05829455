"""Test that only the sent version of a file is deleted or archived, even if its name changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from docferry.files import sent_files
from docferry.files.hashing import hash_file
from docferry.files.safe_open import Root
from docferry.files.sent_files import Fate, SentFile, remove, restore
from docferry.model import Stamp
from files.conftest import NOBODY

SWAPS = 10_000


def sent(root: Path, *names: str) -> list[SentFile]:
    """Describe these files as just sent."""
    found = []
    for number, name in enumerate(names):
        hashed = hash_file(Root(root), os.fsencode(name))
        assert hashed.digests is not None
        found.append(SentFile(number, os.fsencode(name), hashed.stamp, hashed.digests.sha256))
    return found


def write_documents(root: Path, *names: str) -> list[SentFile]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return sent(root, *names)


def fates(root: Path, files: list[SentFile], archive: Path | None = None) -> list[Fate]:
    removals = remove(Root(root), files, None if archive is None else Root(archive))
    return [each.fate for each in sorted(removals, key=lambda each: each.file.document_id)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def archive(root: Path) -> Path:
    return root / "archive"


@pytest.fixture
def inbox(root: Path) -> Path:
    (root / "in").mkdir()
    return root / "in"


@pytest.fixture
def elsewhere(root: Path) -> Iterator[Path]:
    """Provide a folder on another file system."""
    shm = Path("/dev/shm")  # noqa: S108 - wanted for its file system
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == root.stat().st_dev:
        pytest.skip("no second file system: /dev/shm is missing or not writable")
    folder = Path(tempfile.mkdtemp(prefix="docferry-test-", dir=shm))
    yield folder
    shutil.rmtree(folder)


def test_sent_files_are_deleted(inbox: Path) -> None:
    files = write_documents(inbox, "a.pdf", "x/b.pdf", "x/c.pdf", "x/y/d.pdf")
    (inbox / "x" / "new.pdf").write_bytes(b"new")
    (inbox / "x" / "c.pdf").unlink()
    assert fates(inbox, files) == [Fate.DONE] * 4
    assert tree(inbox) == {"x/new.pdf": b"new"}
    assert sorted(path.name for path in (inbox / "x").iterdir()) == ["new.pdf", "y"]


def test_sent_files_keep_their_path_in_the_archive(inbox: Path, archive: Path) -> None:
    assert fates(inbox, write_documents(inbox, "a.pdf", "x/y/b.pdf"), archive) == [Fate.DONE] * 2
    assert tree(inbox) == {}
    assert tree(archive) == {"a.pdf": b"a.pdf", "x/y/b.pdf": b"x/y/b.pdf"}


def test_the_archive_never_overwrites_and_needs_no_second_copy(inbox: Path, archive: Path) -> None:
    for content in (b"one", b"two", b"one"):
        (inbox / "a.pdf").write_bytes(content)
        assert fates(inbox, sent(inbox, "a.pdf"), archive) == [Fate.DONE]
    assert tree(archive) == {"a.pdf": b"one", "a (2).pdf": b"two"}


def test_a_colliding_name_of_255_bytes(inbox: Path, archive: Path) -> None:
    name = "ä" * 125 + "x.pdf"
    assert len(name.encode()) == 255
    for content in (b"one", b"two"):
        (inbox / name).write_bytes(content)
        assert fates(inbox, sent(inbox, name), archive) == [Fate.DONE]
    assert sorted(tree(archive).values()) == [b"one", b"two"]
    assert all(name.isprintable() for name in tree(archive)), "a character was cut"


def test_the_cost_does_not_grow_with_the_archive(inbox: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archive some thousand reports with one name and size."""
    archive.mkdir()
    for number in range(1, 3000):
        (archive / ("report.pdf" if number == 1 else f"report ({number}).pdf")).write_bytes(b"%6d" % number)
    (inbox / "report.pdf").write_bytes(b"tonite")
    files = sent(inbox, "report.pdf")
    calls = 0

    def counted(real: object) -> object:
        def call(*given: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            return real(*given, **named)  # type: ignore[operator]  # whichever call it is

        return call

    for name in ("open", "stat", "scandir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    assert fates(inbox, files, archive) == [Fate.DONE]
    assert calls < 120
    assert (archive / "report (3000).pdf").read_bytes() == b"tonite"


def test_an_archive_on_another_file_system_keeps_the_attributes(inbox: Path, elsewhere: Path) -> None:
    files = write_documents(inbox, "x/a.pdf")
    path = inbox / "x" / "a.pdf"
    os.utime(path, ns=(1_500_000_000_000_000_001, 1_600_000_000_000_000_001))
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    os.setxattr(path, "user.customer", b"acme")
    files, before = sent(inbox, "x/a.pdf"), path.stat()
    assert fates(inbox, files, elsewhere) == [Fate.DONE]
    copy = elsewhere / "x" / "a.pdf"
    after = copy.stat()
    assert copy.read_bytes() == b"x/a.pdf"
    assert (after.st_mtime_ns, after.st_mode, after.st_uid) == (before.st_mtime_ns, before.st_mode, before.st_uid)
    assert os.getxattr(copy, "user.customer") == b"acme"
    assert tree(inbox) == {}


def test_what_is_archived_cannot_be_rewritten_through_a_hard_link(inbox: Path, archive: Path, root: Path) -> None:
    write_documents(inbox, "a.pdf")
    os.link(inbox / "a.pdf", root / "link.pdf")
    assert fates(inbox, sent(inbox, "a.pdf"), archive) == [Fate.DONE]
    (root / "link.pdf").write_bytes(b"forged")
    assert tree(archive) == {"a.pdf": b"a.pdf"}


@pytest.mark.parametrize("change", ["other bytes", "renamed over", "link", "folder", "touched"])
def test_what_was_replaced_stays(inbox: Path, archive: Path, root: Path, change: str) -> None:
    files = write_documents(inbox, "a.pdf")
    path = inbox / "a.pdf"
    (root / "other.pdf").write_bytes(b"other")
    if change == "other bytes":
        path.write_bytes(b"other")
    elif change == "renamed over":
        (root / "other.pdf").rename(path)
    elif change == "touched":
        os.utime(path)
    else:
        path.unlink()
        path.mkdir() if change == "folder" else path.symlink_to(root / "other.pdf")
    assert fates(inbox, files, archive) == [Fate.REPLACED]
    assert [each.name for each in inbox.iterdir()] == ["a.pdf"]
    assert not tree(archive)
    if change == "link":
        assert (root / "other.pdf").read_bytes() == b"other"


def test_what_is_open_for_writing_stays(inbox: Path, archive: Path) -> None:
    files = write_documents(inbox, "a.pdf", "b.pdf")
    with (inbox / "a.pdf").open("ab") as writer:
        assert fates(inbox, files, archive) == [Fate.IN_USE, Fate.DONE]
        writer.write(b" and more")
    assert tree(inbox) == {"a.pdf": b"a.pdf and more"}


@pytest.mark.parametrize("moment", ["before it is set aside", "after"])
def test_what_is_opened_for_writing_in_between_stays(
    inbox: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The writer is a process that waits for the lease, like a real program."""
    files = write_documents(inbox, "a.pdf")
    code = "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), b' and more')"
    writers: list[subprocess.Popen[bytes]] = []
    real = os.rename

    def rename(name: bytes, target: bytes, **where: int) -> None:
        if moment == "after":
            real(name, target, **where)
        aside = next(inbox.glob(".docferry-aside-*"))
        place = aside / "a.pdf" if moment == "after" else inbox / "a.pdf"
        writers.append(subprocess.Popen([sys.executable, "-c", code, place]))
        reader = os.open(place, os.O_RDONLY)
        while writers[0].poll() is None and not _is_leased_away(place):
            pass
        os.close(reader)
        if moment != "after":
            real(name, target, **where)

    monkeypatch.setattr(os, "rename", rename)
    assert fates(inbox, files, archive) == [Fate.IN_USE]
    writers[0].wait(20)
    assert tree(inbox) == {"a.pdf": b"a.pdf and more"}
    assert not tree(archive)


def _is_leased_away(path: Path) -> bool:
    """Return whether a program waits for the release of the file's lease."""
    inode = f":{path.stat().st_ino} "
    return any("BREAKING" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_replaces_it_in_the_last_moment_stays(
    inbox: Path, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    files = write_documents(inbox, "a.pdf")
    (root / "victim.pdf").write_bytes(b"victim")
    (root / "new").write_bytes(b"new") if kind == "file" else (root / "new").symlink_to(root / "victim.pdf")
    real = os.rename

    def rename(name: bytes, target: bytes, **where: int) -> None:
        real(root / "new", inbox / "a.pdf")
        real(name, target, **where)

    monkeypatch.setattr(os, "rename", rename)
    assert fates(inbox, files) == [Fate.REPLACED]
    assert (root / "victim.pdf").read_bytes() == b"victim"
    assert (inbox / "a.pdf").read_bytes() == (b"new" if kind == "file" else b"victim")


def test_a_name_that_is_taken_again_while_the_file_is_aside(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer writes the next version while the name is free: both files stay."""
    files = write_documents(inbox, "a.pdf")
    real = os.rename

    def rename(name: bytes, target: bytes, **where: int) -> None:
        (inbox / "a.pdf").write_bytes(b"second")
        real(name, target, **where)
        (inbox / "a.pdf").write_bytes(b"third")

    monkeypatch.setattr(os, "rename", rename)
    assert fates(inbox, files) == [Fate.REPLACED]
    assert tree(inbox) == {"a.pdf": b"third", "a (2).pdf": b"second"}


def test_what_a_killed_process_left_is_put_back(inbox: Path) -> None:
    write_documents(inbox, "x/a.pdf")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from docferry.files import sent_files\n"
        "from docferry.files.safe_open import Root\n"
        "from docferry.model import Stamp\n"
        "found = os.stat(sys.argv[1] + '/x/a.pdf')\n"
        "file = sent_files.SentFile(1, b'x/a.pdf', Stamp.of(found), '')\n"
        "os.unlink = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "sent_files.remove(Root(Path(sys.argv[1])), [file], None)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, inbox], check=False).returncode == -9
    [left] = [path for path in (inbox / "x").iterdir() if path.name.startswith(".docferry-aside-")]
    assert tree(inbox) == {f"x/{left.name}/a.pdf": b"x/a.pdf"}
    assert restore(Root(inbox), b"x", os.fsencode(left.name)) == [b"x/a.pdf"]
    assert tree(inbox) == {"x/a.pdf": b"x/a.pdf"}
    assert [path.name for path in (inbox / "x").iterdir()] == ["a.pdf"]


def test_a_strangers_folder_of_that_name_is_left_alone(inbox: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's folder")
    theirs = inbox / ".docferry-aside-0"
    theirs.mkdir(0o700)
    (theirs / "a.pdf").touch()
    os.chown(theirs, NOBODY, NOBODY)
    assert restore(Root(inbox), b"", b".docferry-aside-0") == []
    assert (theirs / "a.pdf").exists()


def test_a_file_that_cannot_be_removed_says_why(inbox: Path, unprivileged: object) -> None:
    files = write_documents(inbox, "a.pdf", "b.pdf")
    with unprivileged():  # type: ignore[operator]  # the fixture's type is opaque
        removals = remove(Root(inbox), files, None)
    assert {(each.fate, "ReadWritePaths" in each.detail) for each in removals} == {(Fate.FAILED, True)}
    assert len(tree(inbox)) == 2


ATTACK = """
import ctypes, os, sys
os.setgid(65534); os.setuid(65534)
mine, other = sys.argv[1], sys.argv[2]
exchange = ctypes.CDLL(None).renameat2
os.symlink(other, mine + '/link')
print('ready', flush=True)
folder, link = (mine + '/box').encode(), (mine + '/link').encode()
while True:
    exchange(-100, folder, -100, link, 2)
"""


@pytest.mark.parametrize("action", ["delete", "archive"])
def test_an_attacker_who_swaps_folders_touches_nothing_of_others(inbox: Path, root: Path, action: str) -> None:
    """A folder is constantly exchanged for a link to another customer's folder, during 10,000 removals of its files."""
    if os.geteuid() != 0:
        pytest.skip("needs a second user")
    mine, other, archive = inbox / "mine", inbox / "other", root / "archive"
    others = {f"{number}.pdf": b"same bytes" for number in range(20)}
    for folder in (mine / "box", other):
        folder.mkdir(parents=True)
        for name, content in others.items():
            (folder / name).write_bytes(content)
            os.utime(folder / name, ns=(0, 0))
    os.chown(mine, NOBODY, NOBODY)
    os.chown(mine / "box", NOBODY, NOBODY)
    before = {path.name: path.stat().st_ino for path in other.iterdir()}
    digest = hash_file(Root(inbox), b"other/0.pdf").digests
    assert digest is not None
    attacker = subprocess.Popen([sys.executable, "-c", ATTACK, mine, other], stdout=subprocess.PIPE)
    try:
        assert attacker.stdout is not None
        attacker.stdout.readline()
        removed = 0
        for attempt in range(SWAPS // len(others)):
            # The stamps are those of the other customer's files: only where they lie keeps them from being removed.
            files = [
                SentFile(number, b"mine/box/" + name.encode(), Stamp.of((other / name).stat()), digest.sha256)
                for number, name in enumerate(others)
            ]
            removals = remove(Root(inbox), files, Root(archive) if action == "archive" else None)
            removed += len(removals)
            assert {path.name: path.stat().st_ino for path in other.iterdir()} == before, attempt
    finally:
        attacker.kill()
        attacker.wait()
    assert removed == SWAPS
    assert tree(archive) == {}
    assert set(tree(other).values()) == {b"same bytes"}


def test_prefix_is_hidden() -> None:
    """Scans skip hidden folders."""
    assert sent_files.ASIDE_PREFIX.startswith(b".docferry-")
