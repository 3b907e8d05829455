"""Check the types, sizes and number of files like Codat, and change names as Codat may."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

from docferry.simulator.multipart import Part

EXTENSIONS = frozenset(["pdf", "xls", "xlsx", "xlsb", "csv", "doc", "docx", "ppt", "pptx", "jpeg", "jpg", "png"])
#: Codat's "10 MB" may mean 10^7 or 2^20 * 10, which is not documented. This is the larger value.
MAX_FILE_SIZE = 10 * 1024 * 1024
MAX_FILES = 20
MAX_NAME_LENGTH = 64  # the length at which `rename = "cut"` cuts


def validate(parts: Sequence[Part]) -> list[tuple[str, str, str]]:
    """Return (itemId, message, validatorName) for each reason to refuse these files."""
    if not parts or not all(part.filename for part in parts):
        return [("file", "A part named file with a file name is required", "FileRequired")]
    if len(parts) > MAX_FILES:
        return [("file", f"There are {len(parts)} files, more than {MAX_FILES}", "FileCount")]
    problems = []
    for part in parts:
        name = part.filename or ""
        if PurePosixPath(name).suffix[1:].lower() not in EXTENSIONS:
            problems.append((name, "The extension is not supported", "FileExtension"))
        if part.sink.size > MAX_FILE_SIZE:
            problems.append((name, f"The file has {part.sink.size} bytes, more than {MAX_FILE_SIZE}", "FileSize"))
    return problems


def apply_rename(name: str, how: str | None) -> str:
    """Return the name that Codat stores."""
    if how == "quote":
        return name.replace('"', "%22")
    if how == "nfc":
        return unicodedata.normalize("NFC", name)
    if how == "cut":
        path = PurePosixPath(name)
        return path.stem[: MAX_NAME_LENGTH - len(path.suffix)] + path.suffix
    return name
