"""What becomes of a file after it was sent: kept, archived or deleted, as its mapping asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import anyio.to_thread

from docferry import logs
from docferry.errors import FolderError, SourceUnreadable
from docferry.files import publish, scan
from docferry.model import Stamp
from docferry.settings import Upload
from docferry.store.documents import Documents

log = logs.get("tidy")

Delivered = tuple[int, bytes, Stamp, str]


async def tidy(upload: Upload, documents: Documents) -> int:
    """Archive or delete what was sent and still looks as it was sent: number of files."""
    if upload.after_upload == "keep":
        return 0
    total = 0
    while delivered := await documents.delivered(upload.name):
        done = await anyio.to_thread.run_sync(_tidy, upload, delivered)
        await documents.removed(done)
        total += len(done)
        if len(done) < len(delivered):
            break  # the rest changed meanwhile, or can't be moved: the next scan sees to it
    return total


def _tidy(upload: Upload, delivered: Sequence[Delivered]) -> list[int]:
    done = []
    for document_id, path, stamp, sha256 in delivered:
        try:
            seen_file = scan.look(upload.root, path)
            if seen_file is not None and seen_file.stamp != stamp:
                continue
            if seen_file is not None:
                _put_away(upload, path, sha256)
        except (OSError, FolderError, SourceUnreadable) as error:
            log.error("not_tidied", f"{error}; it stays where it is", mapping=upload.name, path=path)
            continue
        done.append(document_id)
    return done


def _put_away(upload: Upload, path: bytes, sha256: str) -> None:
    file = upload.root / Path(path.decode("utf-8", "surrogateescape"))
    if upload.after_upload == "delete" or upload.archive_folder is None:
        file.unlink()
        return
    relative = PurePosixPath(path.decode("utf-8", "surrogateescape"))
    upload.archive_folder.mkdir(parents=True, exist_ok=True)
    target = publish.choose(upload.archive_folder, relative, sha256)
    publish.put(file, target, upload.archive_folder, sha256)
