"""Detect from the first and last bytes of a file whether it is cut short or contradicts its extension. Pure.

Only evident faults are reported: in doubt, a file counts as complete and correct.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from docferry.files.hashing import TAIL
from docferry.model import ContentFault, Reason, escaped

Mode = Literal["complete", "type", "off"]

#: First bytes that identify the type of a file.
_HEAD: Final = 4096
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # Office up to 2003, and encrypted documents of later versions
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_PDF: Final = b"%PDF-"
_END_RECORD: Final = b"PK\x05\x06"  # of a ZIP archive: 22 bytes and a comment of at most 65,535
#: The longest distance between the central directory and the end record, bytes: ZIP64 records and signatures may
#: follow.
_END_RECORD_GAP: Final = 1024
#: Bytes at the end of a PDF in which readers search `%%EOF`; padding does not count.
_EOF_WINDOW: Final = 1024
_PADDING: Final = b"\0\t\n\f\r \x1a"
#: The largest number of other bytes before the beginning of a PDF.
_PDF_START: Final = 1024
#: Bytes at the end of a JPEG that are examined, and the number of stuffed bytes that proves compressed data.
_SCAN_WINDOW: Final = 4096
_SCAN_PROOF: Final = 4
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
#: Control characters that no text contains; tab, line feed, form feed, carriage return, SUB and ESC may occur.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0e-\x19\x1c-\x1f]")
_HTML: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!--.{0,400}?-->\s*)?<(?:!doctype\s+html|html[\s>])", re.I | re.S)

#: The bytes with which a file of an extension begins.
_OOXML: Final = (*_ZIP, _OLE)
_BEGINNINGS: Final[dict[str, tuple[bytes, ...]]] = {
    **dict.fromkeys(("docx", "docm", "dotx", "xlsx", "xlsm", "xlsb", "xltx", "pptx", "pptm", "ppsx"), _OOXML),
    **dict.fromkeys(("odt", "ods", "odp", "zip", "jar", "epub"), _ZIP),
    # Old Excel wrote bare BIFF records; Word opens RTF under its own extension.
    "xls": (_OLE, b"\x09\x00\x04\x00", b"\x09\x02", b"\x09\x04", b"\x09\x08"),
    "doc": (_OLE, b"{\\rtf", b"\xdb\xa5", b"\xec\xa5"),
    **dict.fromkeys(("ppt", "msg"), (_OLE,)),
    "rtf": (b"{\\rtf",),
    "png": (_PNG,),
    **dict.fromkeys(("jpg", "jpeg"), (_JPEG,)),
    "gif": (b"GIF87a", b"GIF89a"),
    "bmp": (b"BM",),
    **dict.fromkeys(("tif", "tiff"), (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "gz": (b"\x1f\x8b",),
    "7z": (b"7z\xbc\xaf\x27\x1c",),
}
_TEXTS: Final = frozenset({"csv", "tsv", "txt", "json", "xml", "html", "htm"})
_NEVER_HTML: Final = frozenset({"csv", "tsv", "json"})
#: The names of file types by first bytes, for messages and for detecting binary files with a text extension.
_KINDS: Final = (
    (_PDF, "a PDF"),
    (_ZIP[0], "a ZIP archive or an Office document"),
    (_OLE, "an old Office document"),
    (_PNG, "a PNG image"),
    (_JPEG, "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "gzip data"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a program"),
)


def examine(mode: Mode, path: bytes, size: int, head: bytes, tail: bytes) -> ContentFault | None:
    """Return the evident fault of a file, None if there is none.

    `head` and `tail` are the first and last bytes of the file, as `files.hashing` gives them.
    """
    if mode == "off" or not size:
        return None
    name = path.rpartition(b"/")[2]
    missing = _missing_end(head, tail, size)
    if missing is not None:
        return ContentFault(Reason.INCOMPLETE, f"{escaped(name)} is cut short: {missing}")
    if mode == "type" and (found := _contradiction(name, head[:_HEAD])) is not None:
        return ContentFault(Reason.CONTENT, f"{escaped(name)} is not what its extension says: {found}")
    return None


def _missing_end(head: bytes, tail: bytes, size: int) -> str | None:
    """Return the missing end of a file; None if the file is complete or its type has no recognisable end."""
    if head.startswith(_PDF):
        return None if _pdf_ends(tail) else "it is a PDF without %%EOF at its end"
    if head.startswith(_ZIP[0]):
        return None if _zip_ends(tail, size) else "it is a ZIP archive or Office document without its directory"
    if head.startswith(_PNG):
        return None if tail.rfind(b"IEND") >= 0 else "it is a PNG image without its last chunk, IEND"
    if head.startswith(_JPEG):
        return "it is a JPEG image that ends within its pixels" if _jpeg_is_cut(tail) else None
    return None


def _pdf_ends(tail: bytes) -> bool:
    """Return whether a PDF ends correctly.

    Other bytes may follow, such as those of a careless web server. An object after the last `%%EOF` belongs to an
    update whose end is missing.
    """
    if tail.rfind(b"%%EOF", max(0, len(tail) - _EOF_WINDOW)) >= 0:
        return True
    content = tail[-TAIL:].rstrip(_PADDING)
    at = content.rfind(b"%%EOF")
    return at >= 0 and (len(content) - at <= _EOF_WINDOW or b" obj" not in content[at:])


def _zip_ends(tail: bytes, size: int) -> bool:
    """Return whether a ZIP archive has its own end record.

    A member that is an archive also has an end record. The central directory of such a record is not at the recorded
    offset.
    """
    at = tail.rfind(_END_RECORD)
    while at >= 0:
        record = tail[at : at + 22]
        length, offset = int.from_bytes(record[12:16], "little"), int.from_bytes(record[16:20], "little")
        is_zip64 = 0xFFFFFFFF in (length, offset)
        if len(record) == 22 and (is_zip64 or 0 <= size - len(tail) + at - offset - length <= _END_RECORD_GAP):
            return True
        at = tail.rfind(_END_RECORD, 0, at)
    return False


def _jpeg_is_cut(tail: bytes) -> bool:
    """Return whether a JPEG ends in compressed data, where 00 or a restart marker follows each byte FF."""
    window = tail[-_SCAN_WINDOW:]
    return window.count(b"\xff\x00") >= _SCAN_PROOF and _MARKER.search(window) is None


def _contradiction(name: bytes, head: bytes) -> str | None:
    """Return the contradiction between content and extension; None if they agree or the type is unknown."""
    extension = name.rpartition(b".")[2].lower().decode("ascii", "replace") if b"." in name else ""
    if extension == "pdf":
        return None if _PDF in head[:_PDF_START] else f"it is {_kind(head)}"
    if extension in _TEXTS:
        if _HTML.match(head):
            return "it is a web page" if extension in _NEVER_HTML else None
        return f"it is {_kind(head)}" if _is_binary(head) else None
    beginnings = _BEGINNINGS.get(extension)
    return None if beginnings is None or head.startswith(beginnings) else f"it is {_kind(head)}"


def _kind(head: bytes) -> str:
    if _HTML.match(head):
        return "a web page"
    known = next((kind for start, kind in _KINDS if head.startswith(start)), None)
    return known or ("binary data of another kind" if _is_binary(head) else "text")


def _is_binary(head: bytes) -> bool:
    """Return whether the bytes are text in no usual encoding."""
    if any(head.startswith(start) for start, _ in _KINDS if start != b"MZ"):
        return True
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return False  # UTF-16 or UTF-32 with a byte order mark
    if b"\0" in head[::2] and b"\0" in head[1::2]:
        return True  # UTF-16 without a byte order mark has its NULs at even or odd positions only
    return len(_CONTROL.findall(head.replace(b"\0", b""))) * 20 > len(head)
