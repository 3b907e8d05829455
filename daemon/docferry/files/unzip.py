"""Extract a downloaded ZIP that may be hostile: under names of our own, with limits, and nothing of a bad one."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

from docferry.errors import ArchiveError
from docferry.model import escaped

_BLOCK = 256 * 1024
_ENCRYPTED = 0x1
_LOCAL_HEADER = 30
#: A small file of zeros packs a thousandfold; below this many bytes a ratio proves nothing.
_RATIO_COUNTS_FROM = 1024 * 1024
#: Bytes of the central directory for each member that an archive may have: enough for long names.
_DIRECTORY_BYTES = 512
#: The other methods unpack a whole block at once, whatever size was asked for: 256 KiB become gigabytes.
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits of one archive; sizes in bytes."""

    count: int = 10_000
    size: int = 2 * 1024**3  # bytes, all together
    member: int = 1024**3
    ratio: int = 200


@dataclass(frozen=True, slots=True)
class Member:
    """One extracted file: its name in the archive, and the spool file that has its bytes."""

    folder: str  # "" at the top, segments parted by "/"
    name: str
    spool: Path
    sha256: str
    size: int


def unzip(archive: Path, into: Path, caps: Caps | None = None) -> list[Member]:
    """Extract every file of `archive` into the new folder `into`, as 0001, 0002 and so on; call it in a worker thread.

    Raises ArchiveError when the archive is broken or hostile, and OSError of the disk; then `into` is removed again.
    """
    into.mkdir(mode=0o700)
    try:
        return _unzip(archive, into, caps or Caps())
    except BaseException as error:
        shutil.rmtree(into, ignore_errors=True)
        if isinstance(error, ArchiveError) or not _is_archive_error(error):
            raise
        raise ArchiveError(f"the archive is broken: {escaped(str(error)) or type(error).__name__}") from error


def _is_archive_error(error: BaseException) -> bool:
    """Tell an error of the archive from an error of the disk.

    A broken archive makes zipfile raise BadZipFile, struct.error, zlib.error, UnicodeError and others, and EINVAL for
    an impossible offset. Any other OSError is the disk's.
    """
    if isinstance(error, OSError):
        return error.errno == errno.EINVAL
    return isinstance(error, Exception)


def _unzip(archive: Path, into: Path, caps: Caps) -> list[Member]:
    members: list[Member] = []
    with _BoundedFile(archive, caps.count * _DIRECTORY_BYTES) as file, zipfile.ZipFile(file) as opened:
        listed = opened.infolist()
        _assert_within(listed, caps)
        _assert_apart(listed)
        for packed in listed:
            folder, name = _parted(packed)
            if not name:
                continue
            spool = into / f"{len(members) + 1:04}"
            sha256, size = _extract(opened, packed, spool, caps)
            members.append(Member(folder, name, spool, sha256, size))
    return members


class _BoundedFile(io.FileIO):
    """A file of which one read takes a limited amount, however large a central directory claims to be."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path, "rb")
        self._most = max(most, _BLOCK, 1 << 17)  # zipfile searches the last 64 KiB for the end of the directory

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = size if size is not None and size >= 0 else os.fstat(self.fileno()).st_size - self.tell()
        if wanted > self._most:
            raise ArchiveError(f"the archive has a central directory of more than {self._most:,} bytes")
        return super().read(size) or b""


def _assert_within(listed: list[zipfile.ZipInfo], caps: Caps) -> None:
    """Refuse an archive that exceeds the limits by the sizes it states; zipfile never yields more than those."""
    if len(listed) > caps.count:
        raise ArchiveError(f"the archive has {len(listed):,} members, more than {caps.count:,}")
    total = sum(packed.file_size for packed in listed)
    if total > caps.size:
        raise ArchiveError(f"the archive expands to {total:,} bytes, more than {caps.size:,}")
    for packed in listed:
        if packed.file_size > caps.member:
            raise ArchiveError(f"{_shown(packed)} expands to {packed.file_size:,} bytes, more than {caps.member:,}")


def _assert_apart(listed: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share their bytes: so a small archive expands to petabytes."""
    end = -1
    for packed in sorted(listed, key=lambda each: each.header_offset):
        if packed.header_offset < end:
            raise ArchiveError(f"{_shown(packed)} shares its bytes with another member")
        end = packed.header_offset + _LOCAL_HEADER + packed.compress_size


def _parted(packed: zipfile.ZipInfo) -> tuple[str, str]:
    """Return folder and name, with an empty name for a folder. Raises ArchiveError for a path that leads elsewhere.

    Odd names, such as those of devices, are left to `publish.safe_name`.
    """
    # zipfile cuts `filename` at a NUL; the archive's own bytes are in `orig_filename`.
    name = packed.orig_filename
    kind = stat.S_IFMT(packed.external_attr >> 16)
    if "\0" in name:
        raise ArchiveError(f"{_shown(packed)} has a NUL in its name")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"{_shown(packed)} is a link or a device")
    if packed.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"{_shown(packed)} is encrypted")
    if packed.compress_type not in _METHODS:
        raise ArchiveError(f"{_shown(packed)} is packed by method {packed.compress_type}, which is not supported")
    segments = name.replace("\\", "/").split("/")
    is_folder = segments[-1] == ""
    if is_folder:
        segments.pop()
    if not segments or _DRIVE.match(name) or any(segment in ("", ".", "..") for segment in segments):
        raise ArchiveError(f"{_shown(packed)} leads out of the archive")
    return ("/".join(segments), "") if is_folder else ("/".join(segments[:-1]), segments[-1])


def _extract(opened: zipfile.ZipFile, packed: zipfile.ZipInfo, spool: Path, caps: Caps) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    # The umask decides the mode, which the published file keeps; the spool around it is private.
    descriptor = os.open(spool, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as target, opened.open(packed) as source:
        while block := source.read(_BLOCK):
            size += len(block)
            if size > caps.member:
                raise ArchiveError(f"{_shown(packed)} expands to more than {caps.member:,} bytes")
            if size > _RATIO_COUNTS_FROM and size > caps.ratio * max(packed.compress_size, 1):
                raise ArchiveError(f"{_shown(packed)} expands to more than {caps.ratio} times its size")
            digest.update(block)
            target.write(block)
    if size != packed.file_size:
        raise ArchiveError(f"{_shown(packed)} has {size:,} bytes where its header states {packed.file_size:,}")
    return digest.hexdigest(), size


def _shown(packed: zipfile.ZipInfo) -> str:
    return f'"{escaped(packed.orig_filename)[:200]}"'
