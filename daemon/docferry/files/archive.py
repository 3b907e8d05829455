"""Opens a downloaded ZIP without believing it: names of our own, caps on everything, nothing kept of a bad one."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from docferry.errors import ArchiveError
from docferry.model import escaped

_BLOCK = 256 * 1024
_ENCRYPTED = 0x1
#: A small file of zeros packs a thousandfold; below this many bytes a ratio proves nothing.
_RATIO_COUNTS_FROM = 1024 * 1024
RESERVED = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)
}


@dataclass(frozen=True, slots=True)
class Caps:
    """What is the most that an archive may hold."""

    count: int = 10_000
    size: int = 2 * 1024**3  # bytes, all together
    member: int = 1024**3
    ratio: int = 200


@dataclass(frozen=True, slots=True)
class Member:
    """One extracted file: what the archive calls it, and where its bytes lie under a name of our own."""

    folder: str  # "" at the top, segments parted by "/"
    name: str
    spool: Path
    sha256: str
    size: int


def unzip(archive: Path, into: Path, caps: Caps | None = None) -> list[Member]:
    """Extract every file of `archive` into the fresh folder `into`, as 0001, 0002, …; for a worker thread.

    Raises ArchiveError when it is broken or hostile; then `into` is gone again."""
    into.mkdir(mode=0o700)
    try:
        return _unzip(archive, into, caps or Caps())
    except ArchiveError:
        shutil.rmtree(into, ignore_errors=True)
        raise
    except (
        zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error,
        UnicodeError, OverflowError,
    ) as error:  # fmt: skip
        shutil.rmtree(into, ignore_errors=True)
        raise ArchiveError(f"the archive is broken: {escaped(str(error)) or type(error).__name__}") from error
    except OSError:
        shutil.rmtree(into, ignore_errors=True)
        raise


def _unzip(archive: Path, into: Path, caps: Caps) -> list[Member]:
    members: list[Member] = []
    left = caps.size
    with zipfile.ZipFile(archive) as opened:
        entries = opened.infolist()
        if len(entries) > caps.count:
            raise ArchiveError(f"the archive has {len(entries)} members, more than {caps.count}")
        _assert_apart(entries)
        for entry in entries:
            folder, name = _parted(entry)
            if not name:
                continue
            spool = into / f"{len(members) + 1:04}"
            sha256, size = _extract(opened, entry, spool, min(left, caps.member), caps.ratio)
            left -= size
            members.append(Member(folder, name, spool, sha256, size))
    return members


def _assert_apart(entries: list[zipfile.ZipInfo]) -> None:
    """Members that share a body are how a small archive unfolds to petabytes."""
    end = -1
    for entry in sorted(entries, key=lambda each: each.header_offset):
        if entry.header_offset < end:
            raise ArchiveError(f"{_shown(entry)} shares its bytes with another member")
        end = entry.header_offset + 30 + entry.compress_size


def _parted(entry: zipfile.ZipInfo) -> tuple[str, str]:
    """Folder and name; an empty name for a folder. ArchiveError for whatever could lead elsewhere."""
    # `filename` is cut at a NUL; what the archive really says is in `orig_filename`.
    name = entry.orig_filename
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if "\0" in name:
        raise ArchiveError(f"{_shown(entry)} has a NUL in its name")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"{_shown(entry)} is a link or a device")
    if entry.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"{_shown(entry)} is encrypted")
    segments = name.replace("\\", "/").split("/")
    is_folder = segments[-1] == ""
    if is_folder:
        segments.pop()
    if not segments or any(segment in ("", ".", "..") or ":" in segment[:2] for segment in segments):
        raise ArchiveError(f"{_shown(entry)} leads out of the archive")
    if any(segment.split(".", 1)[0].strip().lower() in RESERVED for segment in segments):
        raise ArchiveError(f"{_shown(entry)} is the name of a device")
    return ("/".join(segments), "") if is_folder else ("/".join(segments[:-1]), segments[-1])


def _extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, spool: Path, cap: int, ratio: int) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(spool, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as target, opened.open(entry) as source:
        while block := source.read(_BLOCK):
            size += len(block)
            if size > cap:
                raise ArchiveError(f"{_shown(entry)} unfolds to more than {cap:,} bytes")
            if size > _RATIO_COUNTS_FROM and size > ratio * max(entry.compress_size, 1):
                raise ArchiveError(f"{_shown(entry)} unfolds to more than {ratio} times its size")
            digest.update(block)
            target.write(block)
    return digest.hexdigest(), size


def _shown(entry: zipfile.ZipInfo) -> str:
    return f'"{escaped(entry.orig_filename)[:200]}"'
