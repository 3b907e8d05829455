"""Puts a file where a person will find it: a safe name, never over other bytes, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import unicodedata
from pathlib import Path, PurePosixPath
from string import Formatter

from docferry.errors import FolderError
from docferry.files.archive import RESERVED
from docferry.model import escaped

_BLOCK = 1024 * 1024
_LONGEST = 200  # bytes of a name: room for " (2)" and a temporary suffix below the kernel's 255
_NOT_SAFE = frozenset('/\\:*?"<>|')
#: A name is tried with so many numbers behind it before somebody has to look.
_SIBLINGS = 10_000


def safe_name(name: str) -> str:
    """One path segment that means nothing else on any system: NFC, no separators, control or direction-changing
    characters, no leading dots, no device names, at most 200 bytes with the suffix kept, never empty."""
    text = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
    text = "".join("_" if char in _NOT_SAFE or not char.isprintable() else char for char in text)
    text = text.strip(" ").lstrip(".").rstrip(" .") or "unnamed"
    if text.split(".", 1)[0].strip().lower() in RESERVED:
        text = f"_{text}"
    return _shortened(text)


def render_layout(layout: str, *, date: str, source: str, name: str, company_id: str) -> PurePosixPath:
    """The path of a file below its folder, every placeholder made safe: `{date} {source} {name} {company_id}`."""
    words = {"date": date, "source": source or "other", "name": name, "company_id": company_id}
    segments = []
    for template in layout.split("/"):
        parts = [text + (words.get(word, "") if word else "") for text, word, _, _ in Formatter().parse(template)]
        segments.append(safe_name("".join(parts)))
    return PurePosixPath(*segments)


def sha256_of(path: Path) -> str:
    """Hex digest of a file; for a worker thread."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose(root: Path, relative: PurePosixPath, sha256: str) -> Path:
    """Where a file of this digest will lie: `relative` below `root`, with a number behind it where other bytes lie
    already. Nothing is made yet. FolderError when a link stands in the way."""
    parent = root / relative.parent
    _assert_no_links(root, parent)
    stem, suffix = _halves(relative.name)
    for number in range(1, _SIBLINGS):
        candidate = parent / (relative.name if number == 1 else f"{stem} ({number}){suffix}")
        if not os.path.lexists(candidate):
            return candidate
        if candidate.is_file() and not candidate.is_symlink() and sha256_of(candidate) == sha256:
            return candidate
    raise FolderError(f"{escaped(os.fsencode(parent))} has {_SIBLINGS:,} files of the name {escaped(relative.name)}")


def put(file: Path, target: Path, root: Path, sha256: str) -> Path:
    """Move `file` to `target` at one stroke, never over other bytes; both folders are synced. Returns where it lies:
    a number is put behind the name when somebody was faster."""
    _make_folders(root, target.parent)
    ready = _beside(file, target)
    while True:
        try:
            os.link(ready, target, follow_symlinks=False)
        except FileExistsError:
            if target.is_file() and not target.is_symlink() and sha256_of(target) == sha256:
                break
            target = choose(root, PurePosixPath(target.relative_to(root)), sha256)
            continue
        break
    ready.unlink()
    if ready != file:
        file.unlink()
    _sync_folder(target.parent)
    return target


def _beside(file: Path, target: Path) -> Path:
    """The file, synced, on the target's filesystem: itself, or a hidden copy."""
    if file.stat().st_dev == target.parent.stat().st_dev:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return file
    copy = target.parent / f".docferry-{secrets.token_hex(8)}.part"
    try:
        with file.open("rb") as source, copy.open("xb") as sink:
            shutil.copyfileobj(source, sink, _BLOCK)
            sink.flush()
            os.fsync(sink.fileno())
    except OSError:
        copy.unlink(missing_ok=True)
        raise
    return copy


def _make_folders(root: Path, folder: Path) -> None:
    """Make what is missing below `root`, one by one, so that no link is followed."""
    root.mkdir(parents=True, exist_ok=True)
    here = root
    for segment in folder.relative_to(root).parts:
        here /= segment
        if not here.exists():
            here.mkdir(exist_ok=True)
            _sync_folder(here.parent)
    _assert_no_links(root, folder)


def _assert_no_links(root: Path, folder: Path) -> None:
    here = root
    for segment in folder.relative_to(root).parts:
        here /= segment
        if here.is_symlink():
            raise FolderError(f"{escaped(os.fsencode(here))} is a link; docferry puts nothing behind links")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _halves(name: str) -> tuple[str, str]:
    suffix = PurePosixPath(name).suffix
    return (name[: -len(suffix)], suffix) if suffix else (name, "")


def _shortened(name: str) -> str:
    if len(name.encode()) <= _LONGEST:
        return name
    stem, suffix = _halves(name)
    if len(suffix.encode()) > 20:
        stem, suffix = name, ""
    room = _LONGEST - len(suffix.encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + suffix
