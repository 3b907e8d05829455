"""Test which content counts as incomplete or mislabelled, with real files cut at every length."""

from __future__ import annotations

import io
import random
import struct
import time
import zipfile
import zlib

import pytest

from docferry.detect.content import Mode, examine
from docferry.files.hashing import TAIL
from docferry.model import Reason

NOISE = random.Random(7).randbytes(200_000)  # noqa: S311 - the same bytes every time


def verdict(content: bytes, name: str = "a.bin", mode: Mode = "complete") -> Reason | None:
    found = examine(mode, b"folder/" + name.encode(), len(content), content, content[-TAIL:])
    assert found == examine(mode, name.encode(), len(content), content[:4096], content)
    if found is not None:
        assert name in found.detail
    return found.reason if found else None


def pdf(body: bytes = NOISE) -> bytes:
    stream = b"1 0 obj\n<< /Length %d >>\nstream\n" % len(body) + body.replace(b"%%EOF", b"") + b"\nendstream\nendobj\n"
    return b"%PDF-1.7\n" + stream + b"xref\n0 1\ntrailer\n<< >>\nstartxref\n9\n%%EOF\n"


def archive(*members: tuple[str, bytes], comment: bytes = b"", how: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", how) as made:
        for name, content in members:
            made.writestr(name, content)
        made.comment = comment
    return target.getvalue()


def png(pixels: bytes = NOISE) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(pixels: bytes = NOISE) -> bytes:
    return (
        b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(9) + b"\xff\xda\0\x08" + pixels.replace(b"\xff", b"\xff\0") + b"\xff\xd9"
    )


WHOLE = {
    "pdf": pdf(),
    "small.pdf": pdf(b"short"),
    "zip": archive(("a.csv", NOISE), ("b.csv", NOISE[:9000])),
    "docx": archive(("[Content_Types].xml", b"<x/>" * 500), ("word/document.xml", NOISE), how=zipfile.ZIP_DEFLATED),
    "png": png(),
    "jpeg": jpeg(),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_file_is_complete(kind: str) -> None:
    assert verdict(WHOLE[kind]) is None


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.97])
def test_a_cut_file_is_incomplete(kind: str, share: float) -> None:
    whole = WHOLE[kind]
    cut = whole[: max(12, int(len(whole) * share))]
    assert verdict(cut) is Reason.INCOMPLETE
    assert verdict(cut, mode="type") is Reason.INCOMPLETE
    assert verdict(cut, mode="off") is None


@pytest.mark.parametrize(
    "end",
    [b"\0" * 5000, b"\r\n" * 700, b"<!-- served by proxy-7 -->" * 100, b"\x1a", b" " * 1000 + b"x" * 900],
    ids=["NULs", "lines", "a page", "a DOS end", "spaces"],
)
def test_what_follows_the_end_of_a_pdf_does_not_matter(end: bytes) -> None:
    assert verdict(pdf() + end) is None


def test_a_pdf_whose_update_is_cut_is_incomplete() -> None:
    update = b"7 0 obj\n<< /Length 90000 >>\nstream\n" + NOISE[:20_000]
    assert verdict(pdf() + update) is Reason.INCOMPLETE
    assert verdict(pdf() + update + b"\nendstream\nendobj\nstartxref\n9\n%%EOF") is None


def test_an_archive_of_archives_that_is_cut_is_incomplete() -> None:
    inner = archive(("a.txt", b"short"))
    outer = archive(("0.bin", NOISE[:3000]), *((f"{number}.docx", inner) for number in range(30)))
    assert verdict(outer) is None
    assert verdict(outer[: len(outer) // 2]) is Reason.INCOMPLETE


def test_a_zip_may_have_the_longest_comment() -> None:
    assert verdict(archive(("a.csv", NOISE), comment=b"c" * 65_535)) is None


@pytest.mark.parametrize("end", [b"\0" * 9000, NOISE, b"text " * 2000], ids=["NULs", "a film", "text"])
def test_what_follows_the_end_of_a_jpeg_does_not_matter(end: bytes) -> None:
    assert verdict(jpeg() + end) is None


@pytest.mark.parametrize("content", [b"a", b"", b"%PD", b"PK", b"\xff\xd8", NOISE, b"plain text", b"{"])
def test_what_is_no_kind_for_certain_counts_as_complete(content: bytes) -> None:
    assert verdict(content, "a.pdf") is None
    assert verdict(content, "a.zip") is None


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
RIGHT = [
    ("a.pdf", b"\n\njunk of a mail server\n" + pdf()),
    ("a.PDF", pdf()),
    ("a.xlsx", WHOLE["docx"]),
    ("locked.xlsx", OLE),
    ("a.xls", OLE),
    ("ancient.xls", b"\x09\x08\x10\0" + bytes(100)),
    ("a.doc", b"{\\rtf1 x}"),
    ("a.doc", OLE),
    ("a.png", png()),
    ("a.jpg", jpeg()),
    ("a.csv", b"name,amount\r\n\xe4\xf6\xfc,1\r\n"),
    ("a.csv", "\ufeffname;Betrag\n".encode("utf-16")),
    ("a.csv", "name;Betrag\nä;1\n".encode("utf-16-le")),
    ("a.csv", "名前,金額\n".encode("iso2022_jp")),
    ("a.csv", "名前,金額\n".encode("shift_jis")),
    ("a.csv", b"<not html>,1\n"),
    ("a.txt", b"<html> is a word\n"),
    ("a.unknown", NOISE),
    ("none", NOISE),
    ("a.pdf", b""),
]
WRONG = [
    ("a.pdf", b"a"),
    ("a.pdf", b"<!DOCTYPE html><html><body>Sign in</body></html>"),
    ("a.pdf", WHOLE["docx"]),
    ("a.xls", b"<html><table><tr><td>1</td></tr></table></html>"),
    ("a.xls", b"\xef\xbb\xbf\n<!-- made by a portal -->\n<HTML xmlns:x='x'>"),
    ("a.xls", WHOLE["docx"]),
    ("a.xlsx", b"name,amount\n1,2\n"),
    ("a.xlsx", pdf()),
    ("a.csv", NOISE),
    ("a.csv", OLE),
    ("a.csv", WHOLE["docx"]),
    ("a.csv", b"<html><head><title>502 Bad Gateway</title>"),
    ("a.csv", b"\x1f\x8b\x08\0" + b"text"),
    ("a.png", jpeg()),
    ("a.jpeg", png()),
    ("a.docx", OLE[:4] + b"text"),
]


@pytest.mark.parametrize(("name", "content"), RIGHT)
def test_content_that_fits(name: str, content: bytes) -> None:
    assert verdict(content, name, "type") is None


@pytest.mark.parametrize(("name", "content"), WRONG)
def test_content_that_contradicts_the_extension(name: str, content: bytes) -> None:
    assert verdict(content, name, "type") is Reason.CONTENT
    assert verdict(content, name) is None
    assert verdict(content, name, "off") is None


def test_no_bytes_break_the_check() -> None:
    chance = random.Random(3)  # noqa: S311 - the same bytes every time
    starts = [b"%PDF-", b"PK\x03\x04", b"PK\x03\x04PK\x05\x06", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"<!--", b""]
    for _ in range(3000):
        content = chance.choice(starts) + chance.randbytes(chance.randrange(60)) + chance.choice(starts)
        for name in ("a.pdf", "a.csv", "a.zip", ".", "a.\xff", "a.jpg"):
            verdict(content, name, "type")


def test_a_check_costs_microseconds() -> None:
    for kind, content in WHOLE.items():
        began = time.process_time()
        for _ in range(1000):
            examine("type", f"a.{kind}".encode(), len(content), content, content)
        assert time.process_time() - began < 0.5, f"{kind}: more than 500 microseconds each"
