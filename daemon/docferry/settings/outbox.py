"""Define the outbox of a mapping: the folder in the state folder for documents from applications."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

from pydantic import PrivateAttr

from docferry.settings import patterns
from docferry.settings.mappings import Route, Upload

#: The suffix of an outbox's name after the name of its mapping.
SUFFIX: Final = " (put)"


class Outbox(Upload):
    """Hold a mapping's second folder. Its files have the target and rules of the mapping, and are deleted once sent.

    Each document has its own folder, so that two of one name do not replace each other. The rest of its path is its
    path in the mapping.
    """

    _origin: Upload = PrivateAttr()

    @classmethod
    def of(cls, upload: Upload, state_dir: Path, host: str) -> Self:
        """Return the outbox of a mapping, which belongs to one host even if the mapping is shared."""
        written = quote(upload.name, safe="")[:80]
        folder = state_dir / "outbox" / f"{written}-{hashlib.sha256(upload.name.encode()).hexdigest()[:8]}"
        values = {field: getattr(upload, field) for field in Upload.model_fields}
        made = cls.model_construct(
            **values
            | {
                "name": f"{upload.name}@{host}{SUFFIX}" if upload.shared else f"{upload.name}{SUFFIX}",
                "shared": False,
                "folder": str(folder),
                "own_settle": 0.0,  # documents appear there complete
                "after_upload": "delete",
                "archive_folder": None,
                "poll": False,
                "may_be_empty": True,
                "follow_root_links": True,  # the path of the state folder may contain links
            }
        )
        made._origin = upload
        return made

    @property
    def origin(self) -> Upload:
        """Return the mapping."""
        return self._origin

    @property
    def root(self) -> Path:
        """Return the folder of the outbox, which has no placeholders."""
        return Path(self.folder)

    @property
    def levels(self) -> tuple[str, ...]:
        """Return no levels: the placeholders are those of the mapping."""
        return ()

    def route(self, path: bytes) -> Route:
        """Return the company and connection of a path, by the rules of the mapping."""
        return self._origin.route(inner(path))

    def left_out(self, path: bytes) -> patterns.LeftOut | None:
        """Return why a file is not a document by the rules of the mapping, None if it is one."""
        return self._origin.left_out(inner(path)) if inner(path) else "builtin"

    def include_matches(self, path: bytes) -> list[bool]:
        """Return for each pattern of `include` whether it matches a file."""
        return self._origin.include_matches(inner(path))

    def enters(self, folder: bytes) -> bool:
        """Return whether a folder can contain documents."""
        if folder.startswith(b"."):
            return False
        return not inner(folder) or self._origin.enters(inner(folder))

    def remote_name(self, path: bytes, *, token: str, sha256: str, now: float) -> str:
        """Return the remote name of a document, by the rules of the mapping."""
        return self._origin.remote_name(inner(path), token=token, sha256=sha256, now=now)

    @property
    def replaces(self) -> bool:
        """Return whether a document replaces an earlier one of its name: at Wootiv a name is one object."""
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
    """Return the path in the mapping from a path in its outbox."""
    return path.partition(b"/")[2]
