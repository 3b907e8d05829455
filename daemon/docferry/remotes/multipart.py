"""multipart/form-data for documents: known length, derived boundary, streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from docferry.model import UploadItem
from docferry.remotes.body import closing

#: Small blocks are gathered up to this size, so that few calls carry them.
_GATHERED: Final = 128 * 1024
#: A table of our own: the machine's differs from box to box, and a retry must be the same body.
_TYPES: Final = {
    "csv": "text/csv",
    "doc": "application/msword",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "pdf": "application/pdf",
    "png": "image/png",
    "ppt": "application/vnd.ms-powerpoint",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "txt": "text/plain",
    "xls": "application/vnd.ms-excel",
    "xlsb": "application/vnd.ms-excel.sheet.binary.macroenabled.12",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "zip": "application/zip",
}


def content_type(name: str) -> str:
    """What a file of this name holds, by its suffix."""
    _, dot, suffix = name.rpartition(".")
    return _TYPES.get(suffix.lower() if dot else "", "application/octet-stream")


@dataclass(frozen=True, slots=True)
class Plain:
    """One document as it is; the source keeps its last block back until the bytes are proved."""

    parcel: UploadItem

    @property
    def length(self) -> int:
        return self.parcel.source.size

    def blocks(self) -> AsyncIterator[bytes]:
        return self.parcel.source.blocks()


class Form:
    """Documents as parts named `file`, after `fields` exactly as given and in their order."""

    def __init__(self, parcels: Sequence[UploadItem], fields: Sequence[tuple[str, str]] = ()) -> None:
        self._parcels = parcels
        boundary = _boundary(parcels)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        mark = f"--{boundary}\r\n".encode()
        self._fields = b"".join(_field(mark, name, value) for name, value in fields)
        self._heads = [_head(mark, parcel.transfer.remote_name) for parcel in parcels]
        self._end = f"--{boundary}--\r\n".encode()
        documents = sum(parcel.source.size for parcel in parcels) + sum(len(head) + 2 for head in self._heads)
        self.length = len(self._fields) + documents + len(self._end)

    async def blocks(self) -> AsyncIterator[bytes]:
        """Everything up to the terminator, then the terminator, once every source has proved its bytes. What fits one
        block is one: it is given to the kernel as a whole, and nothing could be heard in between."""
        waiting, size, is_first = [self._fields], len(self._fields), True
        for head, parcel in zip(self._heads, self._parcels, strict=True):
            waiting.append(head)
            async with closing(parcel.source.blocks()) as blocks:
                async for block in blocks:
                    waiting.append(block)
                    size += len(block)
                    if size >= _GATHERED:
                        yield b"".join(waiting)
                        waiting, size, is_first = [], 0, False
            waiting.append(b"\r\n")
        if is_first:
            yield b"".join([*waiting, self._end])
            return
        yield b"".join(waiting)
        yield self._end


def _boundary(parcels: Sequence[UploadItem]) -> str:
    """Nobody can know it beforehand, as uids are random; and the same documents get the same one."""
    uids = " ".join(parcel.transfer.uid for parcel in parcels)
    return "docferry-" + sha256(uids.encode()).hexdigest()[:40]


def _field(mark: bytes, name: str, value: str) -> bytes:
    head = f'Content-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n'
    return mark + head.encode("utf-8", "replace") + value.encode("utf-8", "replace") + b"\r\n"


def _head(mark: bytes, name: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="file"; filename="{_quoted(name)}"\r\n'
    return mark + disposition.encode("utf-8", "replace") + f"Content-Type: {content_type(name)}\r\n\r\n".encode()


def _quoted(name: str) -> str:
    """As browsers do it."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
