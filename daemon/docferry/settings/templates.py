"""Replace placeholders: `{company_id}` in folders, `{stem}~{token}{suffix}` in remote names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Final

IDS: Final = ("company_id", "connection_id")
NAME_WORDS: Final = ("name", "stem", "suffix", "token", "path", "sha256", "date", "mapping")
LAYOUT_WORDS: Final = ("date", "source", "name")
#: The longest last segment of a remote name: file systems accept no longer one, so it could not be downloaded.
NAME_BYTES: Final = 255
_WORD: Final = re.compile(r"\{([^{}]*)\}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNFIT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def rendered(template: str, words: Mapping[str, str]) -> str:
    """Return the template with each placeholder replaced; `words_of` has validated the template."""
    return _WORD.sub(lambda match: words[match[1]], template)


def words_of(template: str, allowed: Collection[str]) -> tuple[str, ...]:
    """Return the placeholders of a template, in order. Raises ValueError that lists the allowed ones."""
    found = tuple(_WORD.findall(template))
    for word in found:
        if word not in allowed:
            raise ValueError(f'has the unknown placeholder "{{{word}}}"; allowed are {_listed(allowed)}')
    if "{" in (rest := _WORD.sub("", template)) or "}" in rest:
        raise ValueError(f"has an unpaired brace; allowed placeholders are {_listed(allowed)}")
    return found


def divided(folder: str, allowed: Collection[str] = IDS) -> tuple[str, tuple[str, ...]]:
    """Return the fixed part of a folder, and its levels from the first placeholder on, unchanged."""
    segments = PurePosixPath(folder).parts
    for segment in segments:
        if words_of(segment, allowed) and not _WORD.fullmatch(segment):
            raise ValueError(f'has "{segment}": a placeholder takes a whole path segment, as in "/srv/{{company_id}}"')
    first = next((at for at, segment in enumerate(segments) if "{" in segment), len(segments))
    return str(PurePosixPath(*segments[:first])), segments[first:]


def word_of(level: str) -> str | None:
    """Return `company_id` for the level `{company_id}`, None for a plain level."""
    return level[1:-1] if level.startswith("{") else None


def name_words(path: bytes, *, token: str, sha256: str, now: float) -> dict[str, str]:
    """Return the values of the placeholders of `file_name` and `object_name` for one document."""
    whole = _UNFIT.sub("_", path.decode("utf-8", "surrogateescape"))
    name = whole.rpartition("/")[2]
    dot = name.rfind(".")
    stem, suffix = (name[:dot], name[dot:]) if dot > 0 else (name, "")
    date = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")
    return {
        "name": name,
        "stem": stem,
        "suffix": suffix,
        "token": token,
        "path": whole,
        "sha256": sha256,
        "date": date,
    }


def shortened(path: bytes, excess: int) -> bytes:
    """Return the path with the stem of its name shortened by `excess` bytes, between two characters."""
    folder, slash, name = path.rpartition(b"/")
    dot = name.rfind(b".")
    stem, suffix = (name[:dot], name[dot:]) if dot > 0 else (name, b"")
    kept = stem[: max(1, len(stem) - excess)].decode("utf-8", "ignore").encode()
    return folder + slash + (kept or b"_") + suffix


def uuid(written: str) -> str | None:
    """Return the UUID in lower case, or None if the text is no UUID."""
    lowered = written.strip().lower()
    return lowered if _UUID.fullmatch(lowered) else None


def fit(text: str) -> bool:
    """Return whether a text has neither control characters nor bytes that are not UTF-8."""
    return _UNFIT.search(text) is None


def _listed(words: Collection[str]) -> str:
    return ", ".join(f"{{{word}}}" for word in words) if words else "none"
