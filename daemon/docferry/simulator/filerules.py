"""What Codat takes: types, sizes and numbers of files, and what it makes of their names."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

from docferry.simulator.multipart import Part

EXTENSIONS = frozenset(["pdf", "xls", "xlsx", "xlsb", "csv", "doc", "docx", "ppt", "pptx", "jpeg", "jpg", "png"])
#: "10 MB" in Codat's words; whether 10^7 or this many is not documented, and this server is the generous one.
LARGEST_FILE = 10 * 1024 * 1024
MOST_FILES = 20
LONGEST_NAME = 64  # where `rename = "cut"` cuts


def problems_of(parts: Sequence[Part]) -> list[tuple[str, str, str]]:
    """Why Codat refuses these files: (itemId, message, validatorName) for each problem."""
    if not parts or not all(part.filename for part in parts):
        return [("file", "A part named file with a file name is required", "FileRequired")]
    if len(parts) > MOST_FILES:
        return [("file", f"There are {len(parts)} files, more than {MOST_FILES}", "FileCount")]
    problems = []
    for part in parts:
        name = part.filename or ""
        if PurePosixPath(name).suffix[1:].lower() not in EXTENSIONS:
            problems.append((name, "The extension is not supported", "FileExtension"))
        if part.catch.size > LARGEST_FILE:
            problems.append((name, f"The file has {part.catch.size} bytes, more than {LARGEST_FILE}", "FileSize"))
    return problems


def renamed(name: str, how: str | None) -> str:
    """The name that Codat keeps."""
    if how == "quote":
        return name.replace('"', "%22")
    if how == "nfc":
        return unicodedata.normalize("NFC", name)
    if how == "cut":
        path = PurePosixPath(name)
        return path.stem[: LONGEST_NAME - len(path.suffix)] + path.suffix
    return name
