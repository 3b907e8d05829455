"""Test the extraction of untrusted ZIPs."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

import zip_corpus
import zips
from docferry.errors import ArchiveError
from docferry.files.unzip import Caps, Extracted, Member, unzip


def _extracted(tmp_path: Path, raw: bytes, caps: Caps | None = None) -> Extracted:
    archive = tmp_path / "day.zip"
    archive.write_bytes(raw)
    return unzip(archive, tmp_path / "members", caps)


def _unzipped(tmp_path: Path, raw: bytes, caps: Caps | None = None) -> list[Member]:
    extracted = _extracted(tmp_path, raw, caps)
    assert not extracted.refused
    return extracted.members


def _assert_nothing_left(tmp_path: Path) -> None:
    assert {path.name for path in tmp_path.rglob("*")} <= {"day.zip"}


def test_members_come_out_whole_under_names_of_our_own(tmp_path: Path) -> None:
    wanted = {"Bank/a.pdf": b"a" * 5000, "b.pdf": b"", "Other/deep/c.csv": b"c"}
    members = _unzipped(tmp_path, zips.plain(wanted))
    assert {(m.folder, m.name): m.spool.read_bytes() for m in members} == {
        ("Bank", "a.pdf"): b"a" * 5000,
        ("", "b.pdf"): b"",
        ("Other/deep", "c.csv"): b"c",
    }
    assert [m.spool.name for m in members] == ["0001", "0002", "0003"]


def test_folders_are_no_files(tmp_path: Path) -> None:
    assert [m.name for m in _unzipped(tmp_path, zips.plain([("Bank/", b""), ("Bank/a.pdf", b"a")]))] == ["a.pdf"]


def test_two_members_of_one_name_are_two(tmp_path: Path) -> None:
    members = _unzipped(tmp_path, zips.plain([("Bank/a.pdf", b"first"), ("Bank/a.pdf", b"second")]))
    assert [m.spool.read_bytes() for m in members] == [b"first", b"second"]


def test_what_is_landed_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        (member,) = _unzipped(tmp_path, zips.plain({"a.pdf": b"a"}))
    finally:
        os.umask(before)
    assert member.spool.stat().st_mode & 0o777 == 0o640
    assert member.spool.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("what", "raw"), [*zips.refused_members()], ids=lambda value: str(value)[:24])
def test_a_member_that_must_not_be_extracted_is_refused_alone(tmp_path: Path, what: str, raw: bytes) -> None:
    extracted = _extracted(tmp_path, raw)
    assert len(extracted.refused) == 1, what
    assert all(member.name == "good.pdf" for member in extracted.members)
    assert {path.name for path in (tmp_path / "members").iterdir()} == {m.spool.name for m in extracted.members}


def test_names_mean_what_their_writer_meant(tmp_path: Path) -> None:
    """UTF-8 without its flag, Info-ZIP's Unicode path, CP437, and empty segments."""
    path = "Bänk/ü.pdf"
    field = b"\x01" + struct.pack("<L", zlib.crc32(b"B?nk/?.pdf")) + path.encode()
    extra = struct.pack("<HH", 0x7075, len(field)) + field
    wrong = extra.replace(struct.pack("<L", zlib.crc32(b"B?nk/?.pdf")), b"\0\0\0\0")
    raw = zip_corpus.build(
        zip_corpus.Row("Bänk/é.pdf".encode(), flags=0),
        zip_corpus.Row(b"B?nk/?.pdf", flags=0, extra=extra),
        zip_corpus.Row(b"B?nk/?.pdf", flags=0, extra=wrong),
        zip_corpus.Row(b"Bank/\x81.pdf", flags=0),
        zip_corpus.Row(b"./Bank/.//dot.pdf"),
    )
    members = _unzipped(tmp_path, raw)
    assert [(m.folder, m.name) for m in members] == [
        ("Bänk", "é.pdf"),
        ("Bänk", "ü.pdf"),
        ("B?nk", "?.pdf"),
        ("Bank", "ü.pdf"),
        ("Bank", "dot.pdf"),
    ]


def test_an_honest_file_of_equal_lines_comes_out(tmp_path: Path) -> None:
    """Deflate packs it about 1,000 to 1."""
    lines = b"0.00;0.00;0.00;0.00\n" * 200_000
    (member,) = _unzipped(tmp_path, zips.plain({"Bank/zeros.csv": lines}))
    assert member.size == len(lines)


@pytest.mark.parametrize(("what", "raw"), [*zips.hostile(), *zips.broken()], ids=lambda value: str(value)[:24])
def test_hostile_and_broken_ones_are_refused_whole(tmp_path: Path, what: str, raw: bytes) -> None:
    with pytest.raises(ArchiveError):
        _unzipped(tmp_path, raw)
    _assert_nothing_left(tmp_path)
    assert what


def test_names_that_are_merely_odd_refuse_nothing(tmp_path: Path) -> None:
    """One unusual name must not block a whole day's documents."""
    members = _unzipped(tmp_path, zips.plain({f"Bank/{name}": b"x" for name in zips.ODD_NAMES}))
    assert [m.name for m in members] == list(zips.ODD_NAMES)


@pytest.mark.parametrize(
    ("caps", "said"),
    [(Caps(count=2), "members"), (Caps(size=250), "expands")],
)
def test_each_cap_holds(tmp_path: Path, caps: Caps, said: str) -> None:
    raw = zips.plain({f"{number}.pdf": bytes([number]) * 100 for number in range(3)})
    with pytest.raises(ArchiveError, match=said):
        _unzipped(tmp_path, raw, caps)
    _assert_nothing_left(tmp_path)


def test_a_message_shows_names_escaped(tmp_path: Path) -> None:
    (refused,) = _extracted(tmp_path, zips.odd("\x1b[31m../x/../../y.pdf")).refused
    assert "\\x1b[31m../x" in refused.problem


def test_a_full_disk_is_not_the_archives_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is retried, and the archive is not reported as broken."""

    def full(path: Path, flags: int, *rest: int, **named: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *rest, **named)

    real = os.open
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="No space left"):
        _unzipped(tmp_path, zips.plain({"a.pdf": b"a"}))
    monkeypatch.undo()
    _assert_nothing_left(tmp_path)


def test_bombs_fill_neither_memory_nor_disk(tmp_path: Path) -> None:
    """Try a directory of 60 MB, and 256 MB of zeros."""
    with zipfile.ZipFile(tmp_path / "table.zip", "w") as made:
        pass
    row = zips.plain({"n" * 60_000: b""})
    table = row[row.index(b"PK\x01\x02") : row.index(b"PK\x05\x06")] * 1000
    end = (tmp_path / "table.zip").read_bytes()
    numbers = struct.pack("<2H2L", 1000, 1000, len(table), 0)
    (tmp_path / "table.zip").write_bytes(table + end[:8] + numbers + end[20:])
    with zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as made, made.open("a.pdf", "w") as member:
        for _ in range(256):
            member.write(bytes(1024 * 1024))
    program = (
        "from pathlib import Path\nfrom docferry.errors import ArchiveError\n"
        "from docferry.files.unzip import Caps, unzip\n"
        "for name in ('table', 'zeros'):\n"
        "    try:\n        unzip(Path(name + '.zip'), Path('members'), Caps(size=2**27))\n"
        "        print('taken', name)\n"
        "    except ArchiveError:\n        pass\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip().isdigit(), done.stdout
    assert int(done.stdout) < 150 * 1024  # KiB, as the kernel counts
