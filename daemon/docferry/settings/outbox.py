"""The outbox of a mapping: the folder in the state folder for documents that applications put."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from pydantic import PrivateAttr

from docferry.settings import patterns
from docferry.settings.mappings import Route, Upload

#: What the name of a mapping's outbox has behind the name of the mapping.
SUFFIX: Final = " (put)"


class Outbox(Upload):
    """A mapping's second folder. Its files go where the mapping's go, under the same rules, and are then deleted.

    Each document lies in a folder of its own, so that two of one name do not replace each other. The rest of its path
    is its path in the mapping.
    """

    _origin: Upload = PrivateAttr()

    @classmethod
    def of(cls, upload: Upload, state_dir: Path, host: str) -> Self:
        """Return the outbox of a mapping. It belongs to one host, also where all hosts share the mapping."""
        written = quote(upload.name, safe="")[:80]
        folder = state_dir / "outbox" / f"{written}-{hashlib.sha256(upload.name.encode()).hexdigest()[:8]}"
        values = {field: getattr(upload, field) for field in Upload.model_fields}
        made = cls.model_construct(
            **values
            | {
                "name": f"{upload.name}@{host}{SUFFIX}" if upload.shared else f"{upload.name}{SUFFIX}",
                "shared": False,
                "folder": str(folder),
                "own_settle": 0.0,  # a document appears there whole
                "after_upload": "delete",
                "archive_folder": None,
                "poll": False,
                "may_be_empty": True,
                "follow_root_links": True,  # the state folder may be reached through links
            }
        )
        made._origin = upload
        return made

    @property
    def origin(self) -> Upload:
        """The mapping."""
        return self._origin

    @property
    def root(self) -> Path:
        """The outbox; it has no placeholders."""
        return Path(self.folder)

    @property
    def levels(self) -> tuple[str, ...]:
        """Nothing: the placeholders are those of the mapping."""
        return ()

    def route(self, path: bytes) -> Route:
        """Return the company and connection of a path, as the mapping does."""
        return self._origin.route(inner(path))

    def left_out(self, path: bytes) -> patterns.LeftOut | None:
        """Return why a file is not a document, None when it is one, by the rules of the mapping."""
        return self._origin.left_out(inner(path)) if inner(path) else "builtin"

    def include_matches(self, path: bytes) -> list[bool]:
        """Return for each pattern of `include` whether it matches a file."""
        return self._origin.include_matches(inner(path))

    def enters(self, folder: bytes) -> bool:
        """Return whether documents can lie in a folder."""
        if folder.startswith(b"."):
            return False
        return not inner(folder) or self._origin.enters(inner(folder))

    def remote_name(self, path: bytes, *, token: str, sha256: str, now: float) -> str:
        """Return the name of a document at the remote, as the mapping gives it."""
        return self._origin.remote_name(inner(path), token=token, sha256=sha256, now=now)

    @property
    def replaces(self) -> bool:
        """Whether a document replaces an earlier one of its name: at Wootiv a name is one object."""
        if self.to != "wootiv":
            return False
        one, other = (
            self._origin.remote_name(b"a.pdf", token=x, sha256=x, now=at) for x, at in (("a", 0.0), ("b", 1e9))
        )
        return one == other


def outboxes(uploads: Iterable[Upload], state_dir: Path, host: str) -> dict[str, Outbox]:
    """Return this host's outbox of each mapping, by the name of the outbox."""
    made = (Outbox.of(upload, state_dir, host) for upload in uploads)
    return {outbox.name: outbox for outbox in made}


def inner(path: bytes) -> bytes:
    """Return the part of a path in an outbox that is its path in the mapping."""
    return path.partition(b"/")[2]
