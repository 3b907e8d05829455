"""Define the mappings of a configuration: uploads from a folder to a remote, downloads from a remote into a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from msgspec import Struct
from pydantic import BaseModel, Field, PrivateAttr

from docferry.errors import FolderError
from docferry.model import Target, escaped
from docferry.settings import patterns, templates
from docferry.settings.section import SECTION
from docferry.settings.values import (
    Companies,
    Day,
    DownloadFolder,
    Layout,
    Name,
    NameTemplate,
    ObjectName,
    Octets,
    PatternList,
    PlainPath,
    SomeSeconds,
    UploadFolder,
    Uuid,
)


class Route(Struct, frozen=True):
    """Hold the target of one path of a mapping.

    Without a target, `problem` has the reason. An `ignored` path lies above the folder of the placeholders, or beside
    it.
    """

    target: Target | None
    inner: bytes
    problem: str | None = None
    ignored: bool = False


class _Entry(BaseModel):
    """Define an entry of the configuration. In a shared queue, the entry of a single host has the name NAME@HOST."""

    model_config = SECTION

    _configured_name: str | None = PrivateAttr(None)
    _unanswered: Path | None = PrivateAttr(None)

    name: Name = Field(description="unique over uploads and downloads")

    @property
    def configured_name(self) -> str:
        """Return the name in the configuration."""
        return self._configured_name or self.name

    @property
    def unanswered(self) -> str | None:
        """Return a sentence if a folder of the mapping did not answer when the configuration was read.

        Its links are unknown, so that it could be the folder of another mapping: nothing may be read or written.
        """
        if self._unanswered is None:
            return None
        return f"{escaped(str(self._unanswered))} does not answer: is its server there? The mapping waits until it does"

    def assert_answering(self) -> None:
        """Raise FolderError while the mapping waits for the answer of a folder."""
        if self.unanswered is not None:
            raise FolderError(self.unanswered)

    def wait_for(self, folder: Path | None) -> None:
        """Record the folder that does not answer, None if all folders of the mapping do."""
        self._unanswered = folder

    def of_host(self, host: str) -> Self:
        """Return this mapping with its name in a shared queue."""
        copy = self.model_copy(update={"name": f"{self.name}@{host}"})
        copy._configured_name = self.name
        return copy


class Upload(_Entry):
    """Hold one `[[upload]]`: a folder whose documents go to a remote. All path arguments are relative to `root`."""

    folder: UploadFolder = Field(
        description="may have the placeholders {company_id} and {connection_id}, each a whole path segment"
    )
    to: Literal["codat", "wootiv"] = Field(description="the remote")
    company_id: Uuid | None = Field(
        default=None, description="Codat's company, unless it is a placeholder in the folder"
    )
    connection_id: Uuid | None = Field(
        default=None, description="Codat's connection, unless it is a placeholder in the folder"
    )
    include: PatternList = Field(
        default=patterns.EVERYTHING, description="gitignore-style patterns, relative to the folder"
    )
    exclude: PatternList = Field(
        default=(), description="on top of the built-in list: temporary and hidden files, recycle bins and the like"
    )
    via: Literal["signed_url", "direct"] = Field(
        default="signed_url", description="for Wootiv; direct: through its own upload endpoint, in bulk with `batch`"
    )
    own_settle: SomeSeconds | None = Field(default=None, alias="settle", description="`settle` for this mapping alone")
    max_size: Octets | None = Field(default=None, description="larger documents are held")
    after_upload: Literal["keep", "archive", "delete"] = Field(default="keep", description="the action on a sent file")
    archive_folder: PlainPath | None = Field(
        default=None, description='the folder for sent files with after_upload = "archive"'
    )
    dedupe: Literal["content", "file", "name"] = Field(
        default="content",
        description="for Codat; content: the same bytes go once per connection; file: once under each name; "
        "name: a name goes once, and another version is held",
    )
    check_content: Literal["complete", "type", "off"] = Field(
        default="complete",
        description="complete: a file that is evidently cut short waits, then is held; "
        "type: so is one that is not what its extension says; off: nothing is checked",
    )
    antivirus: bool = Field(default=False, description="with [antivirus]: nothing is sent before it was scanned")
    hold_for_approval: bool = Field(default=False, description="each document is held until a person releases it")
    poll: bool = Field(default=False, description="for network shares, where the kernel reports no changes")
    shared: bool = Field(default=False, description="with database_url: all hosts mount this folder")
    may_be_empty: bool = Field(default=False, description="an emptied folder is usual, and no reason to stop")
    builtin_excludes: bool = Field(
        default=True, description="false: temporary files, editor locks and recycle bins are documents, too"
    )
    follow_root_links: bool = Field(
        default=False, description="the folder may be reached through links that other users can replace"
    )
    file_name: NameTemplate = Field(default="{name}", description="the name at Codat")
    object_name: NameTemplate = Field(default="{path}", description="the name at Wootiv")

    _common_settle: float = PrivateAttr(5.0)
    _protected: frozenset[bytes] = PrivateAttr(frozenset())  # docferry's own files and folders, relative to `root`

    def protect(self, root: Path, own: Iterable[Path]) -> None:
        """Exclude these files and folders of docferry below `root`. All links of the paths are resolved."""
        self._protected = frozenset(os.fsencode(path.relative_to(root)) for path in own if root in path.parents)
        self.__dict__.pop("_never_read", None)

    @property
    def settle(self) -> float:
        """Return the seconds without a change until a file is quiet: from the mapping, else from the configuration."""
        return self._common_settle if self.own_settle is None else self.own_settle

    @cached_property
    def _never_read(self) -> frozenset[bytes]:
        return self._protected  # pydantic takes 3 µs to find a private attribute, and every file asks for this one

    @cached_property
    def _split(self) -> tuple[Path, tuple[str, ...]]:
        root, levels = templates.divided(self.folder)
        return Path(root), levels

    @property
    def root(self) -> Path:
        """Return the fixed part of the folder, before the first placeholder."""
        return self._split[0]

    @property
    def folders(self) -> list[Path]:
        """Return `root`, and the folder for sent files if there is one."""
        return [self.root] if self.archive_folder is None else [self.root, self.archive_folder]

    @property
    def levels(self) -> tuple[str, ...]:
        """Return the segments of the folder after `root`, as configured: `{company_id}`, or plain text."""
        return self._split[1]

    @cached_property
    def placeholders(self) -> tuple[str, ...]:
        """Return the names of the folder's placeholders, in order."""
        return tuple(word for level in self.levels if (word := templates.word_of(level)))

    @cached_property
    def _chosen(self) -> patterns.Patterns:
        return patterns.Patterns(self.include, self.exclude, builtin=self.builtin_excludes)

    @cached_property
    def _levels_as_bytes(self) -> tuple[bytes | None, ...]:
        return tuple(None if templates.word_of(level) else os.fsencode(level) for level in self.levels)

    @cached_property
    def _only_target(self) -> Target:
        if self.to == "wootiv":
            return Target("wootiv")
        return Target("codat", self.company_id, self.connection_id)

    def route(self, path: bytes) -> Route:
        """Return the company and connection of a path."""
        if not self.levels:
            return Route(self._only_target, path)
        segments = path.split(b"/")
        depth = len(self.levels)
        if len(segments) <= depth:
            wanted = "/".join(self.levels)
            sentence = f'lies above the folder "{wanted}" that says where it goes; move it there'
            return Route(None, segments[-1], sentence, ignored=True)
        inner = b"/".join(segments[depth:])
        if not self._matches_levels(segments[:depth]):
            return Route(None, inner, f'lies outside the mapping\'s folder "{escaped(self.folder)}"', ignored=True)
        return self._routed(segments[:depth], inner)

    def wanted(self, path: bytes) -> bool:
        """Return whether a file is a document, excluded neither by the mapping nor by the built-in excludes."""
        return self.left_out(path) is None

    def left_out(self, path: bytes) -> patterns.LeftOut | None:
        """Return why a file is not a document, None if it is one."""
        if self._never_read and self._is_protected(path):
            return "builtin"
        if not self.levels:
            return self._chosen.left_out(path)
        segments = path.split(b"/")
        depth = min(len(self.levels), len(segments) - 1)
        if not self._matches_levels(segments[:depth]) or any(segment.startswith(b".") for segment in segments[:depth]):
            return "builtin"
        return self._chosen.left_out(b"/".join(segments[depth:]))

    def include_matches(self, path: bytes) -> list[bool]:
        """Return for each pattern of `include` whether it matches a file."""
        return self._chosen.matches(b"/".join(path.split(b"/")[len(self.levels) :]))

    def enters(self, folder: bytes) -> bool:
        """Return whether a folder can contain documents: not hidden, not excluded, and matching the levels."""
        if self._never_read and self._is_protected(folder):
            return False
        if not self.levels:
            return self._chosen.enters(folder)
        if folder.startswith(b".") or b"/." in folder:
            return False
        segments = folder.split(b"/") if folder else []
        depth = len(self.levels)
        return self._matches_levels(segments[:depth]) and self._chosen.enters(b"/".join(segments[depth:]))

    def remote_name(self, path: bytes, *, token: str, sha256: str, now: float) -> str:
        """Return the remote name of a document. `{path}` is the path below the placeholders."""
        inner = b"/".join(path.split(b"/")[len(self.levels) :]) or path.rpartition(b"/")[2]
        template = self.file_name if self.to == "codat" else self.object_name

        def named(path: bytes) -> str:
            words = templates.name_words(path, token=token, sha256=sha256, now=now)
            return templates.rendered(template, words | {"mapping": self.name})

        name = named(inner)
        excess = len(name.rpartition("/")[2].encode()) - templates.NAME_BYTES
        return named(templates.shortened(inner, excess)) if excess > 0 else name

    def _is_protected(self, path: bytes) -> bool:
        return any(path == own or path.startswith(own + b"/") for own in self._never_read)

    def _matches_levels(self, segments: list[bytes]) -> bool:
        pairs = zip(self._levels_as_bytes, segments, strict=False)
        return all(level is None or level == segment for level, segment in pairs)

    def _routed(self, segments: list[bytes], inner: bytes) -> Route:
        ids = {"company_id": self.company_id, "connection_id": self.connection_id}
        for level, segment in zip(self.levels, segments, strict=True):
            if (word := templates.word_of(level)) is not None:
                text = escaped(segment)
                ids[word] = templates.uuid(text) if text == text.strip() else None
                if ids[word] is None:
                    sentence = f'the folder "{text}" takes the place of {{{word}}} and is not a UUID; rename it'
                    return Route(None, inner, sentence)
        return Route(Target("codat", ids["company_id"], ids["connection_id"]), inner)


class Download(_Entry):
    """Hold one `[[download]]`: documents of a remote that are downloaded into a folder."""

    source: Literal["codat", "wootiv"] = Field(alias="from", description="the remote")
    companies: Companies = Field(
        default=(), alias="company_id", description="Codat's company, or a list with {company_id} in the folder"
    )
    objects: tuple[ObjectName, ...] = Field(default=(), description="Wootiv's objects by name")
    folder: DownloadFolder = Field(description="may have {company_id} as a whole path segment")
    every: SomeSeconds = Field(default=900.0, description="how often to look for new documents")
    since: Day | None = Field(default=None, description="default: everything")
    layout: Layout = Field(default="{date}/{source}/{name}", description="the path of a document below the folder")
    max_size: Octets | None = Field(default=None, description="larger documents are not downloaded")
    include_own: bool = Field(default=False, description="whether documents that docferry uploaded are downloaded too")

    @property
    def folders(self) -> list[Path]:
        """Return the folder of each company, or the only folder."""
        return [self.folder_of(company) for company in self.companies or (None,)]

    def folder_of(self, company_id: str | None) -> Path:
        """Return the folder with its placeholder replaced."""
        return Path(templates.rendered(self.folder, {"company_id": company_id or ""}))
