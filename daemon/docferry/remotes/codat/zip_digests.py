"""Compute the digests of the members of a ZIP as a stream, under limits; nothing is written to disk."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from docferry.bounded_file import BoundedFile
from docferry.errors import RemoteError
from docferry.remotes.codat.reconcile import Members

_BLOCK: Final = 256 * 1024
#: The largest member that can be a document: Codat accepts no file over 10 MB; bytes.
_MAX_MEMBER_SIZE: Final = 64 * 1024 * 1024
_MAX_MEMBERS: Final = 200_000
_MAX_TOTAL_SIZE: Final = 64 * 1024**3
#: The largest central directory, bytes: zipfile holds all of it, and 16 MiB of the smallest entries take 145 MB.
_MAX_DIRECTORY_BYTES: Final = 16 * 1024**2
_TOO_LARGE: Final = "Codat's ZIP exceeds the limits; download it from Codat's portal and check it"


class ZipCache:
    """Cache the members of the ZIPs of one company while its list is unchanged.

    A restored folder has many doubts that need the same ZIPs.
    """

    def __init__(self, company: str, listed: Sequence[object]) -> None:
        self._key = company, listed
        self._read: dict[str | None, tuple[float, Members]] = {}

    def is_for(self, company: str, listed: Sequence[object]) -> bool:
        """Return whether the members belong to this company with an unchanged list."""
        return self._key == (company, listed)

    def get(self, day: str | None, since: float) -> Members | None:
        """Return the members of a day's ZIP (None: of all days) that was read at wall time `since` or later."""
        at, members = self._read.get(day, (-math.inf, None))
        return members if at >= since else None

    def put(self, day: str | None, at: float, members: Members) -> None:
        """Store the members of a ZIP that was read at a wall time."""
        self._read[day] = at, members


def count(archive: Path, into: Members) -> None:
    """Add the members of a ZIP. Raises RemoteError if it is not a ZIP, broken, or larger than the limits."""
    if not archive.stat().st_size:
        return  # a day without files may have no ZIP
    try:
        too_large = RemoteError(_TOO_LARGE, kind="not_ours")
        with BoundedFile(archive, _MAX_DIRECTORY_BYTES, too_large) as file, zipfile.ZipFile(file) as opened:
            for member in _members(opened):
                into.add(member.filename, _digest(opened, member))
    except RemoteError:
        raise
    except Exception as error:
        raise RemoteError("Codat's ZIP is broken; it is downloaded again", kind="cut") from error


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > _MAX_MEMBERS or sum(member.file_size for member in members) > _MAX_TOTAL_SIZE:
        raise RemoteError(_TOO_LARGE, kind="not_ours")
    return members


def _digest(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    """Return the digest of a member, or a text that equals no digest for a member that is too large."""
    if member.file_size > _MAX_MEMBER_SIZE:
        return "too large"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile("compressed by a method that Codat does not use")
    digest = sha256()
    with archive.open(member) as file:
        while block := file.read(_BLOCK):  # at most `file_size` bytes, whatever size the stream claims
            digest.update(block)
    return digest.hexdigest()
