"""Extract a downloaded ZIP that may be hostile: under generated names, within limits, each member separately."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, field

from docferry.bounded_file import BoundedFile
from docferry.errors import ArchiveError
from docferry.model import escaped

_BLOCK = 256 * 1024
_ENCRYPTED = 0x1
_UTF8 = 0x800
_LOCAL_HEADER = 30
#: Info-ZIP's Unicode path: version, CRC of the name in the header, name in UTF-8.
_UNICODE_PATH = 0x7075
#: Bytes of the central directory allowed for each member: enough for long names.
_DIRECTORY_BYTES = 512
#: Other methods unpack a whole block at once and ignore the requested size: 256 KiB become gigabytes.
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflate"}
_OTHER_METHODS = {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES"}
_DRIVE = re.compile(r"[A-Za-z]:")


class Caps(Struct, frozen=True):
    """Limit one archive against bombs; sizes are in bytes. No ratio is limited: honest files compress up to 1,032:1."""

    count: int = 10_000
    size: int = 2 * 1024**3  # all members together
    member: int = 1024**3


class Member(Struct, frozen=True):
    """Describe one extracted file: its name in the archive, and the spool file with its bytes."""

    folder: str  # "" at the top, segments separated by "/"
    name: str
    spool: Path
    sha256: str
    size: int


class Refused(Struct, frozen=True):
    """Describe one member that was not extracted, and the reason."""

    name: str  # the last segment, unchanged
    problem: str  # a sentence that names the member


class Extracted(Struct):
    """Hold the members of an archive."""

    members: list[Member] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


class _MemberError(Exception):
    """Report that one member cannot be extracted, unlike the others."""


def unzip(archive: Path, into: Path, caps: Caps | None = None) -> Extracted:
    """Extract every file of `archive` into the new folder `into`, as 0001, 0002 and so on.

    Call it in a worker thread. Members that are unsafe, encrypted, damaged or packed by an unsupported method are
    refused separately. Raises ArchiveError for a broken or hostile archive, and OSError of the disk; `into` is then
    removed.
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
    """Return whether an error comes from the archive, not from the disk.

    A broken archive makes zipfile raise BadZipFile, struct.error, zlib.error, UnicodeError and others, and EINVAL for
    an impossible offset. Any other OSError comes from the disk.
    """
    if isinstance(error, OSError):
        return error.errno == errno.EINVAL
    return isinstance(error, Exception)


def _unzip(archive: Path, into: Path, caps: Caps) -> Extracted:
    extracted = Extracted()
    most = max(caps.count * _DIRECTORY_BYTES, _BLOCK, 1 << 17)  # zipfile searches the last 64 KiB for the end record
    too_large = ArchiveError(f"the archive has a central directory of more than {most:,} bytes")
    with BoundedFile(archive, most, too_large) as file, zipfile.ZipFile(file) as opened:
        listed = opened.infolist()
        _assert_within(listed, caps)
        _assert_apart(listed)
        for packed in listed:
            spool = into / f"{len(extracted.members) + 1:04}"
            try:
                folder, name = _checked_name(packed)
                if name:
                    sha256, size = _extract(opened, packed, spool, caps)
                    extracted.members.append(Member(folder, name, spool, sha256, size))
            except _MemberError as error:
                spool.unlink(missing_ok=True)
                name = _decoded_name(packed).replace("\\", "/").rpartition("/")[2]
                extracted.refused.append(Refused(name, f"{_shown(packed)} {error}"))
    return extracted


def _assert_within(listed: list[zipfile.ZipInfo], caps: Caps) -> None:
    """Refuse an archive whose stated sizes exceed the limits; zipfile never yields more than the stated sizes."""
    if len(listed) > caps.count:
        raise ArchiveError(f"the archive has {len(listed):,} members, more than {caps.count:,}")
    total = sum(packed.file_size for packed in listed if packed.file_size <= caps.member)
    if total > caps.size:
        raise ArchiveError(f"the archive expands to {total:,} bytes, more than {caps.size:,}")


def _assert_apart(listed: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes: otherwise a small archive expands to petabytes."""
    end = -1
    for packed in sorted(listed, key=lambda each: each.header_offset):
        if packed.header_offset < end:
            raise ArchiveError(f"{_shown(packed)} shares its bytes with another member")
        end = packed.header_offset + _LOCAL_HEADER + packed.compress_size


def _checked_name(packed: zipfile.ZipInfo) -> tuple[str, str]:
    """Return folder and name, with an empty name for a folder. Raises _MemberError if it must not be extracted.

    Segments `.` and empty ones are dropped. Unusual names, such as those of devices, are left to `publish.safe_name`.
    """
    name = _decoded_name(packed)
    kind = stat.S_IFMT(packed.external_attr >> 16)
    if "\0" in name:
        raise _MemberError("has a NUL in its name")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _MemberError("is a link or a device")
    path = name.replace("\\", "/")
    if not path.strip("/"):
        raise _MemberError("has no name")
    if path.startswith("/") or _DRIVE.match(path) or ".." in path.split("/"):
        raise _MemberError("leads out of the archive")
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    if path.endswith("/") or kind == stat.S_IFDIR or not segments:
        return "/".join(segments), ""
    if packed.flag_bits & _ENCRYPTED:
        raise _MemberError("is encrypted")
    if packed.compress_type not in _METHODS:
        method = _OTHER_METHODS.get(packed.compress_type, f"method {packed.compress_type}")
        raise _MemberError(f"is packed by {method}, which is not supported")
    return "/".join(segments[:-1]), segments[-1]


def _decoded_name(packed: zipfile.ZipInfo) -> str:
    """Return the name in its original encoding: Info-ZIP's Unicode path, UTF-8 with or without its flag, else CP437.

    zipfile cuts `filename` at a NUL; the unchanged name is in `orig_filename`.
    """
    name = packed.orig_filename
    if packed.flag_bits & _UTF8:
        return name
    raw = name.encode("cp437", "replace")
    if (unicode_path := _unicode_path(packed.extra, raw)) is not None:
        return unicode_path
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return name


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and len(content) > 5 and content[0] == 1:
            if int.from_bytes(content[1:5], "little") != zlib.crc32(raw):
                return None  # the extra field belongs to another name
            try:
                return content[5:].decode("utf-8")
            except UnicodeDecodeError:
                return None
    return None


def _extract(opened: zipfile.ZipFile, packed: zipfile.ZipInfo, spool: Path, caps: Caps) -> tuple[str, int]:
    """Write one member into `spool`, and return its SHA-256 and size. Raises _MemberError, and OSError of the disk."""
    if packed.file_size > caps.member:
        raise _MemberError(f"expands to {packed.file_size:,} bytes, more than {caps.member:,}")
    digest, size = hashlib.sha256(), 0
    # The umask decides the mode, and the published file keeps it; the spool is private.
    descriptor = os.open(spool, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as target:
        for block in _blocks(opened, packed):
            size += len(block)
            if size > caps.member:
                raise _MemberError(f"expands to more than {caps.member:,} bytes")
            digest.update(block)
            target.write(block)
    if size != packed.file_size:
        raise _MemberError(f"has {size:,} bytes where its header states {packed.file_size:,}")
    return digest.hexdigest(), size


def _blocks(opened: zipfile.ZipFile, packed: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of a member; an error of the archive becomes a _MemberError."""
    try:
        with opened.open(packed) as source:
            while block := source.read(_BLOCK):
                yield block
    except Exception as error:
        if isinstance(error, ArchiveError) or not _is_archive_error(error):
            raise
        raise _MemberError(f"is damaged: {escaped(str(error)) or type(error).__name__}") from error


def _shown(packed: zipfile.ZipInfo) -> str:
    return f'"{escaped(packed.orig_filename)[:200]}"'
