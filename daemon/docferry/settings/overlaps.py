"""Find folders through which one document could go to two targets, or come back after its upload or download.

Two folders overlap if one scan reads both, after links and `..` are resolved. Nested folders are allowed in two cases.
Every document of the inner folder has the same target in both mappings, or the outer mapping excludes the inner one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Final

from docferry.model import Target, escaped
from docferry.settings.mappings import Download, Upload
from docferry.settings.real_paths import RealPath, RealPaths
from docferry.settings.sources import Loc

#: A placeholder for the name of any future folder.
_ANY_ID: Final = b"00000000-0000-0000-0000-000000000000"

Numbered = Sequence[tuple[int, Upload]]
Found = Iterator[tuple[Loc, str]]


def find(uploads: Numbered, downloads: Sequence[tuple[int, Download]], real: RealPaths) -> Found:
    """Yield each overlap: the key to change, and a sentence that names both mappings and the fix.

    A folder without an answer overlaps none: its mapping waits, and is compared again once the folder answers.
    """
    for (_, one), (at, other) in combinations(uploads, 2):
        if _differ_in_target(one, other, real) or _differ_in_target(other, one, real):
            yield (
                ("upload", at, "folder"),
                f'"{escaped(other.name)}" and "{escaped(one.name)}" read the same folder '
                f"({_shown(one.root)} and {_shown(other.root)}) and have different targets: a document could go to "
                "both; give each mapping a folder of its own, or exclude the inner folder from the outer mapping",
            )
    for (at, archiving), (_, other) in permutations(uploads, 2):
        if _comes_back(archiving, other, real):
            yield (
                ("upload", at, "archive_folder"),
                f'"{escaped(archiving.name)}" archives into {escaped(str(archiving.archive_folder))}, which '
                f'"{escaped(other.name)}" uploads to another target; put the archive elsewhere, or exclude it there',
            )
    for at, download in downloads:
        for _, upload in uploads:
            if any(_brings_into(download, company, upload, real) for company in download.companies or (None,)):
                yield (
                    ("download", at, "folder"),
                    f'"{escaped(download.name)}" downloads into a folder that "{escaped(upload.name)}" uploads to '
                    "another target; put it elsewhere, or exclude it there",
                )


def _differ_in_target(outer: Upload, inner: Upload, real: RealPaths) -> bool:
    """Return whether `outer` reads the folder of `inner` and sends a document of it to another target."""
    within = _relative(real[inner.root], real[outer.root])
    if within is None or not _reads(outer, within):
        return False
    if not inner.levels and not outer.levels:
        return _target_at(outer, within) != _target_at(inner, b"")
    if within == b"" and outer.levels == inner.levels:
        return (outer.to, outer.company_id, outer.connection_id) != (inner.to, inner.company_id, inner.connection_id)
    if not inner.levels:
        target = _target_at(outer, within)
        return target is not None and target != _target_at(inner, b"")
    # One mapping takes its target from names of folders that may be created at any time.
    return outer.to != inner.to or _prefixed(outer, within) != inner.levels


def _prefixed(outer: Upload, within: bytes) -> tuple[str, ...]:
    """Return the remaining levels of `outer` below a folder, in the notation that `inner` would need."""
    depth = len(within.split(b"/")) if within else 0
    return outer.levels[depth:]


def _comes_back(archiving: Upload, other: Upload, real: RealPaths) -> bool:
    archive = archiving.archive_folder
    within = None if archive is None else _relative(real[archive], real[other.root])
    if within is None or not _reads(other, within):
        return False
    if other.to == "wootiv":
        return True  # a separate name below the archive is another object
    target = _target_at(other, within)
    return target is None or archiving.levels != () or target != _target_at(archiving, b"")


def _brings_into(download: Download, company_id: str | None, upload: Upload, real: RealPaths) -> bool:
    within = _relative(real[download.folder_of(company_id)], real[upload.root])
    if within is None or not _reads(upload, within):
        return False
    if upload.to != download.source:
        return True
    target = _target_at(upload, within)
    return target is not None and target.company_id != company_id


def _target_at(upload: Upload, folder: bytes) -> Target | None:
    """Return the target of a document below a folder; None if the folder has no documents to send.

    If deeper folders decide, the target has an id that no mapping has.
    """
    segments = folder.split(b"/") if folder else []
    below = [_ANY_ID] * (len(upload.levels) - len(segments))
    return upload.route(b"/".join([*segments, *below, b"document"])).target


def _reads(upload: Upload, folder: bytes) -> bool:
    """Return whether a scan of the mapping enters a folder, and every folder above it."""
    segments = folder.split(b"/") if folder else []
    return all(upload.enters(b"/".join(segments[:depth])) for depth in range(1, len(segments) + 1))


def _relative(inner: RealPath, outer: RealPath) -> bytes | None:
    """Return `inner` relative to `outer`; None if it is not inside, or one of them did not answer."""
    if not (inner.answers and outer.answers):
        return None
    if inner.is_same(outer):
        return b""
    return os.fsencode(inner.path.relative_to(outer.path)) if outer.path in inner.path.parents else None


def _shown(path: Path) -> str:
    return escaped(str(path))
