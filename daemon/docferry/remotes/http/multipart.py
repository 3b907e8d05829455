"""Build request bodies of documents: plain, or multipart/form-data of known length with a derived boundary."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from typing import Final

from msgspec import Struct

from docferry.model import Source, UploadItem
from docferry.remotes.http.request_body import ClosingBlocks

#: Small blocks are joined up to this size, so that few calls send them.
_BLOCK_BYTES: Final = 128 * 1024
#: Not from the `mimetypes` module, which differs between machines: a retry must have the same body.
_CONTENT_TYPES: Final = {
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
    """Return the media type for a name, by its suffix."""
    _, dot, suffix = name.rpartition(".")
    return _CONTENT_TYPES.get(suffix.lower() if dot else "", "application/octet-stream")


class PlainBody(Struct, frozen=True):
    """Provide one plain document; its source yields the last block after the bytes are proved."""

    item: UploadItem

    @property
    def length(self) -> int:
        """Return the size of the document in bytes."""
        return self.item.source.size

    @property
    def parts(self) -> Sequence[bytes | Source]:
        """Return the document as the only part."""
        return [self.item.source]

    def blocks(self) -> AsyncIterator[bytes]:
        """Yield the document's blocks."""
        return join_parts(self.parts)


class Form:
    """Build a form: the `fields` unchanged and in their order, then the documents as parts named `part`.

    The file names are the documents' remote names, unless `names` gives others.
    """

    def __init__(
        self,
        items: Sequence[UploadItem],
        fields: Sequence[tuple[str, str]] = (),
        *,
        part: str = "file",
        names: Sequence[str] | None = None,
    ) -> None:
        self._items = items
        boundary = _boundary(items)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        delimiter = f"--{boundary}\r\n".encode()
        self._fields = b"".join(_field(delimiter, name, value) for name, value in fields)
        file_names = [item.transfer.remote_name for item in items] if names is None else names
        self._heads = [_head(delimiter, part, name) for name in file_names]
        self._end = f"--{boundary}--\r\n".encode()
        documents = sum(item.source.size for item in items) + sum(len(head) + 2 for head in self._heads)
        self.length = len(self._fields) + documents + len(self._end)

    @property
    def parts(self) -> Sequence[bytes | Source]:
        """Return the form in order: bytes, and documents. The last part is the terminator."""
        parts: list[bytes | Source] = []
        before = self._fields
        for head, item in zip(self._heads, self._items, strict=True):
            parts += [before + head, item.source]
            before = b"\r\n"
        return [*parts, before, self._end]

    def blocks(self) -> AsyncIterator[bytes]:
        """Yield all blocks before the terminator, and the terminator after every source has proved its bytes."""
        return join_parts(self.parts)


async def join_parts(parts: Sequence[bytes | Source]) -> AsyncIterator[bytes]:
    """Yield the blocks of a body. A terminator (bytes as the last part) is always a separate block.

    Parts that fit into one block are joined: the kernel takes the block at once, with no response in between.
    """
    pending, size, is_first = list[bytes](), 0, True
    for number, part in enumerate(parts):
        if isinstance(part, bytes):
            if number == len(parts) - 1 and not is_first:
                yield b"".join(pending)
                pending = []
            pending.append(part)
            size += len(part)
            continue
        async with ClosingBlocks(part.blocks()) as blocks:
            async for block in blocks:
                pending.append(block)
                size += len(block)
                if size >= _BLOCK_BYTES:
                    yield b"".join(pending)
                    pending, size, is_first = [], 0, False
    if pending:
        yield b"".join(pending)


def _boundary(items: Sequence[UploadItem]) -> str:
    """Derive the boundary from the transfers' uids: equal for a retry, and not guessable from outside."""
    uids = " ".join(item.transfer.uid for item in items)
    return "docferry-" + sha256(uids.encode()).hexdigest()[:40]


def _field(delimiter: bytes, name: str, value: str) -> bytes:
    head = f'Content-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n'
    return delimiter + head.encode("utf-8", "replace") + value.encode("utf-8", "replace") + b"\r\n"


def _head(delimiter: bytes, part: str, name: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{part}"; filename="{_quoted(name)}"\r\n'
    return delimiter + disposition.encode("utf-8", "replace") + f"Content-Type: {content_type(name)}\r\n\r\n".encode()


def _quoted(name: str) -> str:
    """Escape a name like browsers (HTML, "multipart form data")."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
