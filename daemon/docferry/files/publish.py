"""Give a downloaded file a safe name and move it into its folder, completely or not at all, over no other bytes."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Final

from docferry.files.hashing import sha256_of
from docferry.files.placement import NOT_LINKED, Content, free_name, link_copy, opened_folder
from docferry.files.safe_open import FILE, Root
from docferry.model import joined, parted

_LONGEST: Final = 200  # bytes of a name: leaves space for " (2)" and a temporary suffix within the kernel's 255
_UNSAFE: Final = frozenset('/\\:*?"<>|')
#: Device names of other systems, with any suffix.
_RESERVED: Final = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{port}{number}" for port in ("com", "lpt") for number in "123456789¹²³"
}


def safe_name(name: str) -> str:
    """Return one path segment that is safe on every system and never empty.

    The segment is NFC and has at most 200 bytes, with the suffix kept. It contains no separators, control or
    direction-changing characters, leading dots, or device names.
    """
    text = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
    text = "".join("_" if char in _UNSAFE or not char.isprintable() else char for char in text)
    text = text.strip(" .") or "unnamed"
    if text.split(".", 1)[0].strip().casefold() in _RESERVED:
        text = f"_{text}"
    return _shortened(text)


def render_layout(layout: str, *, date: str, source: str, name: str, company_id: str) -> PurePosixPath:
    """Return the path of a file below its folder, with safe values for all placeholders."""
    words = {"date": date, "source": source or "other", "name": name, "company_id": company_id}
    segments = []
    for template in layout.split("/"):
        parts = [text + (words.get(word, "") if word else "") for text, word, _, _ in Formatter().parse(template)]
        segments.append(safe_name("".join(parts)))
    return PurePosixPath(*segments)


def content_of(path: Path) -> Content:
    """Return digest and size of a file; call it in a worker thread."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return Content(sha256_of(file.fileno(), size), size)


def choose(root: Path, relative: PurePosixPath, content: Content) -> Path:
    """Return the future path of a file with these bytes: `relative` below `root`, numbered if that name is taken.

    Nothing is created yet. Raises FolderError if a link or a file is in the way.
    """
    folder, name = parted(_raw(relative))
    try:
        with opened_folder(_root(root), folder, make=False) as parent:
            name, _ = free_name(parent, name, content)
    except FileNotFoundError:
        pass  # the folder does not exist yet, so the name is free
    return root / os.fsdecode(joined(folder, name))


def put(file: Path, target: Path, root: Path, content: Content) -> Path:
    """Move `file` to `target` in one step, never over other bytes, and return its path.

    The path differs from `target` if another process took that name. File and folder are synced. Raises FolderError.
    """
    folder, name = parted(_raw(PurePosixPath(target.relative_to(root))))
    source = os.open(file, FILE)
    try:
        os.fsync(source)
        with opened_folder(_root(root), folder) as parent:
            is_there = False
            while not is_there:
                try:
                    _appear(file, source, parent, name, content)
                except FileExistsError:
                    name, is_there = free_name(parent, name, content)
                else:
                    break
            os.fsync(parent)
    finally:
        os.close(source)
    file.unlink()
    return root / os.fsdecode(joined(folder, name))


def _appear(file: Path, source: int, parent: int, name: bytes, content: Content) -> None:
    try:
        os.link(file, name, dst_dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NOT_LINKED:
            raise
        link_copy(source, parent, name, content)


def _root(root: Path) -> Root:
    return Root(root, follow_links=True)  # a person chose the root; links below it are not followed


def _raw(relative: PurePosixPath) -> bytes:
    return str(relative).encode("utf-8", "surrogateescape")


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
    return stem.encode()[:room].decode("utf-8", "ignore").rstrip(" .") + suffix
