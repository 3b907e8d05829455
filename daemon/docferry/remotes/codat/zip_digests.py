"""The digests of a ZIP's members, read as a stream and under caps; nothing is unpacked to disk."""

from __future__ import annotations

import struct
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Final

from docferry.errors import RemoteError
from docferry.remotes.codat.reconcile import Members

_BLOCK: Final = 256 * 1024
#: Codat takes no file over 10 MB, so that a member beyond this is none of ours.
_LARGEST: Final = 64 * 1024 * 1024
_MOST: Final = 200_000
_LARGEST_SUM: Final = 64 * 1024**3


def count(archive: Path, into: Members) -> None:
    """Add every member of the ZIP; RemoteError when it is none, or broken, or past all reason."""
    if not archive.stat().st_size:
        return  # a day without files may have no ZIP
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            if len(members) > _MOST or sum(member.file_size for member in members) > _LARGEST_SUM:
                raise RemoteError("Codat's ZIP holds more than can be right; look at it by hand", kind="not_ours")
            for member in members:
                into.add(member.filename, _digest(opened, member))
    except (zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, RuntimeError, OSError) as error:
        raise RemoteError("Codat's ZIP is broken; it is asked for again", kind="cut") from error


def _digest(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    """The digest of a member's bytes; something no digest equals when it is too large to be read."""
    if member.file_size > _LARGEST:
        return "too large"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile("packed in a way that Codat does not use")
    digest = sha256()
    with archive.open(member) as file:
        while block := file.read(_BLOCK):  # never more than `file_size` bytes, whatever the stream says
            digest.update(block)
    return digest.hexdigest()
