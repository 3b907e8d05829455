"""Build archives as hostile or broken servers send them: a named corpus, and mutations by seed."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
from collections.abc import Iterator, Sequence

PDF = b"%PDF-1.4\n"


def plain(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a ZIP of these members in this order; a list may contain one name twice."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # two members of one name are meant
        for name, content in members.items() if isinstance(members, dict) else members:
            entry = zipfile.ZipInfo("x")
            entry.filename = entry.orig_filename = name  # as it is: ZipInfo would cut and clean it
            entry.compress_type = method
            made.writestr(entry, content)
    return sink.getvalue()


def odd(name: str, *, mode: int = 0, flags: int = 0, content: bytes = b"x") -> bytes:
    """Return a good member, and one with this name, Unix mode or flag."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as made:
        made.writestr("Bank/good.pdf", PDF)
        entry = zipfile.ZipInfo("x")
        entry.filename = entry.orig_filename = name
        entry.external_attr = mode << 16
        made.writestr(entry, content)
    raw = bytearray(sink.getvalue())
    if flags:
        at = raw.rindex(b"PK\x01\x02")
        raw[at + 8 : at + 10] = struct.pack("<H", flags)
    return bytes(raw)


def sharing(members: int, content: bytes) -> bytes:
    """Return many names for one body."""
    raw = plain({"Bank/a.pdf": content})
    at = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    record = raw[at:end]
    table = record * members
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, members, members, len(table), at, 0)
    return raw[:at] + table + tail


def patched(raw: bytes, offset: int, value: bytes) -> bytes:
    """`raw` with a field of its last table row overwritten."""
    at = raw.rindex(b"PK\x01\x02") + offset
    return raw[:at] + value + raw[at + len(value) :]


#: Names that lead, or could lead, out of the archive.
LEADING_OUT = (
    "../escape.pdf",
    "Bank/../../escape.pdf",
    "/escape.pdf",
    "//host/escape.pdf",
    "\\\\host\\share\\escape.pdf",
    "..\\escape.pdf",
    "Bank\\..\\..\\escape.pdf",
    "C:/escape.pdf",
    "C:escape.pdf",
    "c:\\escape.pdf",
    "Bank/./../..//escape.pdf",
    "..",
    "../",
    "/",
    "Bank/..",
    "Bank/escape.pdf\0.txt",
)

#: Names that are odd, and harm nobody under a safe one.
ODD_NAMES = (
    "CON",
    "aux.pdf",
    "Nul .pdf",
    "com1.tar.gz",
    "COM².pdf",
    ".hidden.pdf",
    "...pdf",
    " .pdf",
    "trailing. ",
    "a" * 300 + ".pdf",
    "ä" * 200 + ".pdf",
    "\u202efdp.exe.pdf",
    "a\u200bb.pdf",
    "\x1b[31mred.pdf",
    "line\nbreak.pdf",
    "tab\t.pdf",
    "what?<is>|this*.pdf",
    'quo"te.pdf',
    "a:stream.pdf",
    "%s%n{name}.pdf",
    "e\u0301.pdf",
    "é.pdf",
    "~$open.pdf",
    "$(reboot).pdf",
    "-rf",
)


def refused_members() -> Iterator[tuple[str, bytes]]:
    """Yield archives of which one member must be refused, each with the name of its defect."""
    for number, name in enumerate(LEADING_OUT):
        yield f"slip {number}", odd(name)
    yield "link", odd("Bank/link.pdf", mode=0o120777, content=b"/etc/passwd")
    yield "device", odd("Bank/null.pdf", mode=0o020666)
    yield "pipe", odd("Bank/pipe.pdf", mode=0o010666)
    yield "socket", odd("Bank/socket.pdf", mode=0o140666)
    yield "encrypted", odd("Bank/secret.pdf", flags=1)
    yield "bzip2", plain({"Bank/a.pdf": bytes(8 * 1024 * 1024)}, zipfile.ZIP_BZIP2)
    yield "lzma", plain({"Bank/a.pdf": bytes(8 * 1024 * 1024)}, zipfile.ZIP_LZMA)
    yield "promises 4 GB", patched(plain({"Bank/a.pdf": PDF}), 24, struct.pack("<L", 0xFFFF_FFF0))
    yield "promises less", patched(plain({"Bank/a.pdf": PDF * 50}), 24, struct.pack("<L", 3))
    yield "promises more", patched(plain({"Bank/a.pdf": PDF * 50}), 24, struct.pack("<L", 5000))
    yield "bytes of a member changed", patched(plain({"Bank/a.pdf": PDF * 50}, zipfile.ZIP_STORED), 16, b"\1\2\3\4")


def hostile() -> Iterator[tuple[str, bytes]]:
    """Yield archives that must be refused, each with the name of its defect."""
    yield "shared body", sharing(50, PDF * 100)


def broken() -> Iterator[tuple[str, bytes]]:
    """Yield archives as a failed transfer leaves them."""
    whole = plain({f"Bank/{number}.pdf": random.Random(number).randbytes(700) for number in range(9)})  # noqa: S311 - the same bytes every time
    yield "nothing", b""
    yield "HTML", b"<html><body>502 Bad Gateway</body></html>" * 40
    yield "JSON", b'{"statusCode": 500}'
    yield "only the end", whole[-22:][:4] + b"\xff" * 18
    for cut in range(0, len(whole) - 1, 500):
        yield f"cut at {cut}", whole[:cut] if cut else whole[1024:]


def mutated(seed: int, hostile: Sequence[bytes] = ()) -> bytes:
    """Return a good or a hostile archive with a few bytes changed, moved or lost."""
    jitter = random.Random(seed)  # noqa: S311 - the same archive for the same seed
    raw = bytearray(jitter.choice(_SOUND if jitter.random() < 0.5 else hostile or _HOSTILE))
    for _ in range(jitter.choice((1, 1, 1, 2, 5))):
        at = jitter.randrange(len(raw))
        kind = jitter.choice((0, 0, 1, 2, 3, 4, 4))
        if kind == 0:
            raw[at] = jitter.randrange(256)
        elif kind == 1:
            del raw[at : at + jitter.randrange(1, 12)]
        elif kind == 2:
            raw[at:at] = jitter.randbytes(jitter.randrange(1, 12))
        elif kind == 3:
            raw[at : at + 4] = jitter.choice((b"\xff" * 4, b"\0" * 4, b"PK\x01\x02", b"/../", b"PK\x05\x06"))
        else:
            start = max(raw.rfind(b"PK\x01\x02"), 0)  # most damage is done in the table
            raw[min(start + jitter.randrange(46), len(raw) - 1)] = jitter.choice((0, 1, 0x7F, 0x80, 0xFF))
        if len(raw) < 30:
            break
    return bytes(raw)


_SOUND = (
    plain({"Bank/a.pdf": PDF * 30, "Bank/b.pdf": b"b", "Other/c/d.csv": b"1,2\n" * 99}),
    plain({"Bank/a.pdf": PDF * 30, "Bank/b.pdf": b"b"}, zipfile.ZIP_STORED),
    plain({f"Bank/{name}": b"x" for name in ODD_NAMES}),
)
_HOSTILE = tuple(raw for _, raw in [*refused_members(), *hostile()] if len(raw) < 5000)
