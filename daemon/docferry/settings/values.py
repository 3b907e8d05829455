"""Define the values of settings: their types, and how each is read from the file."""

from __future__ import annotations

import os
from datetime import date, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from docferry import endpoints
from docferry.model import escaped
from docferry.settings import patterns, templates, units


def _positive(number: float) -> float:
    if number <= 0:
        raise ValueError("must be more than 0")
    return number


def _no_bool(written: object) -> object:
    if written is True or written is False:
        raise ValueError("must be a whole number")
    return written


def _plain_text(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be printable text, and not empty")
    return text


def _folder(folder: str, allowed: tuple[str, ...] = templates.IDS) -> str:
    if not folder.strip() or not templates.fit(folder):
        raise ValueError("must be a path, and not empty")
    words = [word for level in templates.divided(folder, allowed)[1] if (word := templates.word_of(level))]
    if len(set(words)) < len(words):
        raise ValueError("has a placeholder twice")
    return folder


def _path(path: Path) -> Path:
    if not path.is_absolute() or not templates.fit(str(path)):
        raise ValueError("must be a path, and not empty")
    return path


def _ca_file(path: Path) -> Path:
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError(f"names {escaped(str(path))}, which is not a readable file")
    return endpoints.validate_ca_file(path)


def _remote_name(template: str) -> str:
    words = templates.words_of(template, templates.NAME_WORDS)
    if not templates.fit(template) or template.startswith("/") or ".." in template.split("/"):
        raise ValueError('must be a plain name, without control characters, a leading "/" or ".."')
    if not {"name", "stem", "path", "sha256", "token"} & set(words):
        raise ValueError("gives every document the same name; use {name}, {path} or {token} in it")
    return template


def _layout(template: str) -> str:
    words = templates.words_of(template, templates.LAYOUT_WORDS)
    if not templates.fit(template) or template.startswith("/") or ".." in template.split("/"):
        raise ValueError('must be a path below the folder, without a leading "/" or ".."')
    if "name" not in words:
        raise ValueError("gives every document the same name; use {name} in it")
    return template


def _object(name: str) -> str:
    if not name or not templates.fit(name) or name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f'has "{escaped(name)}", which is not an object name; write it like "reports/latest.pdf"')
    return name


def _uuid(written: str) -> str:
    found = templates.uuid(written)
    if found is None:
        raise ValueError('is not a UUID; write it like "8a210b68-6988-11ed-a1eb-0242ac120002"')
    return found


def _patterns(written: tuple[str, ...]) -> tuple[str, ...]:
    if written != patterns.EVERYTHING:
        patterns.compiled(written)
    return written


def _listed(written: object) -> object:
    return (written,) if isinstance(written, str) else written


def _day(written: object) -> object:
    if isinstance(written, datetime):
        return written.date()
    if isinstance(written, date):
        return written
    try:
        return date.fromisoformat(str(written))
    except ValueError:
        raise ValueError('is not a date; write it like "2026-01-01"') from None


Seconds = Annotated[
    float,
    BeforeValidator(units.seconds),
    WithJsonSchema({"type": ["string", "number"], "pattern": units.DURATION_PATTERN, "minimum": 0}),
]
SomeSeconds = Annotated[Seconds, AfterValidator(_positive)]
Octets = Annotated[
    int,
    BeforeValidator(units.octets),
    AfterValidator(_positive),
    WithJsonSchema({"type": ["string", "integer"], "pattern": units.SIZE_PATTERN, "minimum": 1}),
]
Share = Annotated[
    float,
    BeforeValidator(units.share),
    WithJsonSchema({"type": ["string", "number"], "pattern": units.SHARE_PATTERN, "minimum": 0, "maximum": 1}),
]
Count = Annotated[int, BeforeValidator(_no_bool)]
PlainPath = Annotated[Path, AfterValidator(_path)]  # made absolute by `sources`, unless empty
CaFile = Annotated[PlainPath, AfterValidator(_ca_file)]
Proxy = Annotated[str, AfterValidator(lambda written: endpoints.validate_proxy(written.strip()))]
Name = Annotated[str, AfterValidator(_plain_text)]
Uuid = Annotated[str, AfterValidator(_uuid)]
Companies = Annotated[
    tuple[Uuid, ...],
    BeforeValidator(_listed),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]
PatternList = Annotated[tuple[str, ...], AfterValidator(_patterns)]
UploadFolder = Annotated[str, AfterValidator(_folder)]
DownloadFolder = Annotated[str, AfterValidator(lambda folder: _folder(folder, ("company_id",)))]
NameTemplate = Annotated[str, AfterValidator(_remote_name)]
Layout = Annotated[str, AfterValidator(_layout)]
ObjectName = Annotated[str, AfterValidator(_object)]
Day = Annotated[date, BeforeValidator(_day)]
