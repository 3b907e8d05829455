"""Create small real documents for the demo: PDF, CSV, PNG and JPEG, with the standard library alone."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

_DC_COUNTS: Final = (0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0)  # the luminance table of the JPEG standard
_PAYEES: Final = ("Acme Ltd", "Globex", "Initech", "Umbrella", "Soylent", "Hooli", "Vandelay", "Wonka")


def pdf(title: str, lines: Iterable[str], at_least: int = 0) -> bytes:
    """Return one page of text, padded with a comment to `at_least` bytes."""
    texts = [f"({_literal(title)}) Tj", "0 -28 Td", "/F1 11 Tf"]
    for each in lines:
        texts += [f"({_literal(each)}) Tj", "0 -16 Td"]
    content = "\n".join(["BT", "/F1 18 Tf", "72 760 Td", *texts, "ET"]).encode("latin-1", "replace")
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    return _assembled(parts, at_least)


def statement(number: int) -> bytes:
    """Return a bank statement as PDF."""
    return pdf(
        f"Statement {number:02}", (f"{day}  {payee:<12} {amount:>10}" for day, payee, amount in _bookings(number))
    )


def csv(number: int) -> bytes:
    """Return the bookings of a month as CSV."""
    rows = (f"{day},{payee},{amount}" for day, payee, amount in _bookings(number))
    return "\r\n".join(["date,payee,amount", *rows, ""]).encode()


def png(number: int, side: int = 64) -> bytes:
    """Return a grey picture that differs for each number."""
    rows = b"".join(b"\0" + bytes((x * y * (number + 3)) % 251 for x in range(side)) for y in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def jpeg(number: int, blocks: int = 8) -> bytes:
    """Return a chequered picture of flat grey blocks as a minimal JPEG."""
    jitter = random.Random(number)  # noqa: S311 - a picture, no secret
    side = struct.pack(">HH", blocks * 8, blocks * 8)
    bits = "".join(_block_bits([jitter.randrange(-60, 60) for _ in range(blocks * blocks)]))
    bits += "1" * (-len(bits) % 8)
    scan = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"),
            _segment(0xDB, b"\0" + bytes([16] * 64)),
            _segment(0xC0, b"\x08" + side + b"\x01\x01\x11\0"),
            _segment(0xC4, b"\0" + bytes(_DC_COUNTS) + bytes(range(12))),
            _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\0"),
            _segment(0xDA, b"\x01\x01\0\0\x3f\0"),
            scan,
            b"\xff\xd9",
        )
    )


def _bookings(number: int) -> Iterator[tuple[str, str, str]]:
    jitter = random.Random(number)  # noqa: S311 - invented amounts
    for day in sorted(jitter.sample(range(1, 29), 12)):
        yield (
            f"2026-{number % 12 + 1:02}-{day:02}",
            jitter.choice(_PAYEES),
            f"{jitter.randrange(-90000, 90000) / 100:.2f}",
        )


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")


def _assembled(parts: list[bytes], at_least: int) -> bytes:
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, part in enumerate(parts, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    rest = 20 * len(parts) + 150  # about the size of table and trailer
    if len(out) + rest < at_least:
        out += b"%" + b"." * (at_least - len(out)) + b"\n"
    table = len(out)
    rows = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(parts) + 1, rows)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(parts) + 1, table)
    return bytes(out)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _block_bits(levels: Iterable[int]) -> Iterator[str]:
    """Return the bits of the blocks: each grey's difference from the previous one, and the end of block."""
    before = 0
    codes = list(_dc_codes())
    for level in levels:
        difference, before = level - before, level
        length = abs(difference).bit_length()
        yield codes[length]
        if length:
            yield f"{difference if difference > 0 else difference + (1 << length) - 1:0{length}b}"
        yield "0"


def _dc_codes() -> Iterator[str]:
    """Return the Huffman codes of the lengths 0 to 11."""
    code = 0
    for bits, many in enumerate(_DC_COUNTS, 1):
        for _ in range(many):
            yield f"{code:0{bits}b}"
            code += 1
        code <<= 1
